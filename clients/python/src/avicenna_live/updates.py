"""What is broadcast: the three kinds of updates as a service makes them. Pure.

What a field may hold is the server's to judge (PROTOCOL section 7): it answers with the name of the field and its rule.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["recommendation", "effectiveness", "feedback"]

KEY: Final = re.compile(r"(?! )[\x20-\x7e]{1,128}(?<! )")
"""An idempotency key: it travels in a header (PROTOCOL section 7), where a space around it would be lost."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update, made once and sent as often as it takes: its key lets the server tell a repeat from a second one."""

    kind: Kind
    body: str
    """The JSON of a single broadcast."""
    idempotency_key: str

    def __repr__(self) -> str:
        return f"<{self.kind} update>"  # what it holds belongs into no log


def checked(update: object) -> Update:
    """An update. Raises `TypeError` for anything else."""
    if not isinstance(update, Update):
        raise TypeError(f"an Update is published, not {type(update).__name__}")
    return update


def recommendation_update(
    diagnosis_id: int | str,
    old_data: Mapping[str, Any] | None,
    new_data: Mapping[str, Any],
    reason: str | None = None,
    *,
    idempotency_key: str | None = None,
) -> Update:
    """The recommendations of a diagnosis have changed.

    Args:
        old_data: what they were, `None`: not known.
        idempotency_key: 1-128 printable ASCII characters; `None`: a new one.

    Raises:
        TypeError, ValueError: the data cannot be written as JSON, or `idempotency_key` is not as described.
    """
    fields = {"diagnosis_id": diagnosis_id, "old_data": old_data, "new_data": new_data, "reason": reason}
    return _update("recommendation", fields, idempotency_key)


def effectiveness_update(
    diagnosis_id: int | str,
    recommendation_id: int | str,
    new_effectiveness: float | None = None,
    confidence: float | None = None,
    sample_size: int | None = None,
    *,
    effectiveness: float | None = None,
    old_effectiveness: float | None = None,
    herb: str | None = None,
    idempotency_key: str | None = None,
) -> Update:
    """The measured effectiveness of a recommendation has changed.

    Args:
        new_effectiveness: from 0 to 1; `effectiveness` is accepted for it.
        confidence: from 0 to 1.
        sample_size: from 0.
        old_effectiveness: from 0 to 1.
        idempotency_key: 1-128 printable ASCII characters; `None`: a new one.

    Raises:
        TypeError: both or none of `new_effectiveness` and `effectiveness` are given.
        ValueError: `idempotency_key` is not as described.
    """
    if (new_effectiveness is None) == (effectiveness is None):
        raise TypeError("give new_effectiveness, or effectiveness in its place")
    fields = {
        "diagnosis_id": diagnosis_id,
        "recommendation_id": recommendation_id,
        "new_effectiveness": effectiveness if new_effectiveness is None else new_effectiveness,
        "confidence": confidence,
        "sample_size": sample_size,
        "old_effectiveness": old_effectiveness,
        "herb": herb,
    }
    return _update("effectiveness", fields, idempotency_key)


def feedback_update(
    diagnosis_id: int | str,
    feedback_id: int | str,
    rating: int,
    effectiveness: float | None = None,
    *,
    recommendation_id: int | str | None = None,
    comment: str | None = None,
    idempotency_key: str | None = None,
) -> Update:
    """Feedback has arrived.

    Args:
        rating: from 1 to 5.
        effectiveness: from 0 to 1.
        idempotency_key: 1-128 printable ASCII characters; `None`: a new one.

    Raises:
        ValueError: `idempotency_key` is not as described.
    """
    fields = {
        "diagnosis_id": diagnosis_id,
        "feedback_id": feedback_id,
        "rating": rating,
        "effectiveness": effectiveness,
        "recommendation_id": recommendation_id,
        "comment": comment,
    }
    return _update("feedback", fields, idempotency_key)


def _update(kind: Kind, fields: Mapping[str, Any], key: str | None) -> Update:
    given = {name: value for name, value in fields.items() if value is not None}
    body = json.dumps(given, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not body.isascii() and any("\ud800" <= character <= "\udfff" for character in body):
        raise ValueError("a text holds a lone surrogate, which is no character")  # it would fail when it is sent
    return Update(kind, body, secrets.token_hex(16) if key is None else _checked_key(key))


def _checked_key(key: object) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError("idempotency_key must be 1-128 printable ASCII characters, with no space around them")
    return key
