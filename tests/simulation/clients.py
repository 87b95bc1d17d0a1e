"""Simulated people at the far end of the network: who follows, and what they check of what they are told."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any, Final
from urllib.parse import urlencode

import trio

from tests.simulation.network import CLOSE, HANDSHAKE, PING, TEXT, Frames, Link, Messages, close, pong, request, text
from tests.simulation.truth import Truth, Violation

EVENT: Final = "feedback_update"


class Subscriber:
    """What the client of one device keeps while it is not connected, and what it is promised."""

    def __init__(self) -> None:
        self.is_unsure = False
        """An operator may have had it forgotten, or may not."""
        self.position: tuple[str, int] | None = None
        """The epoch and the number up to which it has everything."""
        self.acknowledged: dict[str, int] = defaultdict(int)
        """The highest number it has ever acknowledged, in each epoch."""
        self.stored: dict[str, int] = {}
        """The highest cursor it was told to be stored, in each epoch."""
        self.known: set[str] = set()
        """Epochs in which it was told `live`: its cursor is stored since."""
        self.lies: dict[str, set[int]] = defaultdict(set)
        """What it has acknowledged without having it, in each epoch: it may have been on its way."""
        self.unanswered: dict[int, int] = {}
        """What it may have acknowledged by asking for connections that told it nothing."""

    def is_forgotten_by(self, status: int | None) -> None:
        """An operator has had it forgotten, or has tried to."""
        if status == 200:
            self.known.clear()
            self.stored.clear()
        elif status not in (401, 403, 404):
            self.is_unsure = True


class Follower:
    """One connection of a client that checks every frame."""

    def __init__(
        self,
        number: int,
        link: Link,
        who: tuple[str, str, str | None],
        subscriber: Subscriber,
        truth: Truth,
        *,
        peeks: bool,
    ) -> None:
        """A connection of `who`: diagnosis, subject and device."""
        self.number, self.link, self.subscriber, self.truth = number, link, subscriber, truth
        self.diagnosis_id, self.sub, self.device = who
        self.peeks = peeks
        self.frames = Frames()
        self.epoch: str | None = None
        self.seq = 0
        """Everything up to here was received, or named in a gap."""
        self.is_live = False
        self.is_forgotten = False
        """An operator has had its subscriber forgotten since it asked."""
        self.admitted_at = inf
        self.ending: tuple[int, str] | None = None
        """How the server has ended it."""
        self.refusal: str | None = None
        self.answers_pings = True
        self.asked_to_end = False
        """The client itself has, or its network was meddled with."""
        self.sent_after: int | None = None
        self.sent_epoch: str | None = None
        self.is_lying = False
        self.answers_close = False
        """It has answered a Close that asks it to come back: a receipt of all that it got."""
        self.acks = "transport"
        self._known: set[str] = set()
        self._stored: dict[str, int] = {}
        self._unanswered: list[int] = []
        """Acknowledgements that were not answered yet."""
        self.gaps = 0
        self.process = 0
        self.expires_at = inf
        """When its token ends, on the wall clock."""
        self.renews = True
        """It sends a newer token before the one it has ends."""
        self.newer: Callable[[], tuple[str, float]] | None = None
        """Makes a newer token, and says when that ends."""
        self._renewals: list[float | None] = []
        """When the tokens end that it has sent and that were not judged yet; `None`: one that nobody may take."""
        self.is_barred = False
        """Its token was revoked, and the answer to that has come, before it asked."""
        self.seen: Counter[str] = Counter()
        self.hears: Callable[[str], object] = lambda what: None
        link.hears = self._hear

    def ask(self, token: str, lots: Random, *, resumes: str, acks: str) -> None:
        """Ask for a connection.

        Args:
            resumes: `position`: after what it has; `cursor`: as the server knows it; `lie`: after something else.
        """
        self.acks = acks
        query = self._query(lots, resumes)
        query |= {} if self.peeks else {"ack": acks}
        self.link.send(request("GET", f"/ws/{self.diagnosis_id}?{urlencode(query)}", token, None, HANDSHAKE))

    def _query(self, lots: Random, resumes: str) -> dict[str, object]:
        # What it knows by now: the answers of two connections may overtake each other.
        self._known, self._stored = set(self.subscriber.known), dict(self.subscriber.stored)
        query: dict[str, object] = {}
        if self.device is not None and not self.peeks:
            query["device"] = self.device
        if self.peeks:
            query["peek"] = 1
        if resumes == "position" and self.subscriber.position is not None:
            query["epoch"], query["after"] = self.subscriber.position
            self.sent_epoch, self.sent_after = self.subscriber.position
        elif resumes == "lie":
            self.is_lying = True
            query["after"] = lots.choice((0, 1, 7, 100, 10_000, 10**14))
            if lots.random() < 0.3:
                query["epoch"] = self.sent_epoch = "epoch-of-nobody"
            self.sent_after = int(query["after"])  # type: ignore[call-overload]
        if not self.peeks:
            self.subscriber.unanswered[self.number] = self.sent_after or 0
        return query

    @property
    def is_open(self) -> bool:
        """Whether it follows."""
        return self.epoch is not None and self.ending is None and not self.link.is_over

    def acknowledge(self, seq: int) -> None:
        """Say that everything up to here is applied."""
        if self.epoch is not None:
            if seq <= self.seq:
                self.subscriber.acknowledged[self.epoch] = max(self.subscriber.acknowledged[self.epoch], seq)
            else:
                self.subscriber.lies[self.epoch].add(seq)
            self._unanswered.append(seq if seq <= self.seq else 0)
            self.link.send(text({"type": "ack", "seq": seq}))

    def renew(self, *, replays: str | None = None) -> None:
        """Send a newer token.

        Args:
            replays: one that nobody may take.
        """
        assert self.newer is not None, "it was given a token"
        token, expires_at = (replays, None) if replays is not None else self.newer()
        self._renewals.append(expires_at)
        self.link.send(text({"type": "auth", "token": token}))

    def leave(self, code: int = 1000) -> None:
        """Say goodbye."""
        self.asked_to_end = True
        self.link.send(close(code.to_bytes(2, "big")))

    def _hear(self, data: bytes) -> None:
        for opcode, payload in self.frames.hear(data):
            if opcode == TEXT:
                self._take(json.loads(payload))
            elif opcode == PING:
                self._pinged(payload)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                if self.ending is None:
                    self.ending = code, payload[2:].decode()
                    self.hears(f"close {code} {self.ending[1]}")
                if code == 1012 and self.acks == "transport" and self.epoch is not None and not self.peeks:
                    acknowledged = self.subscriber.acknowledged
                    acknowledged[self.epoch] = max(acknowledged[self.epoch], self.seq)
                    self.answers_close = True
                self.link.send(close(payload[:2]))

    def _pinged(self, payload: bytes) -> None:
        if not self.answers_pings:
            return
        if payload and self.epoch is not None and self.acks == "transport" and not self.peeks:
            seq = int(payload)
            if seq > self.seq:
                raise Violation(f"connection {self.number}: a Ping names {seq}, and {self.seq} was written")
            self.subscriber.acknowledged[self.epoch] = max(self.subscriber.acknowledged[self.epoch], seq)
        self.link.send(pong(payload))

    def _take(self, frame: dict[str, Any]) -> None:
        data = frame["data"]
        match frame["type"]:
            case "connect":
                self._connected(data)
            case "gap":
                self._numbered(data["from"], data["to"])
                self.gaps += 1
                self.hears(f"gap {data['from']}-{data['to']} {data['reason']}")
            case "live":
                if self.is_live or data["seq"] != self.seq:
                    raise Violation(f"connection {self.number}: live at {data['seq']}, and {self.seq} was written")
                self.is_live = True
                if not self.peeks and not self.is_forgotten:
                    assert self.epoch is not None, "connect comes first"
                    self.subscriber.known.add(self.epoch)
                self.hears(f"live {data['seq']}")
            case "acked":
                assert self.epoch is not None, "connect comes first"
                if not (self.is_forgotten or self.subscriber.is_unsure):
                    # It answers one acknowledgement at least. One of what is stored already overtakes what waits.
                    answered = max((one for one in self._unanswered if one <= data["seq"]), default=None)
                    if answered is not None:
                        self._unanswered.remove(answered)
                    elif self._unanswered:
                        raise Violation(
                            f"connection {self.number}: {data['seq']} is stored, and acknowledged {self._unanswered}"
                        )
                    stored = self.subscriber.stored.get(self.epoch, 0)
                    self.subscriber.stored[self.epoch] = max(stored, data["seq"])
                self.hears(f"acked {data['seq']}")
            case "error":
                self.refusal = data["code"]
                self.hears(f"error {data['code']}")
                if self._renewals and data["code"] in ("invalid_token", "access_denied", "quarantined"):
                    self._renewals.pop(0)
                elif self._renewals and data["code"] == "rate_limited":
                    self._renewals.pop()  # the one before it is being judged
            case "auth_expiring":
                self.hears("auth_expiring")
                if self.renews and not self.asked_to_end:
                    self.renew()
            case "auth_ok":
                self.hears("auth_ok")
                self.seen["renewal"] += 1
                if not self._renewals or (expires_at := self._renewals.pop(0)) is None:
                    raise Violation(f"connection {self.number}: a token was taken that nobody may take")
                self.expires_at = expires_at
            case "bye":
                self.hears(f"bye {data['code']}")
            case kind if kind == EVENT:
                self._numbered(frame["seq"], frame["seq"])
                assert self.epoch is not None, "connect comes first"
                where = f"on connection {self.number}"
                self.truth.event(self.diagnosis_id, self.epoch, frame["seq"], data["feedback_id"], where=where)
                self.truth.served(self.number, self.sub, self.diagnosis_id, self.epoch, frame["seq"])
                self.hears(f"event {frame['seq']}")
            case "pong" | "heartbeat":
                self.hears(frame["type"])
            case kind:
                raise Violation(f"connection {self.number}: a frame of the unknown type {kind}")

    def _numbered(self, first: int, last: int) -> None:
        """G3 and G4: the next numbers are due."""
        if first != self.seq + 1 or last < first:
            raise Violation(
                f"G4: connection {self.number} of {self.sub} to {self.diagnosis_id} got {first} to {last} "
                f"behind {self.seq}"
            )
        self.seq = last
        if not self.peeks:
            assert self.epoch is not None, "connect comes first"
            self.subscriber.position = self.epoch, last

    def _connected(self, data: dict[str, Any]) -> None:
        if self.epoch is not None:
            raise Violation(f"connection {self.number}: connect comes twice")
        if self.is_barred:
            raise Violation(f"G16: connection {self.number} of {self.sub} was let in with a token that was revoked")
        self.admitted_at = trio.current_time()
        self.epoch, resume = data["epoch"], data["resume"]
        epoch: str = data["epoch"]
        self.seq = data["head"] - data["queued"] - data["missed"]
        self.hears(f"connect {epoch} {resume} {self.seq} {data['head']}")
        self.truth.begins_in(epoch, self.number, f"connection {self.number}")
        if resume == "reset":
            self.seen["reset"] += 1
            if self.sent_epoch == epoch and not (self.is_lying or self.subscriber.is_unsure):
                raise Violation(
                    f"connection {self.number} was at {self.sent_after} of {epoch}, and is told to begin anew"
                )
        elif self.sent_epoch not in (None, epoch):
            raise Violation(f"connection {self.number} knows {self.sent_epoch}, and goes on in {epoch}: {resume}")
        if self.peeks:
            return
        known = self.subscriber
        known.unanswered.pop(self.number, None)
        if self.sent_after is None and resume in ("exact", "partial"):
            most = max(known.acknowledged[epoch], data["floor"] if known.unanswered else 0, *known.unanswered.values())
            most = max([most, *(one for one in known.lies[epoch] if one <= data["head"])])
            if self.seq > most:
                raise Violation(
                    f"connection {self.number} of {self.sub} {self.device} to {self.diagnosis_id} "
                    f"begins at {self.seq}, and {known.acknowledged[epoch]} was acknowledged"
                )
            if self.seq < self._stored.get(epoch, 0) and not (self.is_forgotten or known.is_unsure):
                raise Violation(f"connection {self.number} begins at {self.seq}, and {self._stored[epoch]} was stored")
        if (
            self.sent_after is None
            and resume == "fresh"
            and epoch in self._known
            and not (self.is_forgotten or known.is_unsure)
        ):
            raise Violation(f"{self.sub} {self.device} was known in {epoch}, and is not any more")
        if self.sent_after is not None and resume in ("exact", "partial"):
            if self.seq != self.sent_after:
                raise Violation(f"connection {self.number} begins at {self.seq}, and wanted {self.sent_after}")
            known.acknowledged[epoch] = max(known.acknowledged[epoch], self.sent_after)
        if resume == "fresh":
            # It begins with the oldest, and what is not retained is acknowledged by its start.
            known.acknowledged[epoch] = max(known.acknowledged[epoch], self.seq)
        if resume == "reset":
            known.acknowledged[epoch] = max(known.acknowledged[epoch], self.seq)


class StreamFollower(Follower):
    """The same behind an event stream, which takes nothing from the client but where it begins."""

    def ask(self, token: str, lots: Random, *, resumes: str, acks: str) -> None:
        self.acks, self.renews = "app", False
        self._messages = Messages()
        query = self._query(lots, resumes)
        headers = {}
        if resumes == "position" and self.sent_epoch is not None and lots.random() < 0.7:
            headers["Last-Event-ID"] = f"{query.pop('epoch')}.{query.pop('after')}"
        target = f"/diagnoses/{self.diagnosis_id}/events?{urlencode(query)}"
        self.link.send(request("GET", target, token, None, headers))

    def acknowledge(self, seq: int) -> None:
        """It acknowledges by where it continues."""

    def leave(self, code: int = 1000) -> None:
        self.asked_to_end = True
        self.link.cut()

    def _hear(self, data: bytes) -> None:
        for name, payload in self._messages.hear(data):
            frame = json.loads(payload)
            self._take(frame)
            if self.epoch is not None and name != f"{self.epoch}.{self.seq}".encode():
                raise Violation(f"connection {self.number}: a message at {self.seq} has the id {name!r}")
            if frame["type"] == "bye" and self.ending is None:
                self.ending = frame["data"]["code"], frame["data"]["reason"]
                self.hears(f"close {self.ending[0]} {self.ending[1]}")
                if self.number % 2:
                    self.link.cut()
        if (problem := self._messages.problem) is not None and self.ending is None:
            self.ending = problem["status"], problem["code"]
            self.hears(f"refused {self.ending[0]} {self.ending[1]}")
            self.link.cut()
