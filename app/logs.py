"""Log lines as text or JSON, each with the ids of its request, job, category and trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

_TEXT = "%(asctime)s %(levelname)-7s %(name)s  %(message)s%(ids)s"
_JSON = "%(asctime)s %(levelname)s %(name)s %(message)s"

_IDS: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039  # never mutated, only replaced


@contextmanager
def about(**ids: str | None) -> Iterator[None]:
    """Add ids such as `request_id`, `job_id` or `category` to every line logged inside."""
    token = _IDS.set({**_IDS.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _IDS.reset(token)


def configure(form: Literal["text", "json"]) -> None:
    """Send all log lines of the process to the standard error stream in this form."""
    handler = logging.StreamHandler()
    handler.addFilter(_with_ids if form == "text" else _with_fields)
    handler.setFormatter(logging.Formatter(_TEXT) if form == "text" else JsonFormatter(_JSON))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("docket").setLevel(logging.WARNING)
    # What is wrong with an upload is told to who sent it; Pillow logs some of it as an error.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _with_ids(record: logging.LogRecord) -> bool:
    record.ids = "".join(f"  {name}={value}" for name, value in _ids().items())
    return True


def _with_fields(record: logging.LogRecord) -> bool:
    record.__dict__.update(_ids())
    return True


def _ids() -> dict[str, str]:
    span = trace.get_current_span().get_span_context()
    return {**_IDS.get(), "trace_id": trace.format_trace_id(span.trace_id)} if span.is_valid else _IDS.get()
