"""Where a request carries its token. Whoever needs the token of a request finds it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from web.contract.exchange import Request
from web.contract.operations import EVENT_STREAM

BEARER_SUBPROTOCOL: Final = "bearer."
"""A browser can set no header: it offers its token as a second subprotocol with this prefix."""


def token_of(asked: Request, *, query_tokens: bool) -> str | None:
    """The token of a request: header before subprotocol before query. Two of one kind are a token that is not accepted.

    A subprotocol counts in a handshake alone, and the query where a browser can set no header: in a handshake, and
    for an event stream.

    Args:
        query_tokens: the operator does not mind tokens in the query.

    Returns:
        `None`: there is none; an empty text: there is something in its place that is no token.
    """
    if (token := bearer_of(asked.headers.getlist("Authorization"))) is not None:
        return token
    if asked.is_handshake:
        offered = [one for one in requested_subprotocols(asked) if one.startswith(BEARER_SUBPROTOCOL)]
        if offered:
            return offered[0].removeprefix(BEARER_SUBPROTOCOL) if len(offered) == 1 else ""
    elif asked.operation is None or asked.operation.answer_type != EVENT_STREAM:
        return None
    return asked.query.get("token") or None if query_tokens else None


def bearer_of(authorizations: Sequence[str]) -> str | None:
    """The token in `Authorization: Bearer` headers (RFC 6750). Returns as `token_of`."""
    if not authorizations:
        return None
    scheme, _, token = authorizations[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" and len(authorizations) == 1 else ""


def requested_subprotocols(asked: Request) -> Sequence[str]:
    """What a client offers, in its order of preference (RFC 6455 section 11.3.4)."""
    return [one.strip() for given in asked.headers.getlist("Sec-WebSocket-Protocol") for one in given.split(",")]
