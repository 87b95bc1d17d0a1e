"""A page of a list ends where its rows take too many bytes, even if more rows were asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from storage.records import AuditRow, Diagnosis, Event

Row = TypeVar("Row", Diagnosis, AuditRow, Event)

NAME_BYTES: Final = 3
"""Bytes that each name of a list takes beside its characters: two quotation marks and a comma."""


def within(rows: Iterable[Row], bytes_max: int | None) -> Iterator[Row]:
    """The rows up to `bytes_max`, and one more, if there is one: it shows that the page is not the last.

    The row that reaches `bytes_max` is within them, so that a page has at least one.

    Args:
        bytes_max: of `least_bytes` of the rows; `None`: all of them.
    """
    taken = 0
    for row in rows:
        yield row
        if bytes_max is not None:
            if taken >= bytes_max:
                return
            taken += least_bytes(row)


def least_bytes(row: Diagnosis | AuditRow | Event) -> int:
    """The least number of bytes of a row as JSON. Fields that cannot be long are not counted."""
    match row:
        case Event():
            return len(row.body)
        case Diagnosis():
            return sum(map(len, row.viewers)) + NAME_BYTES * len(row.viewers)
        case AuditRow():
            return len(row.before or "") + len(row.after or "")
