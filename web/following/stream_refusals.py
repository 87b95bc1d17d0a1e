"""What a browser is told about a passing failure of an event stream: when to come back, instead of a status.

An `EventSource` gives up for good over any status that is not 200 (WHATWG HTML section 9.2.3), and comes back by itself
after a stream that ends. A refusal that is final keeps its status, so that it does give up.
"""

from __future__ import annotations

from typing import Final

from werkzeug.http import parse_accept_header

from storage.clock import Clock
from web.contract import wire
from web.contract.errors import RETRY_AFTER_SECONDS, CloseCode, Problem
from web.contract.exchange import Answer, Request
from web.contract.operations import EVENT_STREAM
from web.contract.parameters import event_id_given, position_of, repeated_parameter
from web.contract.records import DIAGNOSIS_ID
from web.following.connection_log import ConnectionLog
from web.following.streams import StreamCloses, last_event_id, message, stream_answer, with_retry

REASONS: Final = {
    "draining": "restart",
    "internal_error": "try later",  # after the route had begun: its actor crashed twice, and is being restarted
    "mailbox_full": "try later",
    "quarantined": "quarantined",
    "rate_limited": "rate limited",
    "storage_unavailable": "try later",
}
"""The codes of problems that pass, and the reason of the `bye` in their place."""


def goodbye_instead(
    asked: Request, problem: Problem, log: ConnectionLog, closes: StreamCloses, clock: Clock
) -> Answer | None:
    """The stream in place of a problem: `retry`, one `bye`, and the end; `None`: the problem is the answer."""
    is_stream = asked.operation is not None and asked.operation.answer_type == EVENT_STREAM
    if asked.method != "GET" or not is_stream or problem.code not in REASONS or not _wants_a_stream(asked):
        return None
    diagnosis_id = asked.parameters.get("diagnosis_id")  # none: it is the stream of a console
    shown = diagnosis_id if diagnosis_id is None or DIAGNOSIS_ID.fullmatch(diagnosis_id) else ""
    reason = REASONS[problem.code]
    closes.closed(CloseCode.TRY_LATER)
    log.refused("event stream", asked, CloseCode.TRY_LATER, reason)
    retry_ms = int(problem.headers.get("Retry-After", RETRY_AFTER_SECONDS)) * 1000
    data = wire.bye_data(CloseCode.TRY_LATER, reason, retry_ms)
    bye = wire.frame("bye", shown, clock.wall(), data)
    return stream_answer(with_retry(message(bye, _checked_event_id(asked)), retry_ms))


def _wants_a_stream(asked: Request) -> bool:
    """Whether `Accept` names the type. A client that accepts anything is no `EventSource`, and gets the status."""
    accepted = parse_accept_header(",".join(asked.headers.getlist("Accept")))
    return any(value.partition(";")[0].strip().lower() == EVENT_STREAM for value, quality in accepted if quality > 0)


def _checked_event_id(asked: Request) -> str | None:
    """The position of the browser, which it repeats when it comes back; `None`: it gave none, or none that is valid."""
    if repeated_parameter(asked.query) is not None:
        return None
    try:
        given = event_id_given(asked.query, last_event_id(asked))
    except Problem:
        return None
    return given if given is not None and position_of(given) is not None else None
