"""What a log line may carry beside its text: the id of the request it belongs to, and fields of its own. Pure."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final = "request_id"
"""The attribute of a record that has the id of another request than the current one, and the field of a JSON line."""

TRACE_ID: Final = "trace_id"
"""The field of a JSON line that names the trace of that request (`web.contract.trace_context`)."""

FIELDS: Final = "fields"
"""The attribute of a record with what a JSON line has in fields of their own, beside the message."""

current_request: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The id of the request that the current task works for; `None`: it works for none."""
