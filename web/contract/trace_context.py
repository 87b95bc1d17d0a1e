"""The trace that a request belongs to, as its `traceparent` says (W3C Trace Context, level 1). Pure.

A header that is not as the recommendation has it is ignored, as it demands: the request is served all the same.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_LENGTH: Final = 55
"""Characters of version 00; a later version begins with as many, and goes on behind a dash (section 4.3)."""

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_CURRENT_VERSION: Final = "00"
_NO_VERSION: Final = "ff"
_NO_TRACE: Final = "0" * 32
_NO_PARENT: Final = "0" * 16

STATE_CHARACTERS_MAX: Final = 8192
"""Longest `tracestate` that is passed on. Beyond: the trace goes on without it."""


class TraceContext(NamedTuple):
    """Where a request stands in a trace."""

    trace_id: str
    parent_id: str
    """The span of whoever sent the request."""
    sampled: bool
    """Whether the sender may have recorded it. The other flags are not of level 1."""
    state: str = ""
    """`tracestate`, as it came; empty: there was none."""


def trace_context(parent: str, states: list[str]) -> TraceContext | None:
    """What a `traceparent` says; `None`: it is not valid.

    Args:
        states: the values of all `tracestate` fields, in order.
    """
    found = _FORM.match(parent)
    if found is None:
        return None
    version, trace_id, parent_id, flags = found.groups()
    rest = parent[_LENGTH:]
    if version == _NO_VERSION or (rest and (version == _CURRENT_VERSION or not rest.startswith("-"))):
        return None
    if trace_id == _NO_TRACE or parent_id == _NO_PARENT:
        return None
    state = ",".join(states)
    return TraceContext(
        trace_id, parent_id, bool(int(flags, 16) & 1), state if len(state) <= STATE_CHARACTERS_MAX else ""
    )


class TracedId(str):
    """The id of a request that belongs to a trace. Whatever carries the id carries the trace."""

    __slots__ = ("span", "trace_id")

    trace_id: str
    span: object
    """What tells of traces knows it (`web.server.tracing`); `None`: nobody does."""


def traced_id(request_id: str, trace_id: str, span: object = None) -> TracedId:
    """The id of a request, with its trace."""
    made = TracedId(request_id)
    made.trace_id, made.span = trace_id, span
    return made


def trace_id_of(request_id: str | None) -> str | None:
    """The trace of a request; `None`: it belongs to none."""
    return request_id.trace_id if isinstance(request_id, TracedId) else None
