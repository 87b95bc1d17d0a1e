"""The token of a `Follower`: a text, or a function that returns one. It reaches no log and no exception's text."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from avicenna_live.errors import NoToken
from avicenna_live.shell import settled

TokenFunction = Callable[[], str | Awaitable[str]]

LOG: Final = logging.getLogger("avicenna_live")

TOKEN_CHARACTERS_MAX: Final = 7 * 1024
"""Longest token the server takes (PROTOCOL section 4)."""

TOKEN: Final = re.compile(r"[\x21-\x7e]+")


class Credentials:
    """Where tokens come from."""

    def __init__(self, token: str | TokenFunction | None) -> None:
        """Take a text, a function or nothing. Raises `ValueError` for a text that is no token."""
        self._function = token if callable(token) else None
        self._text = None if token is None or callable(token) else checked(token)
        self.version = 0
        """One more each time that the text is replaced."""

    @property
    def renewable(self) -> bool:
        """Whether a function is asked for each token."""
        return self._function is not None

    def replace(self, text: str) -> None:
        """Use another text from now on. Raises `ValueError`."""
        if self._function is not None:
            raise ValueError("this Follower has a token function: it is asked for each token, and use_token has no use")
        self._text = checked(text)
        self.version += 1

    async def token(self) -> str | None:
        """The token of the next attempt, `None`: this is nobody. Raises `NoToken`."""
        if self._function is None:
            return self._text
        try:
            return checked(await settled(self._function()))
        except Exception as error:  # noqa: BLE001 - whatever the app's function raises, it is asked again
            # The text of the exception may hold a secret.
            LOG.warning("the token function gave no token: %s", type(error).__name__)
            raise NoToken from None


def checked(token: object) -> str:
    """A token that can travel in a header. Raises `ValueError`."""
    if not isinstance(token, str):
        raise ValueError(f"token must be a text, not {type(token).__name__}")
    if not TOKEN.fullmatch(token) or len(token) > TOKEN_CHARACTERS_MAX:
        raise ValueError(f"token must be 1-{TOKEN_CHARACTERS_MAX} printable ASCII characters without a space")
    return token
