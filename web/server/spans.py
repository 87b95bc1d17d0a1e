"""Spans of requests, mailboxes, commits and fan-outs, by the OpenTelemetry API; the one file that knows it.

A request is a span of its own, within the trace that its `traceparent` names. Behind it come `mailbox` (until an actor
takes what the request publishes), `commit` (one transaction of the store) and `fan-out`. Several requests share these:
such a span stands below the oldest of them, and links all.

An attribute never holds a person, an address, a query, a token or a payload. The diagnosis is named, as in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, cast

from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TracerProvider,
    TraceState,
    set_span_in_context,
)

from actors.upkeep import describe
from storage.clock import Clock
from web.contract.exchange import Request
from web.contract.log_fields import current_request
from web.contract.trace_context import TraceContext, TracedId, traced_id

logger = logging.getLogger("avicenna.server")

SCOPE: Final = "avicenna-live"
"""Who makes the spans."""

DIAGNOSIS: Final = "avicenna.diagnosis_id"

LINKS_MAX: Final = 128
"""Requests that a span links, as many as SDKs keep by default. Beyond: the first ones."""


class RequestSpan:
    """The span of one request."""

    __slots__ = ("_span", "_spans")

    def __init__(self, span: Span, spans: Spans) -> None:
        self._span = span
        self._spans = spans

    def end(self, status: int | None, diagnosis_id: str | None, code: str | None) -> None:
        """The request is over.

        Args:
            status: of its answer; `None`: it was cancelled, or its socket is a WebSocket now.
        """
        try:
            self._end(status, diagnosis_id, code)
        except Exception as error:  # noqa: BLE001 - what is plugged into an SDK fails no request
            self._spans.failed(error)

    def _end(self, status: int | None, diagnosis_id: str | None, code: str | None) -> None:
        if diagnosis_id is not None:
            self._span.set_attribute(DIAGNOSIS, diagnosis_id)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if code is not None:
            self._span.set_attribute("error.type", code)
        if status is not None and status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end(_nanoseconds(self._spans.clock.wall()))


class Spans:
    """Tells an SDK of spans. One per server."""

    def __init__(self, provider: TracerProvider, clock: Clock) -> None:
        self._tracer: Tracer = provider.get_tracer(SCOPE)
        self.clock = clock
        self._has_failed = False

    # Requests

    def begin(self, asked: Request, context: TraceContext | None) -> RequestSpan | None:
        """A request has come; its id belongs to a trace from now on.

        Args:
            context: where it says that it stands; `None`: it begins a trace.
        """
        try:
            return self._begin(asked, context)
        except Exception as error:  # noqa: BLE001 - what is plugged into an SDK fails no request
            self.failed(error)
            return None

    def _begin(self, asked: Request, context: TraceContext | None) -> RequestSpan:
        parent = None if context is None else set_span_in_context(NonRecordingSpan(_remote(context)))
        route = None if asked.route is None else asked.route.replace("<", "{").replace(">", "}")
        attributes = {"http.request.method": asked.method, "avicenna.request_id": asked.id}
        if route is not None:
            attributes["http.route"] = route
        span = self._tracer.start_span(
            f"{asked.method} {route or ''}".rstrip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=_nanoseconds(self.clock.wall()),
        )
        found = span.get_span_context()
        if found.is_valid:
            asked.id = traced_id(asked.id, f"{found.trace_id:032x}", found)
        return RequestSpan(span, self)

    def failed(self, error: Exception) -> None:
        """Say, once, that a span could not be made or ended."""
        if not self._has_failed:
            self._has_failed = True
            logger.error("a span failed, and others may: %s", describe(error))

    # What actors tell (`actors.tracing.Tracing`)

    def sender(self) -> SpanContext | None:
        request_id = current_request.get()
        return cast("SpanContext | None", request_id.span) if isinstance(request_id, TracedId) else None

    def taken(self, diagnosis_id: str, waited: Sequence[tuple[object, float]]) -> Sequence[object]:
        first: dict[int, tuple[SpanContext, float]] = {}
        for span, since in waited:
            if span is not None:
                context = cast("SpanContext", span)
                first.setdefault(context.span_id, (context, since))
        for context, since in first.values():
            self._tell("mailbox", [context], since, {DIAGNOSIS: diagnosis_id})
        return [context for context, _ in first.values()]

    def sent_out(self, diagnosis_id: str, spans: Sequence[object], since: float, connections: int) -> None:
        self._tell("fan-out", spans, since, {DIAGNOSIS: diagnosis_id, "avicenna.connections": connections})

    # What the store tells

    def committed(self, spans: Sequence[Sequence[object]], since: float, error: str | None) -> None:
        """A transaction has ended, in which events of these requests were stored; see `Store.on_commit`."""
        known = {one.span_id: one for group in spans for one in cast("Sequence[SpanContext]", group)}
        self._tell("commit", list(known.values()), since, {"avicenna.requests": len(known)}, error)

    def _tell(
        self,
        name: str,
        spans: Sequence[object],
        since: float,
        attributes: dict[str, str | int],
        error: str | None = None,
    ) -> None:
        """A step of these requests that ends now."""
        if spans:
            try:
                self._tell_all(name, spans, since, attributes, error)
            except Exception as failure:  # noqa: BLE001 - as above
                self.failed(failure)

    def _tell_all(
        self, name: str, spans: Sequence[object], since: float, attributes: dict[str, str | int], error: str | None
    ) -> None:
        contexts = cast("Sequence[SpanContext]", spans)
        parent = next((one for one in contexts if one.trace_flags.sampled), contexts[0])
        now = self.clock.wall()
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(NonRecordingSpan(parent)),
            links=[Link(one) for one in contexts[:LINKS_MAX]] if len(contexts) > 1 or name == "commit" else [],
            attributes=attributes,
            start_time=_nanoseconds(now - (self.clock.monotonic() - since)),
        )
        if error is not None:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", error)
        span.end(_nanoseconds(now))


def _remote(context: TraceContext) -> SpanContext:
    """The span of whoever sent a request."""
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(int(context.trace_id, 16), int(context.parent_id, 16), True, flags, state)


def _nanoseconds(at: float) -> int:
    return round(at * 1e9)
