"""What a server has promised about one diagnosis, and whether what is found after a crash keeps it. No I/O.

An *update* is named by a number of the test's own, from which its body follows; a *seq* is the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

RETAINED_MAX: Final = 100


def fields_of(update: int) -> dict[str, Any]:
    """What is published under a number of ours: bodies of many sizes, each recognisable."""
    return {"feedback_id": update, "rating": 1 + update % 5, "comment": f"{update} " * (1 + update % 97)}


@dataclass(frozen=True, slots=True)
class Found:
    """One retained event."""

    seq: int
    fields: dict[str, Any]


class Ledger:
    """The history of one diagnosis as its publishers know it."""

    def __init__(self, name: str) -> None:
        """Begin with a diagnosis that has no event."""
        self._name = name
        self._epoch: str | None = None
        self._head = 0
        self._update_at: dict[int, int] = {}
        """The update of each seq that was acknowledged or found."""
        self._seq_of: dict[int, int] = {}
        """The same, the other way round."""
        self._unanswered: set[int] = set()
        """Updates sent whose fate is unknown: they may turn up, once."""
        self.acknowledged = 0
        self.stored_unanswered = 0
        """Events found that nobody was told about."""
        self.violations: list[str] = []

    def acknowledge(self, update: int, seq: int, epoch: str) -> None:
        """A publisher was told that its update is event `seq`."""
        self.acknowledged += 1
        self._expect_epoch(epoch)
        self._head = max(self._head, seq)
        self._unanswered.discard(update)
        self._assign(update, seq)

    def leave_unanswered(self, update: int) -> None:
        """The server died before it answered."""
        self._unanswered.add(update)

    def judge(self, epoch: str, head: int, found: Sequence[Found]) -> None:
        """Compare with what a restarted server retains."""
        self._expect_epoch(epoch)
        if head < self._head:
            self._complain(f"events {head + 1} to {self._head} are lost")
        self._head = head
        seqs = [event.seq for event in found]
        if seqs != list(range(max(0, head - RETAINED_MAX) + 1, head + 1)):
            self._complain(f"of head {head}, these are retained: {seqs}")
        for event in found:
            update = event.fields["feedback_id"]
            if {name: event.fields.get(name) for name in ("feedback_id", "rating", "comment")} != fields_of(update):
                self._complain(f"event {event.seq} has not the body of update {update}")
            if event.seq not in self._update_at:
                if update not in self._unanswered:
                    self._complain(f"event {event.seq} is update {update}, which was answered or never sent")
                self.stored_unanswered += 1
                self._unanswered.discard(update)
            self._assign(update, event.seq)

    def seq_of(self, update: int) -> int | None:
        """The number an update is known to have."""
        return self._seq_of.get(update)

    def _assign(self, update: int, seq: int) -> None:
        if self._update_at.setdefault(seq, update) != update:
            self._complain(f"number {seq} is update {self._update_at[seq]} and update {update}")
        if self._seq_of.setdefault(update, seq) != seq:
            self._complain(f"update {update} is event {self._seq_of[update]} and event {seq}")

    def _expect_epoch(self, epoch: str) -> None:
        if self._epoch is None:
            self._epoch = epoch
        if self._epoch != epoch:
            self._complain(f"epoch {self._epoch} became {epoch}")

    def _complain(self, what: str) -> None:
        self.violations.append(f"diagnosis {self._name}: {what}")
