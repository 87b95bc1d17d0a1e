"""A number of JSON that is written with a fraction or an exponent: kept as it is written, compared by its value. Pure.

A double would round `9007199254740993.0` and `1e-400`, and whoever published them would not get back what was sent.
Where a field asks for a double (`confidence`), msgspec reads one by itself; any other such number becomes a
`WrittenNumber`. A number with neither is an `int`.
"""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import Final

import msgspec

_EXACT: Final = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)
"""Rounds nothing. Only for taking zeros off the end, which makes nothing longer."""


class WrittenNumber:
    """One number. Its methods take time in proportion to its text, whatever its exponent."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text
        """As it is written in JSON."""

    def __float__(self) -> float:
        """The nearest double; infinity beyond the largest."""
        return float(self.text)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, WrittenNumber):
            # Equal values round to equal doubles, which are quicker to make.
            return self.text == other.text or (
                float(self.text) == float(other.text) and self.canonical() == other.canonical()
            )
        return isinstance(other, int) and not isinstance(other, bool) and self.canonical() == other

    __hash__ = None  # type: ignore[assignment]  # it equals integers, whose hashes would take its whole value to match

    def canonical(self) -> int | Decimal | str:
        """The same for all numbers of this value: an integer if it is one, else without zeros at the end.

        A number whose exponent no `Decimal` takes (beyond 18 digits) is the same only as one of the same text.
        """
        if not math.isfinite(float(self.text)):
            return self.text  # refused wherever it comes; as an integer it could fill all memory
        try:
            value = Decimal(self.text)
        except InvalidOperation:
            return self.text
        if not value:
            return 0
        value = value.normalize(_EXACT)
        return int(value) if value == value.to_integral_value() else value

    def as_integer(self) -> int | None:
        """The integer it is; `None`: it is none, or beyond every double."""
        found = self.canonical()
        return found if isinstance(found, int) else None


def as_written(value: object) -> msgspec.Raw:
    """The hook of an encoder that writes numbers as they came."""
    return msgspec.Raw(_number(value).text)


def as_valued(value: object) -> msgspec.Raw:
    """The hook of an encoder that writes equal numbers equally."""
    return msgspec.Raw(str(_number(value).canonical()))


def _number(value: object) -> WrittenNumber:
    if not isinstance(value, WrittenNumber):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return value
