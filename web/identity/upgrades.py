"""Who asks for a WebSocket: its token, its origin, and the limits of those who connect. To follow and to publish."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Final

from web.contract.errors import INVALID_TOKEN, ORIGIN_NOT_ALLOWED, ConnectionRefused, invalid_parameter, too_many
from web.contract.exchange import Request
from web.contract.parameters import repeated_header, repeated_parameter
from web.contract.principals import ANONYMOUS, Principal
from web.identity.access import Access
from web.identity.bearer import requested_subprotocols
from web.identity.limits import TooMany
from web.identity.refusals import refusal_of_token
from web.identity.tokens import TokenError

SUBPROTOCOL: Final = "avicenna.v1"
"""The subprotocol the server selects where a client offers it."""


class Upgrades:
    """Judges upgrades. One per server."""

    def __init__(self, access: Access) -> None:
        """Judge with the rules, the tokens and the limits of `access`."""
        self._access = access

    def count_connect(self, asked: Request) -> None:
        """Count an attempt to connect, whatever becomes of it, for the address it comes from.

        Raises:
            ConnectionRefused: it is one too many.
        """
        try:
            self._access.limits.connect_from(partial(self._access.address_of, asked))
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None

    def check_once(self, asked: Request) -> None:
        """See that what decides something is given once.

        Raises:
            ConnectionRefused: `invalid field`, naming the parameter or header.
        """
        repeated = repeated_parameter(asked.query) if asked.query else None
        if repeated is None and not asked.names_headers_once:
            repeated = repeated_header(asked.headers.items())
        if repeated is not None:
            raise ConnectionRefused(invalid_parameter(repeated))

    def authenticate(self, asked: Request, *, anonymous_allowed: bool) -> Principal:
        """Who opens a WebSocket.

        Args:
            anonymous_allowed: somebody without a token is not refused.

        Raises:
            ConnectionRefused: the token is missing or not accepted, the origin is not allowed, or a limit is reached.
        """
        # A browser names the page it is on; anything else passes (RFC 6455 section 10.2).
        if not self._access.origin_allowed(asked):
            raise ConnectionRefused(ORIGIN_NOT_ALLOWED)
        token = self._access.token_of(asked)
        if token is None:
            if anonymous_allowed:
                return ANONYMOUS
            self._access.refused_tokens.say(None, in_query=asked.query.get("token") is not None)
            raise ConnectionRefused(INVALID_TOKEN)
        try:
            who = self._access.verified(token)
            self._access.limits.connect_of(who.sub)
        except TokenError as error:
            raise ConnectionRefused(refusal_of_token(error)) from None
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None
        return who

    def name_of(self, asked: Request) -> bytes:
        """The name under which the refusals of a client are counted together: an address and a token, if it has one."""
        named = f"{self._access.address_of(asked)} {self._access.token_of(asked) or ''}"
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()


def selected_subprotocol(asked: Request) -> str | None:
    """The subprotocol to answer with."""
    return SUBPROTOCOL if SUBPROTOCOL in requested_subprotocols(asked) else None
