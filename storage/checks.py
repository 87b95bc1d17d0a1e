"""What SQLite can store, checked before anything is queued, so that one bad value never costs its batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Final

from storage.errors import StorageError, Unstorable
from storage.records import Appended, CursorMove, NewEvent

INTEGER_MAX: Final = 2**63 - 1
"""SQLite's integers have 64 bits. Beyond: refused."""


def check(*values: object) -> None:
    """Check values, and those within sequences and records among them.

    Raises:
        Unstorable: text that is not Unicode (lone surrogates), or an integer over 64 bits.
    """
    for value in values:
        if isinstance(value, str):
            check_text(value)
        elif isinstance(value, int):
            if not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise Unstorable("an integer must fit in 64 bits")
        elif isinstance(value, tuple):
            check(*value)
        elif is_dataclass(value):
            check(*(getattr(value, one.name) for one in fields(value)))


def check_moves(moves: Sequence[CursorMove]) -> None:
    """As `check`, of cursors, at a tenth of its cost: thousands of them follow a few dozen events."""
    for move in moves:
        name = move.subscriber
        for text in (move.diagnosis_id, name.sub, name.device, move.epoch):
            if text is not None:
                check_text(text)
        check(move.seq)


def refusal_of(event: NewEvent) -> Unstorable | None:
    """Why an event cannot be stored; `None`: it can. The same as `check`, for the path every event takes."""
    if event.kind.isascii() and (event.key is None or event.key.isascii()):
        return None
    try:
        check(event.kind, event.key)
    except Unstorable as refusal:
        return refusal
    return None


def refusals_of(events: Sequence[NewEvent]) -> Sequence[Unstorable | None]:
    """`refusal_of` each event; empty where all can be stored."""
    refusals = [refusal_of(event) for event in events]
    return refusals if any(refusals) else ()


def with_refusals(
    stored: Sequence[Appended | StorageError], refusals: Sequence[Unstorable | None]
) -> Sequence[Appended | StorageError]:
    """The outcome of each event: of `stored` for those that could be, in order, and the refusal of each other one."""
    if not refusals:
        return stored
    others = iter(stored)
    return [next(others) if refusal is None else refusal for refusal in refusals]


def check_text(text: str) -> None:
    """As `check`, of one text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unstorable("a text must be Unicode, without lone surrogates") from None
