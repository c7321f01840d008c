"""Spans of OpenTelemetry where a program wants them, and nothing where it does not.

A span holds names, ids, counts and times: never an input, a share, a seed, a token, a caller's name
or the text of an error. A trace goes from a client to its servers by the header ``traceparent`` of
W3C Trace Context, and by no other. A client traces where its own program has loaded OpenTelemetry
and set it up; a server where it was told of a collector (``export``). Nothing is imported before.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from secure_quant.errors import ConfigError, SecureQuantError

__all__ = [
    "HEADER",
    "Span",
    "current",
    "export",
    "header_of",
    "note",
    "parent_in",
    "past",
    "span",
    "wanted",
]

HEADER = "traceparent"
NAME = "secure_quant"
_VALID = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_URL = re.compile(r"(https?)://([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})/?")
Attribute = str | int | float | bool

_own: Any = None
"""This program's tracer, where ``export`` was called."""


class Span:
    """One that runs, or none: then its methods do nothing. ``end`` once."""

    def __init__(self, made: Any = None) -> None:
        self._made = made

    @property
    def runs(self) -> bool:
        """False of none."""
        return self._made is not None

    def note(self, **attributes: Attribute) -> None:
        """Add to what it says."""
        if self._made is not None:
            for name, value in attributes.items():
                self._made.set_attribute(f"{NAME}.{name}", value)

    def failed(self, code: str) -> None:
        """``code``: a name of ours, such as a gRPC status."""
        if self._made is not None:
            trace = _api("trace")
            self._made.set_status(trace.Status(trace.StatusCode.ERROR, code))

    def end(self) -> None:
        """Now."""
        if self._made is not None:
            self._made.end()


def wanted() -> bool:
    """Whether somebody traces here."""
    return _tracer() is not None


def span(name: str, kind: str = "internal", parent: str = "", **attributes: Attribute) -> Span:
    """A span that has begun, below ``parent``, a ``traceparent``, or else below the current one.
    kind: internal, client, server or consumer. It is not the current one: see ``current``."""
    tracer = _tracer()
    if tracer is None:
        return Span()
    made = Span(tracer.start_span(
        name, kind=getattr(_api("trace").SpanKind, kind.upper()), context=_context_of(parent)
    ))  # fmt: skip
    made.note(**attributes)
    return made


@contextmanager
def current(made: Span) -> Iterator[Span]:
    """``made`` is what spans begin below, and calls go out under, inside; it ends with it."""
    if made._made is None:
        yield made
        return
    # Exceptions stay out of it: what they say may be anything.
    use = _api("trace").use_span(
        made._made, end_on_exit=True, record_exception=False, set_status_on_exception=False
    )
    with use:
        try:
            yield made
        except BaseException as error:
            made.failed(type(error).__name__ if isinstance(error, SecureQuantError) else "FAILED")
            raise


def note(**attributes: Attribute) -> None:
    """Add to what the current span says."""
    if _tracer() is not None:
        Span(_api("trace").get_current_span()).note(**attributes)


def past(name: str, seconds: float, **attributes: Attribute) -> None:
    """A span below the current one that took so long and has ended now."""
    tracer = _tracer()
    if tracer is not None:
        end = time.time_ns()
        made = tracer.start_span(name, start_time=end - int(seconds * 1e9))
        Span(made).note(**attributes)
        made.end(end)


def header_of(made: Span | None = None) -> str:
    """What a call sends along so that its server's span is below this one, or below the current
    one; empty where there is none."""
    if _tracer() is None:
        return ""
    trace = _api("trace")
    context = (trace.get_current_span() if made is None else made._made).get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def parent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The well-formed ``traceparent`` of a call, or nothing."""
    for key, value in metadata or ():
        if key == HEADER and isinstance(value, str) and _VALID.fullmatch(value):
            return value
    return ""


def export(service: str, collector: str) -> Callable[[], None]:
    """Send this program's spans to ``http://host:4317``, or https, by OTLP over gRPC; what is
    returned sends the last of them. Sampling is as the variables OTEL_TRACES_SAMPLER... say.
    Raises ConfigError."""
    global _own
    found = _URL.fullmatch(collector)
    if found is None or int(found[3]) > 65535:
        raise ConfigError("traces", got=ascii(collector[:80]), expected="http://HOST:PORT")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": f"secure-quant-{service}"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        endpoint=f"{found[1]}://{found[2]}:{found[3]}", insecure=found[1] == "http"
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    _own = provider.get_tracer(NAME)

    def stop() -> None:
        global _own
        _own = None
        provider.shutdown()

    return stop


def _tracer() -> Any:
    if _own is not None or "opentelemetry.sdk.trace" not in sys.modules:
        return _own
    return _api("trace").get_tracer(NAME)


def _api(name: str) -> Any:
    return importlib.import_module(f"opentelemetry.{name}")


def _context_of(parent: str) -> Any:
    if not parent:
        return None
    propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    return propagation.TraceContextTextMapPropagator().extract({HEADER: parent})
