"""Everything the servers of a test run wrote, in one place, and what must not be in it.

The harness notes every secret it makes: tokens, keys, and a marker that it puts into payloads. When the run is over,
`tests/conftest.py` looks for each of them in what was written, and fails the run if one leaked (promise 14).
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable
from typing import Final

from web.server.logs import Formatter

PAYLOAD_MARKER: Final = "a-payload-is-never-logged"
"""The harness puts this into every payload it does not need to be something else."""

CLIENTS: Final = ("httpx", "httpcore", "trio-websocket", "hypothesis", "urllib3")
"""Loggers of the clients in this process: they may say what they send."""

SECRET_CHARACTERS_MIN: Final = 6
"""Shorter ones would be found by chance."""


class Logbook:
    """What was written, and the secrets of this run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        """In the pieces they came in."""
        self._secrets: dict[str, str] = {PAYLOAD_MARKER: "a payload"}

    def write(self, text: str | bytes) -> None:
        """Keep what a server wrote."""
        self.lines.append(text if isinstance(text, str) else text.decode(errors="replace"))

    def note(self, secret: str, what: str) -> None:
        """Remember something that must not be written."""
        if len(secret) >= SECRET_CHARACTERS_MIN:
            self._secrets[secret] = what

    def note_key(self, key: bytes) -> None:
        """Remember a signing key, in the spellings somebody might log."""
        for spelling in (key.hex(), base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode(), repr(key)):
            self.note(spelling.rstrip("="), "a key")

    def leaks(self) -> list[str]:
        """The lines that hold a secret, each with what leaked."""
        return found_in(self.lines, self._secrets)

    @property
    def characters(self) -> int:
        """How much was written."""
        return sum(map(len, self.lines))


def found_in(written: Iterable[str], secrets: dict[str, str]) -> list[str]:
    """The lines of `written` that hold one of `secrets`, each with what it is."""
    # Joined without a separator: a process writes in pieces that end anywhere.
    everything = "".join(written)
    return [
        f"{what} in: {_line_around(everything, everything.index(secret))}"
        for secret, what in secrets.items()
        if secret in everything
    ]


def _line_around(text: str, at: int) -> str:
    end = text.find("\n", at)
    return text[text.rfind("\n", 0, at) + 1 : end if end != -1 else None]


class LogbookHandler(logging.Handler):
    """Writes what servers in this process log, in the format they write it in, into a logbook."""

    def __init__(self, logbook: Logbook) -> None:
        super().__init__()
        self._logbook = logbook
        self.setFormatter(Formatter(json=False))

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] not in CLIENTS

    def emit(self, record: logging.LogRecord) -> None:
        self._logbook.write(self.format(record) + "\n")


LOGBOOK: Final = Logbook()
"""The logbook of this run. The one object that tests share: whatever any of them wrote must hold no secret of any."""
