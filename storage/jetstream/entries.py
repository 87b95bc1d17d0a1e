"""The log of a diagnosis as its entries say it: events, and marks, which have no number of their own. Pure.

Each entry says in one header what the log is after it, so the newest one tells the head, what was purged, and whether
the diagnosis lives; the oldest tells where the retained events begin. A mark has the number of the head and no body:

    !purge   an operator has dropped all events before it
    !trim    they were dropped for their age
    !end     the diagnosis was deleted

A mark drops all entries before it in the same moment. The log of a diagnosis that had an event never becomes empty
while it is registered: its numbers would begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from storage.damage import Damage, checksum, judge
from storage.records import OUTBOX_EVENTS_MAX, Epoch, Event, Seq, Window

HEADER: Final = "Av"

ATTEMPT: Final = "Av-Try"
"""The header that tells the attempts of one append apart."""

PURGED: Final = "!purge"
TRIMMED: Final = "!trim"
ENDED: Final = "!end"


class Entry(NamedTuple):
    """One entry."""

    pos: int
    """Its position in the stream; 0: not stored yet."""
    seq: int
    """Its number; of a mark that of the head."""
    at: float
    kind: str
    registration: str
    """The epoch that it belongs to, of the generation in which it is read."""
    floor: int
    purged: int
    crc: int
    node: str
    """Who wrote it."""
    body: bytes = b""
    message_id: str = ""
    """The attempt of the append whose first entry it is; empty: it is none."""

    @property
    def is_event(self) -> bool:
        """No mark."""
        return not self.kind.startswith("!")

    @property
    def window(self) -> Window:
        """The log as this entry has left it."""
        return Window(Epoch(self.registration), Seq(self.seq), Seq(self.floor), Seq(self.purged))

    @property
    def event(self) -> Event:
        """The event that it is."""
        return Event(Seq(self.seq), self.at, self.kind, self.body)


def attempt_id(append_id: str, attempt: int) -> str:
    """Names one attempt of an append: each may have been planned otherwise."""
    return f"{append_id}/{attempt}"


GENERATION_MARK: Final = "~"
"""Between the name of a registration and the generation of the installation."""


def epoch_of(registration: str, generation: str) -> str:
    """The epoch that clients are told: another one for each generation, of which the first has no name.

    What is stored names the registration alone. So all epochs change with one message, and numbers go on.
    """
    return f"{registration}{GENERATION_MARK}{generation}" if generation else registration


def registration_of(epoch: str) -> str:
    """The registration that an epoch is of, as it is stored."""
    return epoch.partition(GENERATION_MARK)[0]


NOTHING: Final = Entry(0, 0, 0.0, ENDED, "", 0, 0, 0, "")
"""The head of a log without an entry."""


def text_of(entry: Entry) -> str:
    """The header of an entry."""
    numbers = f"{entry.floor} {entry.purged} {entry.crc}"
    names = f"{quote(entry.kind, safe='!')} {quote(registration_of(entry.registration), safe='') or '-'}"
    return f"{entry.seq} {entry.at!r} {names} {numbers} {quote(entry.node, safe='') or '-'}"


def entry_of(
    pos: int, headers: Mapping[str, str], body: bytes, message_id: str = "", generation: str = ""
) -> Entry | None:
    """The entry that a message is; `None`: it is none, or was damaged."""
    try:
        seq, at, kind, registration, floor, purged, crc, node = headers[HEADER].split(" ")
        return Entry(
            pos,
            int(seq),
            float(at),
            unquote(kind),
            epoch_of(unquote(registration), generation),
            int(floor),
            int(purged),
            int(crc),
            unquote(node),
            body,
            message_id,
        )
    except (KeyError, ValueError):
        return None


def begun(head: Entry, epoch: str) -> Entry:
    """The head of a log for a registration: as it is, or before the first number if it is of another one."""
    if head.registration == epoch and head.kind != ENDED:
        return head
    return head._replace(seq=0, floor=0, purged=0, registration=epoch)


def appended(head: Entry, kind: str, body: bytes, at: float, node: str) -> Entry:
    """The next event after this head."""
    seq = head.seq + 1
    return Entry(
        0,
        seq,
        at,
        kind,
        head.registration,
        max(head.floor, seq - OUTBOX_EVENTS_MAX),
        head.purged,
        checksum(seq, at, kind.encode(), body),
        node,
        body,
    )


def marked(head: Entry, kind: str, node: str, *, is_purge: bool = False) -> Entry:
    """The mark that drops everything up to this head."""
    purged = head.seq if is_purge else head.purged
    return head._replace(pos=0, kind=kind, floor=head.seq, purged=purged, crc=0, node=node, body=b"", message_id="")


class Log(NamedTuple):
    """A log as it was read."""

    window: Window
    events: Sequence[Entry]
    """Lowest number first."""
    damage: Damage | None
    pos: int
    """The position of its newest entry; 0: there is none."""
    is_of_newest: bool = True
    """The newest entry belongs to this registration, and does not end it."""


def log_of(epoch: str, found: Sequence[Entry | None], poses: Sequence[int]) -> Log:
    """What entries say, read in the order of their positions.

    Args:
        found: `None` for an entry that cannot be read.
        poses: the position of each.
    """
    pos = poses[-1] if poses else 0
    unreadable = found.count(None)
    mine = [one for one in found if one is not None and one.registration == epoch and one.kind != ENDED]
    if not mine and not unreadable:
        return Log(Window(Epoch(epoch), Seq(0), Seq(0), Seq(0)), (), None, pos, is_of_newest=False)
    events = [one for one in mine if one.is_event]
    last = mine[-1] if mine else NOTHING
    floor = events[0].seq - 1 if events else last.seq
    window = Window(Epoch(epoch), Seq(last.seq), Seq(floor), Seq(last.purged))
    rows = [
        (one.seq % OUTBOX_EVENTS_MAX, one.seq, one.at, one.kind.encode("utf-8", "surrogatepass"), one.body, one.crc)
        for one in events
    ]
    damage = judge((last.seq, floor, last.purged), rows)
    if unreadable:
        damage = _with_unreadable(found, window, damage)
    newest = found[-1]
    is_of_newest = newest is None or (newest.registration == epoch and newest.kind != ENDED)
    return Log(window, events, None if damage is None else replace(damage, is_of_streams=True), pos, is_of_newest)


def _with_unreadable(found: Sequence[Entry | None], window: Window, damage: Damage | None) -> Damage:
    """What is wrong with a log of which entries cannot be read, and perhaps others are not what was stored."""
    after = found[len(found) - list(reversed(found)).index(None) :]
    kept = after[0].seq - 1 if after and after[0] is not None else window.head
    floor = max(kept, window.floor, damage.floor if damage is not None else 0)
    what = "an entry cannot be read" if damage is None else f"{damage.what}, and an entry cannot be read"
    # The newest may have had a number that is not known.
    is_head_trusted = bool(after) and (damage is None or damage.is_head_trusted)
    return Damage(what, window.head, Seq(floor), window.purged, is_head_trusted=is_head_trusted)
