"""What everybody was told, and whether all of it can be true at once. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Published:
    """One update that somebody wanted to have published."""

    number: int
    diagnosis_id: str
    author: str
    era: int
    """How often the rights of its author were taken away before."""
    key: str | None
    body: bytes
    life: int
    """Which registration of the diagnosis was there."""
    process: int = 0
    """Which run of the server was asked first."""
    seqs: set[tuple[str, int]] = field(default_factory=set)
    """As which events it was seen or answered."""
    is_repeated_by_others: bool = False
    asked: int = 0
    """How often it was asked for."""
    is_denied: bool = False
    """Its publisher was told that it is certainly not stored."""


@dataclass
class Barred:
    """A right that was taken away, and the answer to that has come."""

    sub: str
    era: int
    heads: Mapping[str, int]
    """The head of each epoch at that moment: no event above it comes from, or goes to, the former holder."""
    diagnosis_id: str | None
    """Where; `None`: everywhere."""
    links_before: int
    """Connections with a smaller number were opened before."""
    may_publish: bool
    """The right to follow alone was taken."""


class Truth:
    """All that was told about events."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str, int], int] = {}
        """Which update is which event: by diagnosis, epoch and number."""
        self.published: dict[int, Published] = {}
        self.acknowledged: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        """By diagnosis and epoch: answered events, each the number of an update by its number."""
        self.heads: dict[str, int] = defaultdict(int)
        """The highest number of each epoch that anybody was told of."""
        self.barred: list[Barred] = []
        self.ended: dict[str, int] = {}
        """Epochs of registrations that were deleted, or that a renewal has ended, and the answer to that has come:
        nothing is told of them any more. By each the number of the next connection."""

    def event(self, diagnosis_id: str, epoch: str, seq: int, number: int, *, where: str) -> None:
        """Somebody was told that an update is this event."""
        known = self.events.setdefault((diagnosis_id, epoch, seq), number)
        if known != number:
            raise Violation(f"G2: {diagnosis_id} {epoch} {seq} is update {known} and, {where}, update {number}")
        self.heads[epoch] = max(self.heads[epoch], seq)
        one = self.published.get(number)
        if one is None:
            raise Violation(f"{where}: event {seq} of {diagnosis_id} was never published")
        if one.diagnosis_id != diagnosis_id:
            raise Violation(f"{where}: update {number} was published to {one.diagnosis_id}, not to {diagnosis_id}")
        if one.is_denied and one.asked == 1:
            raise Violation(f"{where}: update {number} is {diagnosis_id} {epoch} {seq}, and was said not to be stored")
        one.seqs.add((epoch, seq))
        if len([one for one in one.seqs if one[0] == epoch]) > 1:
            raise Violation(f"G9: update {number} has the numbers {sorted(one.seqs)}, {where}")
        for bar in self.barred:
            if (
                not bar.may_publish
                and not one.is_repeated_by_others
                and (bar.sub, bar.era) == (one.author, one.era)
                and epoch in bar.heads
                and seq > bar.heads[epoch]
                and bar.diagnosis_id in (None, diagnosis_id)
            ):
                raise Violation(
                    f"G16: {one.author} published update {number} as {diagnosis_id} {epoch} {seq}, "
                    f"though the answer that took its right came at {bar.heads[epoch]}"
                )

    def begins_in(self, epoch: str, link: int | None, where: str) -> None:
        """Somebody who has asked just now, or whose connection has this number, was told that this epoch is there."""
        ended = self.ended.get(epoch)
        if ended is not None and (link is None or link >= ended):
            raise Violation(f"{where}: {epoch} has ended, and the answer to that has come, and is there again")

    def served(self, link: int, sub: str, diagnosis_id: str, epoch: str, seq: int) -> None:
        """Somebody was sent an event."""
        for bar in self.barred:
            if (
                bar.sub == sub
                and link < bar.links_before
                and bar.diagnosis_id in (None, diagnosis_id)
                and seq > bar.heads.get(epoch, seq)
            ):
                raise Violation(
                    f"{sub} got {diagnosis_id} {epoch} {seq} on connection {link}, though the answer that took its "
                    f"right came at {bar.heads[epoch]}"
                )

    def denied(self, number: int) -> None:
        """A publisher was told that its update is certainly not stored."""
        one = self.published[number]
        one.is_denied = True
        if one.seqs and one.asked == 1:
            raise Violation(f"update {number} is stored as {sorted(one.seqs)}, and was said not to be")

    def answered(self, diagnosis_id: str, epoch: str, seq: int, number: int) -> None:
        """A publisher was told that its update is this event."""
        self.event(diagnosis_id, epoch, seq, number, where="in an answer")
        self.acknowledged[diagnosis_id, epoch][seq] = number

    def judge_outbox(self, diagnosis_id: str, epoch: str, head: int, floor: int, stored: Mapping[int, int]) -> None:
        """Compare an outbox, each the number of an update by its number, with all that was told."""
        if head < self.heads[epoch]:
            raise Violation(f"G1: {diagnosis_id} {epoch} ends at {head}, but {self.heads[epoch]} was told of")
        if (
            len(stored) > 100
            or sorted(stored) != list(range(head - len(stored) + 1, head + 1))
            or floor + len(stored) != head
        ):
            raise Violation(f"G5: {diagnosis_id} {epoch} from {floor} to {head} holds {sorted(stored)}")
        for seq, number in stored.items():
            self.event(diagnosis_id, epoch, seq, number, where="in the outbox")
        for seq, number in self.acknowledged[diagnosis_id, epoch].items():
            if seq > floor and stored.get(seq) != number:
                raise Violation(f"G1: {diagnosis_id} {epoch} {seq} was answered as update {number}, and is lost")
