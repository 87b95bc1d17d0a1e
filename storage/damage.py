"""Whether the outbox of one diagnosis is what was stored, what is left of it if not, and which ones were found damaged.

SQLite has no page checksums, and its integrity check passes a flipped byte of a body: only ours sees it. Nothing here
touches a database or waits. See docs/decisions/0070.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeGuard

from storage.records import OUTBOX_EVENTS_MAX, Epoch, Seq, Window

_SEQ_AND_TIME: Final = struct.Struct("<qd")

Entry = tuple[Any, Any, Any, Any, Any, Any]
"""A row of an outbox as it was read: slot, number, time, kind (bytes), body, checksum. Damage can change every type."""

Numbers = Sequence[Any]
"""`last_seq`, `floor` and `purged` of a diagnosis as they were read."""

logger = logging.getLogger("avicenna.storage")


def checksum(seq: int, at: float, kind: bytes, body: bytes) -> int:
    """Over everything of an event but its diagnosis."""
    return zlib.crc32(body, zlib.crc32(kind, zlib.crc32(_SEQ_AND_TIME.pack(seq, at))))


def is_whole(entry: Entry) -> bool:
    """Whether an event that was read is what was stored, in its place."""
    slot, seq, at, kind, body, crc = entry
    try:
        return bool(slot == seq % OUTBOX_EVENTS_MAX and checksum(seq, at, kind, body) == crc)
    except (TypeError, struct.error):
        return False


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with an outbox, and what is left of it once the damage is dropped."""

    what: str
    """In words, without the diagnosis."""
    head: Seq
    floor: Seq
    """The events above it, up to `head`, are whole."""
    purged: Seq
    is_head_trusted: bool
    """No number above `head` was given; else the numbers need a new epoch."""
    is_of_streams: bool = False
    """It lies in streams that servers share: none of them has to stop for it to be dropped."""

    def window(self, epoch: Epoch) -> Window:
        """What is left, as a value."""
        return Window(epoch, self.head, self.floor, self.purged)


def are_numbers(numbers: Numbers) -> TypeGuard[Sequence[int]]:
    """Whether the numbers of a diagnosis keep their own rule."""
    if not all(type(one) is int for one in numbers):
        return False
    last_seq, floor, purged = numbers
    return bool(0 <= purged <= floor <= last_seq <= floor + OUTBOX_EVENTS_MAX)


def judge(numbers: Numbers, entries: Iterable[Entry], told: int = 0) -> Damage | None:
    """What is wrong with an outbox; `None`: nothing.

    Args:
        told: the highest number that was certainly given, known from elsewhere.
    """
    stored: dict[object, int | None] = {}
    whole: set[int] = set()
    for entry in entries:
        slot, seq = entry[:2]
        is_in_place = type(seq) is int and seq > 0 and slot == seq % OUTBOX_EVENTS_MAX
        stored[slot] = seq if is_in_place else None
        if is_in_place and is_whole(entry):
            whole.add(seq)
    highest = max((seq for seq in stored.values() if seq is not None), default=0)
    if not are_numbers(numbers):
        return _without_a_head("its numbers are missing or make no sense", whole)
    last_seq, floor, purged = numbers
    if max(highest, told) > last_seq:
        return _without_a_head(f"its head {last_seq} is below number {max(highest, told)}, which was given", whole)
    if last_seq > floor and stored.get(last_seq % OUTBOX_EVENTS_MAX) != last_seq:
        return _without_a_head(f"the event of its head {last_seq} is missing", whole)
    lost = [seq for seq in range(floor + 1, last_seq + 1) if seq not in whole]
    if not lost and len(stored) == last_seq - floor:
        return None
    broken = [seq for seq in lost if stored.get(seq % OUTBOX_EVENTS_MAX, 0) in (seq, None)]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        what = f"event {broken[0]} fails its checksum{more}"
    else:
        what = f"its events are not {floor + 1} to {last_seq} without a hole"
    return Damage(what, Seq(last_seq), Seq(max(lost, default=floor)), Seq(purged), is_head_trusted=True)


def _without_a_head(what: str, whole: set[int]) -> Damage:
    """What is left of an outbox whose head cannot be trusted: the newest whole events, down to the first hole."""
    head = floor = max(whole, default=0)
    while floor in whole:
        floor -= 1
    return Damage(what, Seq(head), Seq(floor), Seq(0), is_head_trusted=False)


def drop_command(diagnosis_id: str, *, is_of_streams: bool = False) -> str:
    """The command that drops what is damaged."""
    check = "cluster check" if is_of_streams else "check"
    separator = "=" if diagnosis_id.startswith("-") else " "  # otherwise it would be taken for an option
    return f"avicenna-live {check} --drop-damaged{separator}{diagnosis_id}"


def problem(diagnosis_id: str, damage: Damage) -> str:
    """The damage of a diagnosis as a check names it."""
    how = "run" if damage.is_of_streams else "stop the server and run"
    command = drop_command(diagnosis_id, is_of_streams=damage.is_of_streams)
    return f"diagnosis {diagnosis_id}: {damage.what}; {how}: {command}"


NAMED_MAX: Final = 100
"""Damaged diagnoses that the log names one by one. Beyond: only the status does. Reason: one bad disk damages many."""


class FoundDamage:
    """The diagnoses that were found damaged, each told to the log once. One per store."""

    def __init__(self, *, is_check_pending: bool = False) -> None:
        self._found: dict[str, Damage] = {}
        self.repairs = 0
        """Counts repairs, deletions and new registrations: what was read before one of them may be outdated."""
        self.tell: Callable[[str], None] = lambda _: None
        """Called with each diagnosis that is found. Must not raise or wait."""
        self.is_check_pending = is_check_pending
        """Not all outboxes were looked at since a run that did not end in order."""

    @property
    def all(self) -> Mapping[str, Damage]:
        """By diagnosis id."""
        return MappingProxyType(self._found)

    def add(self, diagnosis_id: str, damage: Damage) -> None:
        """One was found."""
        if diagnosis_id not in self._found:
            self._found[diagnosis_id] = damage
            if len(self._found) <= NAMED_MAX:
                logger.error("%s%.0s", problem(diagnosis_id, damage), diagnosis_id)
            self.tell(diagnosis_id)

    def evicted(self, diagnosis_id: str, floor: Seq) -> None:
        """The events of one up to this number are gone for their age, and perhaps all that was damaged."""
        damage = self._found.get(diagnosis_id)
        if damage is not None and damage.is_head_trusted and floor >= damage.floor:
            self.is_repaired(diagnosis_id)

    def is_repaired(self, diagnosis_id: str) -> None:
        """What was stored under this id is gone, and its damage with it."""
        self.repairs += 1
        self._found.pop(diagnosis_id, None)


class TellsDamage:
    """The part of a store that says what was found damaged; every engine inherits it (`storage.store.Store`)."""

    _damage: FoundDamage

    @property
    def damaged(self) -> Mapping[str, Damage]:
        return self._damage.all

    @property
    def is_check_pending(self) -> bool:
        return self._damage.is_check_pending

    def on_damage(self, tell: Callable[[str], None]) -> None:
        self._damage.tell = tell
