"""The server tests of this folder talk to, where they need all of it."""

from __future__ import annotations

from tests.server.conftest import server, settings, short_way

__all__ = ["server", "settings", "short_way"]
