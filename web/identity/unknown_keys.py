"""Keys that tokens name and this server lacks, and whether their source was asked for them since. Pure.

A token that names an unknown key may be genuine: its issuer may have made the key a moment ago. It is refused for
good only after its source was asked for the key, and did not have it. Fetches are counted, so that no clock decides
which of two things came first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

UNKNOWN_KEYS_MAX: Final = 1000
"""Unknown keys that are remembered, the ones named last. Beyond: one that is named again counts as new. Reason: whoever
makes up names must not fill memory."""

KeyName = tuple[str, str | None]
"""Algorithm and `kid` in the header of a token."""


class UnknownKeys:
    """The unknown keys of one source of keys."""

    def __init__(self) -> None:
        self._fetches_begun = 0
        self._succeeded = 0
        """The number of the last fetch that succeeded, counted from 1; 0: none has."""
        self._named: OrderedDict[KeyName, int] = OrderedDict()
        """How many fetches had begun when each key was first named."""

    def name(self, key: KeyName) -> None:
        """A token names this key, which nobody has."""
        self._named[key] = self._named.pop(key, self._fetches_begun)
        if len(self._named) > UNKNOWN_KEYS_MAX:
            self._named.popitem(last=False)

    def is_absent(self, key: KeyName) -> bool:
        """Whether the source was asked after a token first named this key, and answered: it does not have the key."""
        return self._named.get(key, self._fetches_begun) < self._succeeded

    def fetch_begins(self) -> int:
        """The number of the fetch that begins now."""
        self._fetches_begun += 1
        return self._fetches_begun

    def fetch_succeeded(self, number: int, found: Iterable[KeyName]) -> None:
        """The fetch with this number brought these keys: they are not unknown any more."""
        self._succeeded = number
        for key in found:
            self._named.pop(key, None)
