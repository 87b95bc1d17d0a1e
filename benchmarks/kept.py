"""What a server has acknowledged during a soak, and whether what is found later keeps it. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


class Kept:
    """The promises of one server. An *update* is named by a number of the publisher's, its number is the server's."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.acknowledged = 0
        """Events."""
        self.heads: dict[str, int] = {}
        """The highest number that was acknowledged, by diagnosis."""
        self.cursors: dict[tuple[str, str], int] = {}
        """The highest number of an answered `ack`, by diagnosis and subscriber."""
        self.acts: Counter[str] = Counter()
        """Acts that were answered with success, by the action of their audit rows."""
        self.unknown_acts: Counter[str] = Counter()
        """Acts that were refused or not answered: they may have rows, too."""
        self.revocations: set[int] = set()
        """Those in force."""
        self._epochs: dict[str, str] = {}
        self._updates: dict[tuple[str, int], int] = {}
        self._numbers: dict[int, tuple[str, int]] = {}

    def complain(self, what: str) -> None:
        """Note a broken promise."""
        self.violations.append(what)

    def acknowledge(self, name: str, update: int, number: int, epoch: str) -> None:
        """A publisher was told that its update has this number."""
        self.acknowledged += 1
        self.expect_epoch(name, epoch)
        self.heads[name] = max(self.heads.get(name, 0), number)
        self.see(name, update, number)

    def see(self, name: str, update: int, number: int) -> None:
        """An update was answered, delivered or found under this number: both belong to each other alone."""
        if self._updates.setdefault((name, number), update) != update:
            self.complain(f"{name}: number {number} is update {self._updates[name, number]} and update {update}")
        if self._numbers.setdefault(update, (name, number)) != (name, number):
            self.complain(f"{name}: update {update} is {self._numbers[update]} and {(name, number)}")

    def expect_epoch(self, name: str, epoch: str) -> None:
        """A diagnosis that is never deleted has one epoch."""
        if self._epochs.setdefault(name, epoch) != epoch:
            self.complain(f"{name}: epoch {self._epochs[name]} became {epoch}")

    def judge_position(self, name: str, position: Mapping[str, Any]) -> None:
        """Where a diagnosis stands."""
        self.expect_epoch(name, position["epoch"])
        if position["head"] < self.heads.get(name, 0):
            self.complain(f"{name}: events {position['head'] + 1} to {self.heads[name]} are lost")

    def judge_cursors(self, name: str, cursors: Mapping[str, int]) -> None:
        """Where the subscribers of a diagnosis stand, by name."""
        for (of, sub), number in self.cursors.items():
            if of == name and cursors.get(sub, -1) < number:
                self.complain(f"{name}: the cursor of {sub} was acknowledged at {number} and is {cursors.get(sub)}")

    def judge_rows(self, rows: Mapping[str, int], before: Iterable[str]) -> None:
        """How many audit rows there are, by action.

        Args:
            before: actions whose row is stored before the act: a row may stand for an act that came to nothing.
        """
        for action in sorted({*self.acts, *rows}):
            found, done, unknown = rows.get(action, 0), self.acts[action], self.unknown_acts[action]
            may_exceed = unknown or action in before
            if found < done or (found > done and not may_exceed):
                self.complain(f"{action}: {done} acts were answered, {unknown} refused, and there are {found} rows")
