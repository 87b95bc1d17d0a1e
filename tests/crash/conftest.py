"""What these tests share with those of the store."""

from __future__ import annotations

from tests.storage.conftest import clock

__all__ = ["clock"]
