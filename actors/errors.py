"""What an actor answers when it cannot do what it was asked.

ActorError
+-- MailboxFull      too many publishes wait: certainly not stored, try again
+-- Quarantined      it crashed too often: try again after the cool-off
+-- Crashed          this message crashed it twice: unknown, repeat with the same key
+-- Draining         the server is stopping: try again elsewhere or later
`-- DevicesExhausted all devices of this user are connected: the caller's
"""

from __future__ import annotations


class ActorError(Exception):
    """Any answer of this room that is not what was asked for."""


class MailboxFull(ActorError):
    """The mailbox holds as many publishes as it may; nothing was stored."""


class Quarantined(ActorError):
    """The actor crashed too often and rests.

    Args:
        retry_after_seconds: when it is tried again by itself, at the latest.
    """

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the diagnosis is quarantined for up to {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class Crashed(ActorError):
    """The actor crashed twice over this message; whether it was stored is unknown."""


class Draining(ActorError):
    """The server is stopping and takes nothing new."""


class DevicesExhausted(ActorError):
    """A further device would need one to be forgotten, but all of them are connected."""
