"""Traces by OpenTelemetry, where the environment names a collector; off otherwise.

FastAPI makes the span of a request, and pydocket that of a job, which links to the request that queued it. The lane and
the stages of a segmentation add theirs. How spans are sampled, named and sent is said by the variables of
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from opentelemetry import trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_SPOKEN = "http/protobuf"

_log = logging.getLogger(__name__)

tracer = trace.get_tracer("exemplar")


def configure() -> None:
    """Send this process's spans to the collector that the environment names, if it names one.

    What can't be set up is a line in the log: a cluster that sets these variables for all must not stop a service.
    """
    if not _asked_for():
        return
    if (protocol := _first_of(_PROTOCOLS) or _SPOKEN) != _SPOKEN:
        _log.warning("no traces: the protocol is to be %s, and only %s can be spoken", protocol, _SPOKEN)
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("no traces: install exemplar with its extra, pip install 'exemplar[otel]'")
        return
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before the name given here.
    said = OTELResourceDetector().detect()
    provider = TracerProvider(resource=Resource.create({"service.name": "exemplar"}).merge(said))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _log.info("traces go to %s", _first_of(_ENDPOINTS))


def _asked_for() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return _first_of(_ENDPOINTS) is not None


def _first_of(names: Sequence[str]) -> str | None:
    """The first of these variables that says something."""
    return next((value for name in names if (value := os.environ.get(name))), None)
