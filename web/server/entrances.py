"""What is served where: on connections beyond the limit, and on the listener of the operators.

The edge asks these before any route; what a request may do is judged by its route, as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from web.contract.operations import ON_ANY_HOST, OPERATIONS
from web.http.handshake import Headers
from web.identity.bearer import bearer_of
from web.identity.rights import may_operate
from web.identity.tokens import TokenError, Verifier

OPERATORS_CONNECTIONS_MAX: Final = 32
"""Open at once at the listener of the operators. Beyond: 503."""

HEALTH: Final = frozenset(path.encode() for path in ON_ANY_HOST)

_LOOKING: Final = frozenset(one.path.encode() for one in OPERATIONS if one.tag == "looking")
_OPERATING: Final = frozenset(one.path.split("/")[1].encode() for one in OPERATIONS if one.tag == "operating")
"""First segments of the paths of the operators' routes."""


def served_to_operators(path: bytes) -> bool:
    """Whether a path is the health of the server or a route of operators: what their listener serves."""
    return path in _LOOKING or path.split(b"/", 2)[1] in _OPERATING


def served_when_full(verifier: Verifier, wall: Callable[[], float]) -> Callable[[bytes, Headers], bool]:
    """A function that tells whether a request is served beyond the limit of connections: health, or an operator's
    token."""

    def is_served(path: bytes, headers: Headers) -> bool:
        if path in HEALTH:
            return True
        if path.endswith(b"/events"):  # a stream would keep its connection
            return False
        token = bearer_of([value.decode("latin1") for name, value in headers if name == b"authorization"])
        try:
            return token is not None and may_operate(verifier.verify(token, wall()))
        except TokenError:
            return False

    return is_served
