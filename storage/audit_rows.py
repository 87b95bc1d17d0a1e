"""How an engine makes audit rows: it is handed two functions when it is opened, and does not know what a row says.

An act is a value, which can travel to the process of a store; a function cannot. So each act names what is done
(`storage.records.Act`), and one table says how that reads in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from storage.records import Act, AuditRow, Erasure, NewAuditRow


@dataclass(frozen=True, slots=True)
class AuditRows:
    """What is to be known about audit rows. Neither function waits; both may be called on another thread."""

    row_of: Callable[[Act, object], NewAuditRow]
    """The row of an act that was answered so. Called within the transaction: only there is it known what was before."""
    without_name: Callable[[AuditRow, Erasure], AuditRow]
    """A row without the name of an erased person."""


def _bare_row(act: Act, answer: object) -> NewAuditRow:
    return NewAuditRow(act.who, act.what, "")


def _bare_without_name(row: AuditRow, erasure: Erasure) -> AuditRow:
    return replace(row, who=erasure.stand_in) if row.who == erasure.sub else row


BARE_ROWS: Final = AuditRows(_bare_row, _bare_without_name)
"""Rows that say who did what, and no more: for those who do not read them."""
