"""Some subscribers, as values: whose connections end, whose cursors go. Pure.

A value can travel to another process, where a function cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actors.roster import Subscriber
from storage.changes import digest_of
from storage.records import SubscriberId


@dataclass(frozen=True, slots=True)
class Everybody:
    """All of them."""

    def names(self, subscriber_id: SubscriberId) -> bool:
        return True

    def picks(self, subscriber: Subscriber) -> bool:
        return True


EVERYBODY: Final = Everybody()


@dataclass(frozen=True, slots=True)
class OfUser:
    """Those of one user, or one device of it."""

    sub: str | None
    """`None`: the anonymous ones."""
    device: str | None = None
    """`None`: whatever their device."""

    def names(self, subscriber_id: SubscriberId) -> bool:
        return subscriber_id.sub == self.sub and self.device in (None, subscriber_id.device)

    def picks(self, subscriber: Subscriber) -> bool:
        return self.names(subscriber.id)


@dataclass(frozen=True, slots=True)
class OfErased:
    """Those of a user whose name is not told (`storage.changes.SubjectErased`)."""

    digest: str

    def names(self, subscriber_id: SubscriberId) -> bool:
        return subscriber_id.sub is not None and digest_of(subscriber_id.sub) == self.digest

    def picks(self, subscriber: Subscriber) -> bool:
        return self.names(subscriber.id)
