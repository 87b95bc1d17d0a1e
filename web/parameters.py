"""What a subscriber asks for in its URL (PROTOCOL sections 3 and 8), checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from actors.resume import OLDEST, Wanted
from storage.records import Epoch, Seq
from web.errors import ConnectionRefused, Problem, invalid_parameter
from web.records import DEVICE, DEVICE_RULE, NUMBER, NUMBER_RULE, diagnosis_id_of

NAMES: Final = frozenset(
    {"ack", "after", "device", "epoch", "forget", "limit", "owner", "seq", "start", "sub", "token"}
)
"""Parameters that some route looks at; others are ignored."""

_EVENT_ID: Final = re.compile(r"([!-~]{1,64})\.([0-9]{1,15})")
_EPOCH: Final = re.compile(r"[!-~]{1,64}")


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
    app_acknowledges: bool
    """`ack=app`: only `ack` frames move the cursor."""


def parse(diagnosis_id: str, query: Mapping[str, str]) -> Parameters:
    """Check the path and the query of an upgrade.

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
    acknowledges = query.get("ack", "transport")
    if acknowledges not in ("transport", "app"):
        raise _refused("ack must be transport or app")
    return Parameters(checked_id, device, _wanted(query), acknowledges == "app")


def repeated_parameter(query: Query) -> str | None:
    """What is wrong with a query that names a parameter twice: whoever reads it would choose one of the two."""
    for name, values in query.lists():
        if len(values) > 1 and name in NAMES:
            return f"{name} must be given once"
    return None


def parse_stream(diagnosis_id: str, query: Mapping[str, str], last_event_id: str | None) -> Parameters:
    """Check the path, the query and the `Last-Event-ID` of a request for an event stream.

    The header wins over `after`: a browser that reconnects repeats the URL it began with. It acknowledges only for a
    named device; otherwise it says where one of several connections was, and nothing about the others.

    Raises:
        Problem: `invalid_field`, naming the parameter and its limit.
    """
    try:
        asked = parse(diagnosis_id, query)
    except ConnectionRefused as refused:
        raise Problem("invalid_field", refused.refusal.detail) from None
    if not last_event_id:
        return asked
    found = _EVENT_ID.fullmatch(last_event_id)
    if found is None:
        raise Problem("invalid_field", "Last-Event-ID must be the id of an event of this stream: epoch.number")
    position = Wanted(Seq(int(found[2])), Epoch(found[1]), acknowledges=asked.device is not None)
    return replace(asked, wanted=position)


def _wanted(query: Mapping[str, str]) -> Wanted:
    after, epoch, start = query.get("after"), query.get("epoch"), query.get("start", "oldest")
    if after is not None and not NUMBER.fullmatch(after):
        raise _refused(f"after {NUMBER_RULE}")
    if epoch is not None and not _EPOCH.fullmatch(epoch):
        raise _refused("epoch must be 1-64 printable characters")
    if start not in ("oldest", "new") and not NUMBER.fullmatch(start):
        raise _refused("start must be oldest, new, or an integer >= 0")
    newest = OLDEST if start == "oldest" else 0 if start == "new" else int(start)
    return Wanted(None if after is None else Seq(int(after)), None if epoch is None else Epoch(epoch), newest)


def _refused(detail: str) -> ConnectionRefused:
    return ConnectionRefused(invalid_parameter(detail))
