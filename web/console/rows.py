"""The rows of an overview, each with the turn in which it changed last. Pure.

A console is a number: the last turn it was given. What it is due is every row that changed later, so one that was away
for a minute or took nothing for ten seconds gets what is new, once, and there is no queue. A row is a whole row: to get
it twice does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

GONE_KEPT: Final = 10_000
"""Rows that are remembered as gone. Beyond: a console that has not heard of the oldest begins anew."""

Facts = tuple[object, ...]
"""What a row says, in the order of the columns, its id first."""


@dataclass(frozen=True, slots=True)
class _Row:
    facts: Facts
    text: bytes
    """The facts as JSON, made once for all consoles."""
    turn: int


class Rows:
    """All rows of an overview."""

    def __init__(self, begun: int) -> None:
        """No rows.

        Args:
            begun: the turn before the first one of these rows; whoever was given less begins anew.
        """
        self._rows: dict[str, _Row] = {}
        """By id; what changed last comes last."""
        self._gone: dict[str, int] = {}
        """Ids that are no rows any more, and the turn since when; the oldest first."""
        self._floor = begun

    def __len__(self) -> int:
        return len(self._rows)

    def differs(self, name: str, facts: Facts) -> bool:
        """Whether a row does not say this."""
        row = self._rows.get(name)
        return row is None or row.facts != facts

    def put(self, name: str, facts: Facts, text: bytes, turn: int) -> None:
        """Have a row say something else from this turn on."""
        self._rows.pop(name, None)
        self._gone.pop(name, None)
        self._rows[name] = _Row(facts, text, turn)

    def drop(self, name: str, turn: int) -> None:
        """There is no such row from this turn on."""
        if self._rows.pop(name, None) is None:
            return
        self._gone[name] = turn
        while len(self._gone) > GONE_KEPT:
            self._floor = max(self._floor, self._gone.pop(next(iter(self._gone))))

    def knows(self, given: int) -> bool:
        """Whether all that has changed since this turn is known."""
        return given >= self._floor

    def since(self, given: int) -> tuple[Sequence[bytes], Sequence[str]]:
        """The rows that changed after a turn, as JSON, the newest first, and the ids of those that went."""
        return list(self._changed(given)), [name for name, turn in self._gone.items() if turn > given]

    def _changed(self, given: int) -> Iterator[bytes]:
        for row in reversed(self._rows.values()):
            if row.turn <= given:
                return
            yield row.text
