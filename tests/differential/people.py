"""Who asks: tokens that are the same in every run, made with a key of the tests."""

from __future__ import annotations

from typing import Final

from tests.differential.clock import BEGIN
from tests.logbook import LOGBOOK
from web.identity.tokens import issue

KEY: Final = b"a key of the differential tests!"
LOGBOOK.note_key(KEY)


def token(sub: str, scope: str = "", ttl_seconds: int = 100_000) -> str:
    """A token as of the begin of the standing clock."""
    made = issue(KEY, sub=sub, scope=scope, ttl_seconds=ttl_seconds, now=BEGIN, token_id=f"{sub}-1")
    LOGBOOK.note(made, "a token")
    return made


def bearer(sub: str, scope: str = "") -> str:
    """The value of `Authorization` of such a token."""
    return f"Bearer {token(sub, scope)}"


TOKENS: Final = {
    "@service@": token("service", "broadcast"),
    "@doctor@": token("doctor-1"),
    "@patient@": token("patient-1"),
    "@monitor@": token("monitor", "monitor"),
    "@registrar@": token("registrar", "register"),
    "@operator@": token("op", "operate"),
    "@expired@": token("doctor-1", ttl_seconds=-100),
    "@other-key@": issue(b"x" * 32, sub="doctor-1", scope="", ttl_seconds=100_000, now=BEGIN, token_id="o-1"),
}
"""By the names that the tables of cases use."""
