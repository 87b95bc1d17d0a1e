"""Registered diagnoses that a store has in memory: the ones asked for last. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from storage.records import Diagnosis

DIAGNOSES_KNOWN_MAX: Final = 10_000
"""Diagnoses in memory, the ones asked for last. Reason: every request asks for one."""


class Look:
    """Look-ups of one diagnosis that began since its last change."""

    __slots__ = ("count", "is_current")

    def __init__(self) -> None:
        self.count = 0
        """Those under way."""
        self.is_current = True
        """No change has come since they began."""


class KnownDiagnoses:
    """Remembers diagnoses; what was read before a change is not remembered after it."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Diagnosis] = OrderedDict()
        self._looks: dict[str, Look] = {}

    def get(self, diagnosis_id: str) -> Diagnosis | None:
        """The diagnosis, if it is in memory."""
        known = self._known.get(diagnosis_id)
        if known is not None:
            self._known.move_to_end(diagnosis_id)
        return known

    @contextmanager
    def looking_up(self, diagnosis_id: str) -> Iterator[Look]:
        """A diagnosis is read meanwhile; what is found may be remembered if the look is current then."""
        look = self._looks.setdefault(diagnosis_id, Look())
        look.count += 1
        try:
            yield look
        finally:
            look.count -= 1
            if not look.count and self._looks.get(diagnosis_id) is look:
                del self._looks[diagnosis_id]

    def remember(self, diagnosis: Diagnosis) -> None:
        """It is registered so."""
        self._known[diagnosis.diagnosis_id] = diagnosis
        self._known.move_to_end(diagnosis.diagnosis_id)
        if len(self._known) > DIAGNOSES_KNOWN_MAX:
            self._known.popitem(last=False)

    def has_changed(self, diagnosis_id: str) -> None:
        """What was known of it, or is being read, is outdated."""
        self._known.pop(diagnosis_id, None)
        if (look := self._looks.pop(diagnosis_id, None)) is not None:
            look.is_current = False

    def have_all_changed(self) -> None:
        """As `has_changed`, of every diagnosis."""
        self._known.clear()
        for look in self._looks.values():
            look.is_current = False
        self._looks.clear()
