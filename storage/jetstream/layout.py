"""Where everything lies: the streams of an installation, their settings, and the subjects in them. Pure.

An installation has a name, and three streams:

    NAME          NAME.d.<diagnosis>          an entry of its log: an event or a mark       the newest 100
                  NAME.k.<diagnosis>.<key>    an idempotency key                            25 hours
                  NAME.r.<diagnosis>          its registration, or that it was deleted      the newest
                  NAME.a.<n>                  act n, with its audit row                     as long as rows are kept
                  NAME.w.<n>                  act n as an erasure has rewritten it          as above
                  NAME.n                      the number of the last act                    the newest
                  NAME.v.<subject or token>   a revocation                                  the newest
                  NAME.m                      the version of this layout, the generation    the newest
    NAME_CURSORS  NAMEc.<diagnosis>.<sub>.<device>   a cursor                               the newest
    NAME_ACCESS   NAMEt.row                          a row of the access trail
                  NAMEt.who.<sub>.<subscriber>       the name that rows mean                the newest

What must change together is in one stream, as a batch of messages is stored all or none within one stream alone. Names
of people, of devices and of keys stand in subjects as digests. A live copy of each message of the first stream goes to
`NAMElive.` and what follows, once a majority has it. What processes tell each other is at `NAMEb.`, in no stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from storage.changes import DIGEST_DIGITS
from storage.errors import Unstorable
from storage.records import IDEMPOTENCY_KEY_SECONDS, OUTBOX_EVENTS_MAX, SubscriberId

VERSION: Final = 1
"""Of this layout."""

KEY_TTL_SECONDS: Final = IDEMPOTENCY_KEY_SECONDS + 3600
"""When the engine drops a key by itself. Reason: its end is judged by our clock, which may differ from the engine's."""

DUPLICATES_SECONDS: Final = 120
"""A message with the same id is stored once within this time. Reason: longer than anybody repeats it."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Layout:
    """The streams and subjects of the installation of this name."""

    def __init__(self, name: str) -> None:
        """The layout for 1-32 characters of `A-Z a-z 0-9 _ -`."""
        if not _NAME.fullmatch(name):
            raise ValueError("the name of an installation has 1-32 characters of A-Z a-z 0-9 _ -")
        self.name = name
        self.main, self.cursors, self.accesses = name, f"{name}_CURSORS", f"{name}_ACCESS"
        self.number = f"{name}.n"
        self.version = f"{name}.m"
        self.all_acts = f"{name}.a.*"
        self.all_rewritten = f"{name}.w.*"
        self.all_keys = f"{name}.k.*.*"
        self.all_registrations = f"{name}.r.*"
        self.all_revocations = f"{name}.v.*"
        self.all_cursors = f"{name}c.>"
        self.row = f"{name}t.row"
        self.beat, self.leaving = f"{name}b.beat", f"{name}b.leaving"
        self.live_acts = f"{name}live.a.*"

    def log(self, diagnosis_id: str) -> str:
        """The entries of a diagnosis."""
        return f"{self.name}.d.{_id(diagnosis_id)}"

    def live_log(self, diagnosis_id: str) -> str:
        """Live copies of its entries."""
        return f"{self.name}live.d.{_id(diagnosis_id)}"

    def key(self, diagnosis_id: str, key: str) -> str:
        """One of its idempotency keys."""
        return f"{self.name}.k.{_id(diagnosis_id)}.{digest(key)}"

    def keys(self, diagnosis_id: str) -> str:
        """All of them."""
        return f"{self.name}.k.{_id(diagnosis_id)}.*"

    def registration(self, diagnosis_id: str) -> str:
        """Who owns it and may follow it."""
        return f"{self.name}.r.{_id(diagnosis_id)}"

    def act(self, number: int) -> str:
        """An act."""
        return f"{self.name}.a.{number}"

    def rewritten(self, number: int) -> str:
        """An act without the name of an erased person."""
        return f"{self.name}.w.{number}"

    def revocation(self, sub: str | None, token_id: str | None) -> str:
        """The revocation of a subject's tokens, or of one token."""
        return f"{self.name}.v.{digest(sub, token_id)}"

    def cursor(self, diagnosis_id: str, subscriber: SubscriberId) -> str:
        """The cursor of a subscriber."""
        return f"{self.name}c.{_id(diagnosis_id)}.{digest(subscriber.sub)}.{digest(subscriber.device)}"

    def cursors_of(self, diagnosis_id: str) -> str:
        """All cursors of a diagnosis."""
        return f"{self.name}c.{_id(diagnosis_id)}.>"

    def cursors_by(self, sub: str | None) -> str:
        """All cursors of a person."""
        return f"{self.name}c.*.{digest(sub)}.*"

    def who(self, subscriber: SubscriberId) -> str:
        """The name of a subscriber in the access trail."""
        return f"{self.name}t.who.{digest(subscriber.sub)}.{digest(subscriber.sub, subscriber.device)}"

    def who_by(self, sub: str | None) -> str:
        """All such names of a person."""
        return f"{self.name}t.who.{digest(sub)}.*"

    def topic(self, topic: str) -> str:
        """What processes tell each other about a topic; no stream has it."""
        return f"{self.name}b.t.{digest(topic)}"

    def question(self, topic: str) -> str:
        """What processes ask each other about it."""
        return f"{self.name}b.q.{digest(topic)}"

    def answers_to(self, node: str, number: str) -> str:
        """The answers to a question of a process."""
        return f"{self.name}b.r.{digest(node)}.{number}"

    def streams(self, replicas: int) -> Sequence[Mapping[str, Any]]:
        """The settings of the streams, by which they are made and judged."""
        common = {
            "storage": "file",
            "num_replicas": replicas,
            "retention": "limits",
            "discard": "old",
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "duplicate_window": DUPLICATES_SECONDS * 10**9,
            "allow_atomic": True,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
        }
        live = {"src": f"{self.name}.>", "dest": f"{self.name}live.>"}
        main = {"name": self.main, "subjects": [f"{self.name}.>"], "max_msgs_per_subject": OUTBOX_EVENTS_MAX}
        cursors = {"name": self.cursors, "subjects": [f"{self.name}c.>"], "max_msgs_per_subject": 1}
        accesses = {"name": self.accesses, "subjects": [f"{self.name}t.>"], "max_msgs_per_subject": -1}
        return [{**common, **main, "republish": live}, {**common, **cursors}, {**common, **accesses}]


def digest(*parts: str | None) -> str:
    """Tells a name of these parts from others without being it; a part that is `None` differs from any text."""
    text = "\0".join("" if part is None else f"={part}" for part in parts)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]


def installation(generation: str) -> bytes:
    """What is stored of an installation as a whole.

    Args:
        generation: names what a part of all epochs is; empty: it was never renewed.
    """
    return f"{VERSION} {generation}".rstrip().encode()


def version_and_generation(data: bytes) -> tuple[str, str]:
    """The two, as they are stored."""
    version, _, generation = data.decode(errors="replace").partition(" ")
    return version, generation


def number_of(subject: str) -> int:
    """Of an act."""
    return int(subject.rpartition(".")[2])


def differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[str]:
    """In what a stream differs from what it should be, in words."""
    return [
        f"{name} is {shown!r}, not {value!r}"
        for name, value in wanted.items()
        if (shown := found.get(name, [] if isinstance(value, list) else False if value is False else None)) != value
        and not (not shown and not value)
        and not (isinstance(value, dict) and isinstance(shown, dict) and value.items() <= shown.items())
    ]


def _id(diagnosis_id: str) -> str:
    if not _ID.fullmatch(diagnosis_id):
        raise Unstorable("the id of a diagnosis has 1-64 characters of A-Z a-z 0-9 _ -")
    return diagnosis_id
