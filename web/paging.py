"""Lists in pages: `limit` and `after` in, `items` and `next` out (PROTOCOL section 8)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from web.errors import Problem
from web.records import NUMBER, NUMBER_RULE

PAGE_ITEMS_MAX: Final = 1000
PAGE_ITEMS_DEFAULT: Final = 100

_LIMIT: Final = re.compile(r"[0-9]{1,9}")

Item = TypeVar("Item")


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
        """The answer, from up to `limit + 1` items."""
        items = found[: self.limit]
        more = len(found) > self.limit
        return {"items": [show(item) for item in items], "next": key(items[-1]) if more else None}


def page_of(query: Mapping[str, str]) -> Page:
    """The page a request asks for.

    Raises:
        Problem: `limit` is out of range.
    """
    text = query.get("limit", str(PAGE_ITEMS_DEFAULT))
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= PAGE_ITEMS_MAX:
        raise Problem("invalid_field", f"limit must be an integer 1-{PAGE_ITEMS_MAX}")
    return Page(int(text), query.get("after", ""))
