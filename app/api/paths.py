"""Paths of the calls: which are open, which only read, which take many photos, and where they are under a prefix."""

from __future__ import annotations

import re

from starlette._utils import get_route_path
from starlette.types import Scope

# Load balancers and orchestrators ask these from other machines, without a key.
PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
# Requested by monitoring every few seconds.
MONITORED = PROBES | {"/metrics"}
# Paths that reveal nothing that was taught: probes, metrics, the API documentation and the page, which asks for a key.
OPEN = MONITORED | {"/docs", "/openapi.json", "/"}
OPEN_FOLDERS = ("/web/", "/docs/")
# Calls that change nothing that is stored although they send a body.
READING = frozenset(
    {
        "/segment",
        "/segment/batch",
        "/segment/clicks",
        *(
            f"/label-studio/{name}"
            for name in ("setup", "predict", "validate", "delete", "duplicate_model", "job_status")
        ),
    }
)
# What who teaches may also delete.
DELETED_BY_TEACHERS = re.compile(r"/jobs/[^/]+|/categories/[^/]+/examples/[^/]+")
# Calls whose body may have several photos.
MANY_IMAGES = frozenset({"/layers/rank", "/segment/batch"})


def path_of(scope: Scope) -> str:
    """Path of a request without the prefix under which the service is, which the server leaves in the path.

    By Starlette's own function: what is compared with the sets above is what its router compares with the routes.
    """
    return get_route_path(scope)


def under_prefix(scope: Scope, path: str) -> str:
    """Address of a path of the service as the caller of a request has to call it."""
    return f"{scope.get('root_path', '').rstrip('/')}{path}"
