"""This module creates OpenTelemetry traces: one trace for each message, from its rewrite to the last delivery of its events.

The ids of a trace are computed from the application and the message id. Therefore no trace id is stored, and another process can
add spans to the same trace, even days later. The rewrite is the root span; events, attempts of deliveries and conversion reports
are its children. A share of the messages is selected. All steps of a selected message are traced, and no step of another message.
Spans contain no phone numbers, no texts and no URLs.

Traces are off unless OTLP_ENDPOINT is set. They need the packages of the extra `tracing`. A background thread sends the spans. If
the collector does not respond, spans are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shortener import __version__
from shortener.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

#: The instruction that installs the packages for traces.
HOW_TO_INSTALL = (
    "run .venv/bin/pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http in the folder of the repository"
)
MAX_RATIO = 2**64


class TracingUnavailable(Exception):
    """Raised if OTLP_ENDPOINT is set and the packages for traces are not installed."""


class Tracer:
    """Creates the spans of messages and sends them to a collector."""

    def __init__(self, exporter: SpanExporter, ratio: float = 1.0) -> None:
        """`ratio` is the share of messages that are traced, from 0 to 1."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Ids(RandomIdGenerator):
            """A generator of ids: random ids, except for a root span, for which the tracer sets the ids in `root` before it
            starts the span."""

            root: tuple[int, int] | None = None

            def generate_trace_id(self) -> int:
                return super().generate_trace_id() if self.root is None else self.root[0]

            def generate_span_id(self) -> int:
                return super().generate_span_id() if self.root is None else self.root[1]

        self._ids = Ids()
        self._limit = int(ratio * MAX_RATIO)
        resource = Resource.create({"service.name": "sms-shortener", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("shortener", __version__)

    def record_rewrite(self, application_id: int, message_id: str, start_ns: int, end_ns: int, **attributes: Any) -> None:
        """Create the root span of a message. Times are nanoseconds since 1970."""
        from opentelemetry.context import Context

        trace_id, span_id = trace_ids(application_id, message_id)
        if not self._is_sampled(trace_id):
            return
        self._ids.root = (trace_id, span_id)
        try:
            span = self._tracer.start_span("rewrite", Context(), attributes=_named(message_id, attributes), start_time=start_ns)
        finally:
            self._ids.root = None
        span.end(end_ns)

    def record(
        self,
        name: str,
        application_id: int,
        message_id: str,
        start_ns: int,
        end_ns: int,
        *,
        error: str | None = None,
        is_request: bool = False,
        **attributes: Any,
    ) -> None:
        """Create the span of one step of a message, as a child of the span of its rewrite. `is_request` is true if the step is a
        request that the service sent. `error` is the reason if the step failed."""
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            SpanKind,
            StatusCode,
            TraceFlags,
            set_span_in_context,
        )

        trace_id, span_id = trace_ids(application_id, message_id)
        if not self._is_sampled(trace_id):
            return
        parent = NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
        span = self._tracer.start_span(
            name,
            set_span_in_context(parent),
            kind=SpanKind.CLIENT if is_request else SpanKind.INTERNAL,
            attributes=_named(message_id, attributes),
            start_time=start_ns,
        )
        if error is not None:
            span.set_status(StatusCode.ERROR, error)
        span.end(end_ns)

    def header(self, application_id: int, message_id: str) -> str | None:
        """Return the value of the W3C header `traceparent` for a request about a message. Return None if the message is not
        traced."""
        trace_id, span_id = trace_ids(application_id, message_id)
        return f"00-{trace_id:032x}-{span_id:016x}-01" if self._is_sampled(trace_id) else None

    def close(self) -> None:
        """Send the spans that were not sent yet, and stop."""
        self._provider.shutdown()

    def flush(self) -> None:
        """Send the spans that were not sent yet."""
        self._provider.force_flush()

    def _is_sampled(self, trace_id: int) -> bool:
        return trace_id % MAX_RATIO < self._limit


def trace_ids(application_id: int, message_id: str) -> tuple[int, int]:
    """Return the trace id of a message, and the id of its root span."""
    digest = hashlib.blake2b(f"{application_id}:{message_id}".encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1


def _named(message_id: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    named = {f"shortener.{name}": value for name, value in attributes.items() if value is not None}
    return {"shortener.message_id": message_id, **named}


def open_tracer(settings: Settings) -> Tracer | None:
    """Return the tracer, or None if OTLP_ENDPOINT is not set. Raise TracingUnavailable if the packages for traces are not
    installed."""
    if not settings.otlp_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=5), settings.trace_ratio)
    except ImportError:
        raise TracingUnavailable(f"OTLP_ENDPOINT needs more packages: {HOW_TO_INSTALL}") from None
