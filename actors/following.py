"""Whether an actor is told of what other processes store: while somebody follows it here, and a little longer.

An actor that nobody follows here needs its numbers alone, and gets these with the answers to its own appends. Told of
every event of the others, each process would carry out the work of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from storage.store import Store

HEARD_IN_VAIN_MAX: Final = 64
"""News in a row while nobody follows. Reason: whoever leaves is often back soon, and would read again what was missed.
Beyond: nothing more is told until somebody follows."""


class Following:
    """What the store is to tell one actor. It outlives incarnations."""

    __slots__ = ("_diagnosis_id", "_heard_in_vain", "_is_over", "_store", "_undo")

    def __init__(self, store: Store, diagnosis_id: str) -> None:
        """Nothing is told, unless nobody else writes."""
        self._store = store
        self._diagnosis_id = diagnosis_id
        self._undo: Callable[[], None] | None = None
        self._heard_in_vain = 0
        self._is_over = False

    @property
    def is_on(self) -> bool:
        """Whether everything that is stored from now on is told here, or stored here."""
        return self._undo is not None or not self._store.shared

    def begin(self) -> bool:
        """Be told from now on; True: it was not so before, and what was stored until now is still to be read."""
        self._heard_in_vain = 0
        if self.is_on or self._is_over:
            return False
        self._undo = self._store.follow(self._diagnosis_id)
        return True

    def heard(self, *, is_wanted: bool) -> None:
        """News were taken in. With too many that nobody wants, it ends until it begins again."""
        self._heard_in_vain = 0 if is_wanted else self._heard_in_vain + 1
        if self._heard_in_vain >= HEARD_IN_VAIN_MAX:
            self._end()

    def leave(self) -> None:
        """The actor leaves memory: nothing is told any more, whatever an incarnation that is ending still does."""
        self._is_over = True
        self._end()

    def _end(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()
