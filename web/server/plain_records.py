"""Our records of plain requests (`web.http.plain`), as the long way makes them of what Quart has found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from werkzeug.routing import Rule

from web.contract.exchange import Headers, Query, Request
from web.contract.operations import Operation
from web.contract.trace_context import TRACEPARENT
from web.http.plain import Plain


class PlainHeaders(Headers):
    """Header fields, each of which was given once."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        """Of values by names in lower case."""
        self._values = values

    def getlist(self, name: str) -> list[str]:
        """The value of this name, if there is one."""
        value = self._values.get(name.lower())
        return [] if value is None else [value]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of this name, or the default."""
        return self._values.get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class PlainQuery(Query):
    """The parameters of a plain query. Werkzeug's record of them takes a microsecond to say that one is missing."""

    __slots__ = ("_values",)

    def __init__(self, text: str) -> None:
        """Of a query as it came: read as Werkzeug does (`werkzeug.sansio.request.Request.args`)."""
        self._values: dict[str, list[str]] = {}
        if text:
            for name, value in parse_qsl(text, keep_blank_values=True, errors="werkzeug.url_quote"):
                self._values.setdefault(name, []).append(value)

    def lists(self) -> Iterable[tuple[str, list[str]]]:
        """Every name with all its values."""
        return self._values.items()

    def get(self, name: str, default: Any = None) -> Any:
        """The first value of this name, or the default."""
        values = self._values.get(name)
        return default if values is None else values[0]

    def __getitem__(self, name: str) -> str:
        return self._values[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


_NO_QUERY: Final = PlainQuery("")


def record_of(
    plain: Plain, rule: Rule, parameters: Mapping[str, str], operation: Operation | None, peer: str
) -> Request:
    """Our record of a plain request, and of the route that Werkzeug has found for it."""
    return Request(
        method=plain.method,
        path=plain.path,
        raw_path=plain.path.encode("ascii"),
        query=PlainQuery(plain.query) if plain.query else _NO_QUERY,
        headers=PlainHeaders(plain.headers),
        peer=peer,
        parameters=parameters,
        route=rule.rule,
        operation=operation,
        trace=plain.headers.get(TRACEPARENT),
        names_headers_once=True,
    )
