"""How acts read in the audit trail of a test: an act of a test says it itself, and else what it was answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from storage.audit_rows import AuditRows
from storage.records import Act, AuditRow, Erasure, NewAuditRow

AN_ACT: Final = Act("op", "test.act", {"before": "before", "after": "after"})
TELLING: Final = Act("op", "test.telling")
"""Its row says what it was answered."""
FAILING: Final = Act("op", "test.failing")
"""Its row cannot be made."""


def row_of(act: Act, answer: object) -> NewAuditRow:
    if act.what == FAILING.what:
        raise ZeroDivisionError
    told = {name: None if value is None else str(value) for name, value in act.parameters.items()}
    target, before, after = told.get("target"), told.get("before"), told.get("after", repr(answer))
    return NewAuditRow(act.who, act.what, target or "d", before, after)


def without_name(row: AuditRow, erasure: Erasure) -> AuditRow:
    """The row without a name that stands in plain words."""

    def text_without(text: str) -> str:
        return text.replace(erasure.sub, erasure.stand_in)

    return replace(
        row,
        who=text_without(row.who),
        before=row.before and text_without(row.before),
        after=row.after and text_without(row.after),
    )


ROWS: Final = AuditRows(row_of, without_name)
