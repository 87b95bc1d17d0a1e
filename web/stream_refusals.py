"""What a browser is told about a passing failure of an event stream: when to come back, instead of a status.

An `EventSource` gives up for good over any status that is not 200 (WHATWG HTML section 9.2.3), and comes back by itself
after a stream that ends. A refusal that is final keeps its status, so that it does give up.
"""

from __future__ import annotations

from typing import Final

from quart import Response, g, request
from werkzeug.http import parse_accept_header

from web import wire
from web.errors import RETRY_AFTER_SECONDS, CloseCode, Problem
from web.parameters import event_id_given, position_of, repeated_parameter
from web.records import DIAGNOSIS_ID
from web.services import Services
from web.streams import ROUTE, STREAM_MEDIA_TYPE, last_event_id, message, stream_response, with_retry

REASONS: Final = {
    "draining": "restart",
    "internal_error": "try later",  # after the route had begun: its actor crashed twice, and is being restarted
    "mailbox_full": "try later",
    "quarantined": "quarantined",
    "rate_limited": "rate limited",
    "storage_unavailable": "try later",
}
"""The codes of problems that pass, and the reason of the `bye` in their place."""


def goodbye_instead(services: Services, problem: Problem) -> Response | None:
    """The stream in place of a problem: `retry`, one `bye`, and the end; `None`: the problem is the answer."""
    if request.method != "GET" or request.endpoint != ROUTE or problem.code not in REASONS or not _wants_a_stream():
        return None
    asked = (request.view_args or {}).get("diagnosis_id", "")
    shown = asked if DIAGNOSIS_ID.fullmatch(asked) else ""
    reason = REASONS[problem.code]
    services.connection_log.refused("event stream", request, g.get("sub"), CloseCode.TRY_LATER, reason)
    retry_ms = int(problem.headers.get("Retry-After", RETRY_AFTER_SECONDS)) * 1000
    data = wire.bye_data(CloseCode.TRY_LATER, reason, retry_ms)
    bye = wire.frame("bye", shown, services.clock.wall(), data)
    return stream_response(with_retry(message(bye, _checked_event_id()), retry_ms))


def _wants_a_stream() -> bool:
    """Whether `Accept` names the type. A client that accepts anything is no `EventSource`, and gets the status."""
    accepted = parse_accept_header(",".join(request.headers.getlist("Accept")))
    return any(
        value.partition(";")[0].strip().lower() == STREAM_MEDIA_TYPE for value, quality in accepted if quality > 0
    )


def _checked_event_id() -> str | None:
    """The position of the browser, which it repeats when it comes back; `None`: it gave none, or none that is valid."""
    if repeated_parameter(request.args) is not None:
        return None
    try:
        given = event_id_given(request.args, last_event_id())
    except Problem:
        return None
    return given if given is not None and position_of(given) is not None else None
