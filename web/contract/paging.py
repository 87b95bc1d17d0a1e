"""Lists in pages: `limit` and `after` in, `items` and `next` out (PROTOCOL section 8)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from web.contract import wire
from web.contract.errors import Problem
from web.contract.records import NUMBER, NUMBER_RULE

PAGE_ITEMS_MAX: Final = 1000
"""Items of a page of a list that a client may ask for. Beyond: 422."""

PAGE_ITEMS_DEFAULT: Final = 100

PAGE_BYTES_MAX: Final = 256 * 1024
"""A page ends with the item that reaches so many bytes. Reason: it is made in one turn, and held until it is read."""

_LIMIT: Final = re.compile(r"[0-9]{1,9}")

Item = TypeVar("Item")


class Shown:
    """What a page shows, until it is full."""

    def __init__(self) -> None:
        self.items: list[msgspec.Raw] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more has room; one item always has."""
        return self._bytes >= PAGE_BYTES_MAX

    def add(self, item: object) -> None:
        """Show one more."""
        text = wire.encode(item)
        self._bytes += len(text)
        self.items.append(msgspec.Raw(text))


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted."""

    limit: int
    after: str
    """The `next` of the page before; empty: from the start."""

    @property
    def after_number(self) -> int:
        """`after` in a list that numbers order; 0: from the start.

        Raises:
            Problem: it is no number.
        """
        if not NUMBER.fullmatch(self.after or "0"):
            raise Problem("invalid_field", f"after {NUMBER_RULE}")
        return int(self.after or "0")

    @property
    def before(self) -> int | None:
        """`after` in a list whose numbers go down; `None`: from the start. Raises as `after_number`."""
        return self.after_number if self.after else None

    def of(
        self, found: Sequence[Item], show: Callable[[Item], object], key: Callable[[Item], str]
    ) -> dict[str, object]:
        """The answer, from up to `limit + 1` items; fewer, if those but the last take `PAGE_BYTES_MAX`."""
        shown = Shown()
        for item in found[: self.limit]:
            if shown.is_full:
                break
            shown.add(show(item))
        return self.answer(found, shown, key)

    def answer(self, found: Sequence[Item], shown: Shown, key: Callable[[Item], str]) -> dict[str, object]:
        """The answer, from the items found and what is shown of the first ones."""
        count = len(shown.items)
        return {"items": shown.items, "next": key(found[count - 1]) if len(found) > count else None}


def page_of(query: Mapping[str, str]) -> Page:
    """The page a request asks for.

    Raises:
        Problem: `limit` is out of range.
    """
    text = query.get("limit", str(PAGE_ITEMS_DEFAULT))
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= PAGE_ITEMS_MAX:
        raise Problem("invalid_field", f"limit must be an integer 1-{PAGE_ITEMS_MAX}")
    return Page(int(text), query.get("after", ""))
