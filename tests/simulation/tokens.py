"""Tokens that simulated people have. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Token(NamedTuple):
    """What somebody shows."""

    text: str
    issued_at: float
    """On the wall clock of the server; the token itself may say something else."""
    expires_at: float
    era: int
    """How often all rights of its subject were taken away before."""
    ahead: float
    """How far the wall clock was set forward."""
    key: bytes
    """It is signed with."""
