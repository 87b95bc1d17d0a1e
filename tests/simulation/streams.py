"""The streams of JetStream, as one server of a simulated cluster holds them: what is stored, and how it is found. Pure.

As much as `storage.nats.jetstream` uses, with the answers of a real server: `tests/cluster/test_simulated.py` asks both
the same. The time is given; nothing is drawn by lot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from storage.nats.jetstream import EXPECTED_LAST, MESSAGE_ID, ROLLUP, TTL
from storage.nats.wire import headers_of


class Kept(NamedTuple):
    """A message of a stream."""

    pos: int
    subject: str
    head: bytes
    """The block of headers as it came."""
    data: bytes
    at: float
    """When it was stored."""


class Incoming(NamedTuple):
    """A message that is to be stored."""

    subject: str
    head: bytes
    data: bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers by name."""
        return headers_of(self.head)


class Refused(Exception):
    """What a server answers instead of storing."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.code, self.err_code, self.description = code, err_code, description


class Repeated(Exception):
    """The same message was stored before, here."""

    def __init__(self, pos: int) -> None:
        super().__init__()
        self.pos = pos


NO_MESSAGE: Final = Refused(404, 10037, "no message found")


class Drop(NamedTuple):
    """A change: these messages are gone."""

    poses: Sequence[int]


class Keep(NamedTuple):
    """A change: these messages are stored."""

    messages: Sequence[Kept]


Change = Keep | Drop
"""What a leader has decided, and every server does."""


def covers(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that a pattern means."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and all(map(_fits, wanted[:-1], given))
    return len(wanted) == len(given) and all(map(_fits, wanted, given))


def _fits(wanted: str, given: str) -> bool:
    return wanted in ("*", given)


class Stream:
    """One stream at one server."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """An empty stream with these settings."""
        self.config = dict(config)
        self.messages: dict[int, Kept] = {}
        """By position, lowest first."""
        self.last_pos = 0
        self._by_subject: dict[str, list[int]] = {}
        self._ids: dict[str, tuple[int, float]] = {}
        """Where the messages with an id are, and since when."""
        self._ends: dict[int, float] = {}
        """When messages are dropped by themselves."""

    # What a leader decides

    def planned(self, incoming: Sequence[Incoming], now: float) -> Sequence[Kept]:
        """The messages as they are to be stored, all of them.

        Raises:
            Refused: none is.
            Repeated: a single one, which was stored before.
        """
        is_batch, planned = len(incoming) > 1, list[Kept]()
        for pos, one in enumerate(incoming, start=self.last_pos + 1):
            headers = one.headers
            known = self._ids.get(headers.get(MESSAGE_ID, ""), (0, 0.0))
            is_known = known[0] > 0 and now - known[1] < self.config["duplicate_window"] / 1e9
            if is_known and is_batch:
                raise Refused(400, 10201, "atomic publish contains duplicate message")
            if is_known and self.config["num_replicas"] > 1:
                raise Repeated(known[0])
            expected, last = headers.get(EXPECTED_LAST), self._by_subject.get(one.subject, [0])[-1]
            if expected is not None and int(expected) != last:
                raise Refused(400, 10071, f"wrong last sequence: {last}")
            if is_known:  # without replicas it looks in this order
                raise Repeated(known[0])
            planned.append(Kept(pos, one.subject, one.head, one.data, now))
        return planned

    def ended(self, now: float) -> Sequence[int]:
        """Messages whose time has come."""
        return [pos for pos, at in self._ends.items() if at <= now]

    def last_poses(self, subjects: Iterable[str]) -> dict[str, int]:
        """Where the last message of each subject is; 0: there is none."""
        return {one: self._by_subject.get(one, [0])[-1] for one in subjects}

    # What every server does

    def apply(self, change: Change) -> None:
        """Do what the leader has decided."""
        if isinstance(change, Drop):
            for pos in change.poses:
                self._drop(pos)
        else:
            for one in change.messages:
                self._store(one)

    def _store(self, one: Kept) -> None:
        headers = headers_of(one.head)
        if headers.get(ROLLUP) == "sub":
            for pos in list(self._by_subject.get(one.subject, ())):
                self._drop(pos)
        of_subject = self._by_subject.setdefault(one.subject, [])
        self.messages[one.pos] = one
        self.last_pos = one.pos
        of_subject.append(one.pos)
        kept_max = self.config.get("max_msgs_per_subject", -1)
        if 0 < kept_max < len(of_subject):
            self._drop(of_subject[0])
        if MESSAGE_ID in headers:
            self._ids[headers[MESSAGE_ID]] = one.pos, one.at
        if TTL in headers:
            self._ends[one.pos] = one.at + int(headers[TTL].rstrip("s"))

    def _drop(self, pos: int) -> None:
        one = self.messages.pop(pos, None)
        if one is not None:
            left = self._by_subject[one.subject]
            left.remove(pos)
            if not left:
                del self._by_subject[one.subject]
            self._ends.pop(pos, None)

    # What is found

    @property
    def first_pos(self) -> int:
        """The lowest position; one beyond the last, if there is nothing."""
        return next(iter(self.messages), self.last_pos + 1 if self.last_pos else 0)

    def last(self, subject: str) -> Kept:
        """The last message of a subject. Raises `Refused`."""
        found = self._by_subject.get(subject)
        if not found:
            raise NO_MESSAGE
        return self.messages[found[-1]]

    def at(self, pos: int) -> Kept:
        """The message at a position. Raises `Refused`."""
        if pos not in self.messages:
            raise NO_MESSAGE
        return self.messages[pos]

    def of(self, pattern: str, begin: int = 1) -> Sequence[Kept]:
        """All messages of a subject from a position on."""
        return [self.messages[pos] for pos in self._poses(pattern) if pos >= begin]

    def _poses(self, pattern: str) -> Sequence[int]:
        if "*" not in pattern and ">" not in pattern:
            return self._by_subject.get(pattern, ())
        return sorted(pos for name, poses in self._by_subject.items() if covers(pattern, name) for pos in poses)

    def last_of_each(self, subjects: Iterable[str], begin: int, up_to: int) -> Sequence[Kept]:
        """The last message of each subject up to a position, as far as it is not before another one."""
        found = []
        for subject in dict.fromkeys(subjects):
            poses = self._by_subject.get(subject, [])
            at = bisect_left(poses, up_to + 1)
            if at and poses[at - 1] >= begin:
                found.append(self.messages[poses[at - 1]])
        return sorted(found, key=lambda one: one.pos)
