"""What a driver reports, compared with what the table expects. Pure.

Items (events, gaps, resets, snapshots, what was raised) are compared in their order, and statuses in theirs.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

Report = dict[str, Any]

STATUSES: Final = ("connecting", "live", "offline", "needs_auth", "ended")

FREE: Final = frozenset({"connecting", "live", "offline"})
"""Statuses that may come where others are awaited."""


class Unexpected(AssertionError):
    """A report that is not the one the table has next."""


@dataclass(frozen=True, slots=True)
class Event:
    """The event with this number."""

    seq: int


@dataclass(frozen=True, slots=True)
class Through:
    """Each number from the next one to this, once: as an event, or within a gap."""

    last: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reset:
    """A reset to another epoch."""

    floor: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `get_state` returned."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The consumer raised over the event with this number."""

    seq: int


@dataclass(frozen=True, slots=True)
class Status:
    """A status; `None` as code or reason: any."""

    name: str
    code: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The iterator has ended for good, as the status before it says."""

    code: int | None
    reason: str | None


Item = Event | Through | Gap | Reset | Snapshot | Raised | Ended


def expected(entry: object) -> tuple[list[Item], list[Status]]:
    """The items and statuses that an entry of `expect` stands for. Raises `ValueError`."""
    words = str(entry).split()
    match words:
        case [numbers] if (found := re.fullmatch(r"(\d+)(?:-(\d+))?", numbers)) is not None:
            first = int(found[1])
            return [Event(seq) for seq in range(first, int(found[2] or first) + 1)], []
        case ["through", last]:
            return [Through(int(last))], []
        case ["gap", numbers, "evicted" | "purged" as why]:
            gap_first, _, gap_last = numbers.partition("-")
            return [Gap(int(gap_first), int(gap_last), why)], []
        case ["reset", floor]:
            return [Reset(int(floor))], []
        case ["snapshot"]:
            return [Snapshot()], []
        case ["raised", seq]:
            return [Raised(int(seq))], []
        case [name, *more] if name in STATUSES:
            code, reason = int(more[0]) if more else None, " ".join(more[1:]) or None
            return [Ended(code, reason)] if name == "ended" else [], [Status(name, code, reason)]
    raise ValueError(f"nothing that can be expected is called {entry!r}")


class Course:
    """Up to where the items of one driver have come."""

    def __init__(self) -> None:
        self.reached = 0
        """The last number that was reported, as an event or within a gap."""
        self.epoch: str | None = None

    def take(self, wanted: Item, report: Report) -> bool:
        """Compare an item with the one the table has next; whether that is complete.

        Raises:
            Unexpected: it is another one.
        """
        match wanted, report:
            case Event(seq), {"event": str(), "seq": int(found), "epoch": str(epoch)} if found == seq:
                self._reach(seq, epoch)
            case Through(last), {"event": str(), "seq": int(found), "epoch": str(epoch)} if self._is_next(found):
                self._reach(found, epoch)
                return found == last
            case Through(last), {"gap": {"first": int(first), "last": int(found)}} if self._is_next(first):
                self.reached = found
                return found == last
            case Gap(last=end), {"gap": dict(gap)} if gap == asdict(wanted):
                self.reached = end
            case Reset(floor), {"reset": {"epoch": str(epoch), "floor": int(found)}} if found == floor:
                if epoch == self.epoch:
                    raise Unexpected(f"{report} has the epoch of before")
                self.epoch, self.reached = epoch, floor
            case Snapshot(), {"snapshot": {"epoch": str(epoch), "seq": int(found)}}:
                self._reach(found, epoch)
            case Raised(seq), {"raised": int(found)} if found == seq:
                pass
            case Ended(code, reason), {"ended": dict(ended)} if _fits(code, reason, ended):
                pass
            case _:
                raise Unexpected(f"{report} where the table has {wanted}, after {self.reached}")
        return True

    def _is_next(self, seq: int) -> bool:
        return seq == self.reached + 1

    def _reach(self, seq: int, epoch: str) -> None:
        if epoch != (self.epoch or epoch):
            raise Unexpected(f"number {seq} has epoch {epoch}, after {self.epoch} and without a reset")
        self.epoch, self.reached = epoch, seq


def is_awaited(wanted: Status, report: Report, *, exactly: bool, free: frozenset[str] = FREE) -> bool:
    """Whether a status is the awaited one; `False`: it may come before that.

    Args:
        exactly: no status may.

    Raises:
        Unexpected: it may not come.
    """
    if report["status"] == wanted.name and _fits(wanted.code, wanted.reason, report):
        return True
    if exactly or report["status"] not in free:
        raise Unexpected(f"{report} where the table has {wanted}")
    return False


def _fits(code: int | None, reason: str | None, report: Report) -> bool:
    return code in (None, report["code"]) and reason in (None, report["reason"])
