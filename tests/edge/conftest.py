"""The server tests of this folder talk to, where they need all of it."""

from __future__ import annotations

from tests.server.conftest import server, settings

__all__ = ["server", "settings"]
