"""Whatever happens, in whatever order: the consumer's items and gaps are together every number, and none comes twice.

The server here is a model: PROTOCOL sections 3-5 in a few lines, with an outbox of four events.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final
from urllib.parse import parse_qs, urlsplit

from hypothesis import given, settings
from hypothesis import strategies as st

from avicenna_live import Gap, Position, Reset
from avicenna_live.closing import REFUSED_TOKEN, Backoff
from avicenna_live.core import Core, Wishes
from avicenna_live.items import Event
from tests.frames import connect, feedback, gap, live

RETAINED: Final = 4


class Model:
    """The server."""

    def __init__(self) -> None:
        self.epoch, self.head, self.floor = 1, 0, 0
        self.cursor: Position | None = None
        self.written: int | None = None
        self.is_live = False
        self.hears = True
        """What the client sends on this connection arrives."""

    def publish(self) -> None:
        self.head += 1
        self.floor = max(self.floor, self.head - RETAINED)

    def restore(self) -> None:
        """An earlier copy: another epoch, fewer numbers."""
        self.epoch, self.head = self.epoch + 1, self.head // 2
        self.floor = min(self.floor, self.head)

    def connect(self, target: str) -> str:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        resume = "exact"
        if "after" in asked:
            begin = Position(asked["epoch"], int(asked["after"]))
        elif self.cursor is not None:
            begin = self.cursor
        else:
            begin = Position(str(self.epoch), self.head if asked.get("start") == "new" else self.floor)
            resume = "fresh"
        if begin.epoch != str(self.epoch) or begin.seq > self.head:
            resume, begin = "reset", Position(str(self.epoch), self.floor)
        elif begin.seq < self.floor:
            resume = "partial"
        if self.cursor is None or self.cursor.epoch != begin.epoch:
            self.cursor = begin
        elif resume != "reset":
            self.cursor = max(self.cursor, begin, key=lambda position: position.seq)
        self.written, self.is_live, self.hears = begin.seq, False, True
        missed = max(0, self.floor - begin.seq)
        return connect(
            resume=resume, head=self.head, floor=self.floor, missed=missed, epoch=str(self.epoch),
            queued=self.head - begin.seq - missed,
        )  # fmt: skip

    def next_frame(self) -> str | None:
        assert self.written is not None
        if self.written < self.floor:
            first, self.written = self.written + 1, self.floor
            return gap(first, self.written)
        if self.written < self.head:
            self.written += 1
            return feedback(self.written)
        if not self.is_live:
            self.is_live = True
            return live(self.head)
        return None

    def acknowledge(self, seq: int) -> None:
        assert self.written is not None
        assert seq <= self.written, "the server would refuse it"
        assert self.cursor is not None
        if self.hears:
            self.cursor = Position(str(self.epoch), max(self.cursor.seq, seq))


class Consumer:
    """An app that uses the client, and keeps account of what it has finished."""

    def __init__(self, server: Model, snapshots: bool) -> None:
        self.server = server
        self.snapshots = snapshots
        self.remembered: Position | None = None
        self.reached: Position | None = None
        self.follow()

    def follow(self) -> None:
        kept = self.remembered
        wishes = Wishes(42, device="d", snapshots=self.snapshots)
        if kept is not None:
            wishes = replace(wishes, after=kept.seq, epoch=kept.epoch)
        self.core = Core(wishes, lambda: 0.5, lambda _: None)
        self.connect()

    def connect(self) -> None:
        self.core.connecting()
        target = self.core.request("tkn").target
        self.core.opened()
        self.core.receive(self.server.connect(target))
        self.note()

    def note(self) -> None:
        self.remembered = self.core.position or self.remembered
        if self.reached is None:
            self.reached = self.remembered

    def deliver(self, count: int) -> None:
        for _ in range(count):
            if (text := self.server.next_frame()) is not None and not self.core.full:
                self.core.receive(text)

    def take(self) -> bool:
        """Finish what is in hand, and take the next step; whether there is one."""
        self.account()
        self.core.finish()
        self.note()
        if self.core.step is None:
            return False
        self.core.take()
        return True

    def account(self) -> None:
        """The step in hand continues what was finished before it."""
        step = self.core._in_hand
        if step is None:
            return
        match step.item:
            case Event(seq=seq, epoch=epoch) if self.reached is not None:
                assert Position(epoch, seq - 1) == self.reached
            case Gap(first, last) if self.reached is not None:
                assert first == self.reached.seq + 1 <= last
            case Reset(epoch):
                assert self.reached is None or epoch != self.reached.epoch
            case None if self.reached is not None and step.position is not None:
                assert step.position.epoch != self.reached.epoch or step.position.seq >= self.reached.seq
        self.reached = step.position or self.reached

    def acknowledge(self) -> None:
        if (text := self.core.ack()) is None:
            return
        seq = json.loads(text)["seq"]
        assert self.reached is not None
        assert (self.reached.epoch, self.reached.seq >= seq) == (str(self.server.epoch), True), "it is not finished"
        self.server.acknowledge(seq)

    def do(self, action: str) -> None:
        match action:
            case "publish":
                self.server.publish()
            case "deliver one" | "deliver some":
                self.deliver(1 if action == "deliver one" else 6)
            case "take":
                self.take()
            case "raise":
                # Both the step in hand and what was read ahead are gone.
                self.follow()
            case "cut":
                self.core.closed(1006, "")
                self.connect()
            case "cut unheard":
                # The server has taken the connection, and what it says is lost.
                self.core.closed(1006, "")
                self.core.connecting()
                self.server.connect(self.core.request("tkn").target)
                self.connect()
            case "acknowledge":
                self.acknowledge()
            case "lose what the client sends":
                self.server.hears = False
            case "restore":
                self.server.restore()
                self.core.closed(1012, "restart")
                self.connect()


OFTEN: Final = ["publish", "deliver one", "deliver some", "take", "take", "cut", "acknowledge"]
RARELY: Final = ["raise", "cut unheard", "lose what the client sends", "restore"]
ACTIONS: Final = st.sampled_from([*OFTEN * 3, *RARELY])


@settings(max_examples=400, deadline=None)
@given(actions=st.lists(ACTIONS, min_size=40, max_size=80), snapshots=st.booleans(), published=st.integers(0, 6))
def test_items_and_gaps_are_together_every_number_and_none_comes_twice(
    actions: list[str], snapshots: bool, published: int
) -> None:
    server = Model()
    for _ in range(published):
        server.publish()
    consumer = Consumer(server, snapshots)
    for action in actions:
        consumer.do(action)
    if not server.hears:
        consumer.do("cut")
    while server.written != server.head or not server.is_live:
        consumer.deliver(1)
    while consumer.take():
        pass
    consumer.acknowledge()

    assert consumer.reached == consumer.core.position == Position(str(server.epoch), server.head)
    assert server.cursor == consumer.reached


@given(
    first=st.floats(0.001, 60), longest=st.floats(60, 600), failures=st.integers(0, 10**6),
    random=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_wait_is_between_nothing_and_twice_the_one_before_and_the_longest(
    first: float, longest: float, failures: int, random: float
) -> None:
    seconds = Backoff(first, longest).seconds(failures, random)

    assert 0 <= seconds <= min(longest, first * 2.0 ** min(failures, 64))
    assert REFUSED_TOKEN.seconds(failures, random) <= 30
