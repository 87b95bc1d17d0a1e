"""What a subscriber asks for in its URL (PROTOCOL sections 3 and 8), checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from actors.resume import OLDEST, Wanted
from storage.records import AcknowledgedBy, Epoch, Seq
from web.contract.errors import ConnectionRefused, Problem, invalid_parameter
from web.contract.records import DEVICE, DEVICE_RULE, NUMBER, NUMBER_RULE, diagnosis_id_of

NAMES: Final = frozenset(
    {
        "Last-Event-ID",
        "ack",
        "action",
        "actor",
        "after",
        "device",
        "diagnosis_id",
        "epoch",
        "forget",
        "heartbeat",
        "lastEventId",
        "limit",
        "payload",
        "peek",
        "seq",
        "since",
        "start",
        "sub",
        "token",
        "until",
        "user_id",
        "what",
    }
)
"""Parameters that some route looks at; others are ignored."""

EVENT_ID_NAMES: Final = ("lastEventId", "Last-Event-ID")
"""Where polyfills of `EventSource`, which set no header, put the id of the last message: in one of them."""

HEADERS_ONCE: Final = frozenset({"content-encoding", "content-type", "origin", "sec-fetch-site"})
"""Headers that decide something and are no lists; `Authorization`, `Idempotency-Key` and `Last-Event-ID` are looked at
where they are read."""

HEARTBEAT_SECONDS_MIN: Final = 5
"""Shortest time between heartbeats. Reason: each of them wakes a phone. Below: refused."""

HEARTBEAT_SECONDS_MAX: Final = 300
"""Longest time between heartbeats. Reason: beyond it the client could as well open a new connection."""

_EVENT_ID: Final = re.compile(r"([!-~]{1,64})\.([0-9]{1,15})")
_EPOCH: Final = re.compile(r"[!-~]{1,64}")
_HEARTBEAT: Final = re.compile(r"[1-9][0-9]{0,2}")

_ACKS: Final[dict[str, AcknowledgedBy]] = {"transport": "transport", "app": "app"}


class Query(Protocol):
    """A query as it came."""

    def lists(self) -> Iterable[tuple[str, list[str]]]:
        """Every name with all its values."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a client asked for."""

    diagnosis_id: str
    device: str | None
    wanted: Wanted
    ack: AcknowledgedBy | None
    """What acknowledges: receipts of the transport as well, or only the client itself; `None`: nothing, it peeks."""
    heartbeat_seconds: int | None = None
    """After so long without a message the client gets a heartbeat; `None`: it asked for none."""

    @property
    def peeks(self) -> bool:
        """The client looks, and leaves no trace among the known subscribers."""
        return self.ack is None


def parse(diagnosis_id: str, query: Mapping[str, str], *, anonymous: bool, default_ack: AcknowledgedBy) -> Parameters:
    """Check the path and the query of an upgrade.

    Args:
        anonymous: the client has no token, and is let in without; if it names no device either, it peeks.
        default_ack: what acknowledges if the client does not say.

    Raises:
        ConnectionRefused: `invalid field`, naming the parameter and its limit.
    """
    try:
        checked_id = diagnosis_id_of(diagnosis_id)
    except Problem as problem:
        raise ConnectionRefused(invalid_parameter(problem.detail)) from None
    device = query.get("device")
    if device is not None and not DEVICE.fullmatch(device):
        raise _refused(f"device {DEVICE_RULE}")
    ack = _ack(query, device, default_ack, anonymous=anonymous)
    return Parameters(checked_id, device, _wanted(query), ack, _heartbeat_seconds(query))


def _ack(
    query: Mapping[str, str], device: str | None, default: AcknowledgedBy, *, anonymous: bool
) -> AcknowledgedBy | None:
    peek, ack = query.get("peek", "0"), query.get("ack")
    if peek not in ("0", "1"):
        raise _refused("peek must be 0 or 1")
    if peek == "1" and device is not None:
        raise _refused("device cannot go together with peek: who peeks has no queue")
    if ack is not None and ack not in _ACKS:
        raise _refused("ack must be transport or app")
    if peek == "0" and not (anonymous and device is None):
        return default if ack is None else _ACKS[ack]
    if ack is not None:
        because = "who peeks" if peek == "1" else "who is anonymous and names no device"
        raise _refused(f"ack must not be given: {because} acknowledges nothing")
    return None


def _heartbeat_seconds(query: Mapping[str, str]) -> int | None:
    text = query.get("heartbeat")
    if text is None:
        return None
    if not _HEARTBEAT.fullmatch(text) or not HEARTBEAT_SECONDS_MIN <= int(text) <= HEARTBEAT_SECONDS_MAX:
        raise _refused(f"heartbeat must be an integer from {HEARTBEAT_SECONDS_MIN} to {HEARTBEAT_SECONDS_MAX} seconds")
    return int(text)


def repeated_parameter(query: Query) -> str | None:
    """What is wrong with a query that names a parameter twice: each reader would choose one of the two."""
    for name, values in query.lists():
        if len(values) > 1 and name in NAMES:
            return f"{name} must be given once"
    named = {name for name, values in query.lists() if name in EVENT_ID_NAMES and any(values)}
    if len(named) > 1:
        return f"the position must be given once, as {' or as '.join(EVENT_ID_NAMES)}"
    return None


def repeated_header(headers: Iterable[tuple[str, str]]) -> str | None:
    """What is wrong with a head that has such a header twice, even if both say the same."""
    found = set()
    for name, _ in headers:
        if (lowered := name.lower()) in HEADERS_ONCE:
            if lowered in found:
                return f"{lowered.title()} must be given once"
            found.add(lowered)
    return None


def parse_stream(
    diagnosis_id: str, query: Mapping[str, str], last_event_id: str | None, *, anonymous: bool
) -> Parameters:
    """Check the path, the query and the `Last-Event-ID` of a request for an event stream.

    The header wins over its namesakes in the query, and those win over `after`: a browser that reconnects repeats the
    URL it began with. Such a position acknowledges only for a named device; otherwise it says where one of several
    connections was, and nothing about the others.

    Raises:
        Problem: `invalid_field`, naming the parameter and its limit.
    """
    try:
        asked = parse(diagnosis_id, query, anonymous=anonymous, default_ack="app")
    except ConnectionRefused as refused:
        raise Problem("invalid_field", refused.refusal.detail) from None
    if not asked.peeks:
        asked = replace(asked, ack="app")
    for name, event_id in (("Last-Event-ID", last_event_id), *((name, query.get(name)) for name in EVENT_ID_NAMES)):
        if event_id and position_of(event_id) is None:
            raise Problem("invalid_field", f"{name} must be the id of a message of this stream: epoch.number")
    given = event_id_given(query, last_event_id)
    position = position_of(given) if given is not None else None
    if position is None:
        return asked
    return replace(asked, wanted=replace(position, acknowledges=asked.device is not None))


def event_id_given(query: Mapping[str, str], last_event_id: str | None) -> str | None:
    """The id of the last message a client has got, as it says: in the header, else in the query."""
    return last_event_id or next(filter(None, map(query.get, EVENT_ID_NAMES)), None)


def position_of(event_id: str) -> Wanted | None:
    """Where the stream continues after the message with this id; `None`: no message has such an id."""
    found = _EVENT_ID.fullmatch(event_id)
    return None if found is None else Wanted(Seq(int(found[2])), Epoch(found[1]))


def _wanted(query: Mapping[str, str]) -> Wanted:
    after, epoch, start = query.get("after"), query.get("epoch"), query.get("start", "oldest")
    if after is not None and not NUMBER.fullmatch(after):
        raise _refused(f"after {NUMBER_RULE}")
    if epoch is not None and not _EPOCH.fullmatch(epoch):
        raise _refused("epoch must be 1-64 printable characters")
    if start not in ("oldest", "new") and not NUMBER.fullmatch(start):
        raise _refused("start must be oldest, new, or an integer >= 0 of at most 15 digits")
    newest = OLDEST if start == "oldest" else 0 if start == "new" else int(start)
    return Wanted(None if after is None else Seq(int(after)), None if epoch is None else Epoch(epoch), newest)


def _refused(detail: str) -> ConnectionRefused:
    return ConnectionRefused(invalid_parameter(detail))
