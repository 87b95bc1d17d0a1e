"""The token of a request is found in one place, whoever needs it."""

from __future__ import annotations

from typing import cast

import pytest
from werkzeug.datastructures import Headers, MultiDict

from web.contract.exchange import Body, Query, Request
from web.contract.exchange import Headers as HeaderFields
from web.contract.operations import EVENT_STREAM, OPERATIONS
from web.identity.bearer import token_of

STREAM = next(one for one in OPERATIONS if one.answer_type == EVENT_STREAM)
OTHER = next(one for one in OPERATIONS if one.answer_type != EVENT_STREAM)

EVERYWHERE = ("handshake", "stream", "other")
AUTHORIZATION = ("Authorization", "Bearer header")
SUBPROTOCOLS = ("Sec-WebSocket-Protocol", "avicenna.v1, bearer.subprotocol")
QUERY = "query"


def asked(kind: str, headers: list[tuple[str, str]], token: str | None) -> Request:
    """A request of this kind."""
    return Request(
        method="GET",
        path="/",
        raw_path=b"/",
        query=cast("Query", MultiDict({} if token is None else {"token": token})),
        headers=cast("HeaderFields", Headers(headers)),
        peer="127.0.0.1",
        parameters={},
        route=None,
        operation={"stream": STREAM, "other": OTHER}.get(kind),
        body=None if kind == "handshake" else cast("Body", object()),
    )


@pytest.mark.parametrize(
    ("kinds", "headers", "in_query", "found"),
    [
        (EVERYWHERE, [], None, None),
        (EVERYWHERE, [], "", None),
        (EVERYWHERE, [AUTHORIZATION], QUERY, "header"),
        (EVERYWHERE, [("Authorization", "bearer  header ")], None, "header"),
        (EVERYWHERE, [("Authorization", "Basic eDp5")], QUERY, ""),
        (EVERYWHERE, [AUTHORIZATION, AUTHORIZATION], QUERY, ""),
        (("handshake",), [AUTHORIZATION, SUBPROTOCOLS], QUERY, "header"),
        (("handshake",), [SUBPROTOCOLS], QUERY, "subprotocol"),
        (("handshake",), [("Sec-WebSocket-Protocol", "bearer.a, bearer.b")], QUERY, ""),
        (("stream",), [SUBPROTOCOLS], None, None),
        (("handshake", "stream"), [], QUERY, QUERY),
        (("other",), [], QUERY, None),
    ],
)
def test_a_token_is_found_where_a_request_of_its_kind_may_carry_it(
    kinds: tuple[str, ...], headers: list[tuple[str, str]], in_query: str | None, found: str | None
) -> None:
    for kind in kinds:
        assert token_of(asked(kind, headers, in_query), query_tokens=True) == found, kind


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_token_in_the_query_does_not_count_where_the_operator_minds(kind: str) -> None:
    assert token_of(asked(kind, [], QUERY), query_tokens=False) is None
