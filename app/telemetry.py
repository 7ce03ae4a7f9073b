"""OpenTelemetry traces, sent if the environment names a collector.

FastAPI creates the span of a request, pydocket that of a job, with a link to the request that queued it. The lane and
the stages of a segmentation add their own spans. Sampling, names and export are set by the variables of
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
    """Send the spans of this process to the collector that the environment names, if it names one.

    A problem is logged and does not stop the service: a cluster may set these variables for all its processes.
    """
    if not _asked_for():
        return
    if (protocol := _first_of(_PROTOCOLS) or _SPOKEN) != _SPOKEN:
        _log.warning("no traces: the protocol is set to %s, and only %s is supported", protocol, _SPOKEN)
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("no traces: install the extra, pip install 'exemplar[otel]'")
        return
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence over this name.
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
    """Value of the first of these variables that is not empty."""
    return next((value for name in names if (value := os.environ.get(name))), None)
