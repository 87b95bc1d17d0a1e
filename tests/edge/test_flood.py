"""When a client sends too much: arithmetic."""

from __future__ import annotations

import pytest

from web.websocket.flood import FLOOD_SECONDS, FRAMES_BURST_MAX, Allowance, Cost

LOOK_SECONDS = 0.1


class Client:
    """Sends steadily, is read while it may be, some frames at once, and is looked at ten times a second."""

    def __init__(
        self,
        per_second: float,
        cost: Cost = Cost.FRAME,
        burst: int = 0,
        *,
        frames_at_once: int = 32,
        read_every_seconds: float = 0.01,
    ) -> None:
        self.allowance = Allowance(20, 0.0)
        for _ in range(burst):
            self.allowance.take(Cost.FRAME, 0.0)
        self.per_second = per_second
        self.cost = cost
        self.frames_at_once = frames_at_once
        self.read_every_seconds = read_every_seconds
        self.read = 0

    def closed_after(self, seconds: float) -> float | None:
        """When it is closed, `None`: not within so many seconds."""
        now, read_at, looked_at = 0.0, 0.0, 0.0
        while now < seconds:
            now += 0.01
            if now >= read_at + self.read_every_seconds and not self.allowance.is_empty:
                read_at = now
                for _ in range(min(self.frames_at_once, self.waiting(now))):
                    self.allowance.take(self.cost, now)
                    self.read += 1
            if now >= looked_at + LOOK_SECONDS:
                looked_at = now
                if self.allowance.look(now, is_waiting=self.waiting(now) > 0):
                    return now
        return None

    def waiting(self, now: float) -> int:
        """Frames that were sent and not read."""
        return int(self.per_second * now) - self.read


@pytest.mark.parametrize("per_second", [30, 100, 5000])
def test_a_flood_is_closed_five_seconds_after_its_allowance_was_used_up(per_second: float) -> None:
    client = Client(per_second)
    at = client.closed_after(60)
    assert at is not None
    used_up_at = FRAMES_BURST_MAX / (per_second - 21)
    assert used_up_at + FLOOD_SECONDS - 1 < at < used_up_at + FLOOD_SECONDS + 2
    assert client.read <= FRAMES_BURST_MAX + 21 * at + 32


@pytest.mark.parametrize("per_second", [1, 19, 20])
@pytest.mark.parametrize("burst", [0, FRAMES_BURST_MAX])
def test_a_busy_client_is_not(per_second: float, burst: int) -> None:
    assert Client(per_second, burst=burst).closed_after(600) is None


def test_bursts_with_pauses_are_not() -> None:
    allowance = Allowance(20, 0.0)
    for burst in range(50):
        for frame in range(FRAMES_BURST_MAX):
            allowance.take(Cost.FRAME, burst * 6.0 + frame / 1000)
        for look in range(1, 60):
            assert not allowance.look(burst * 6.0 + look / 10, is_waiting=False)


def test_what_confirms_something_new_is_free() -> None:
    assert Client(5000, Cost.NOTHING).closed_after(60) is None


def test_a_hundred_repeats_a_second_are_free_and_more_take_from_the_allowance() -> None:
    assert Client(100, Cost.REPEAT).closed_after(600) is None
    assert Client(119, Cost.REPEAT).closed_after(600) is None
    client = Client(5000, Cost.REPEAT)
    at = client.closed_after(60)
    assert at is not None
    assert client.read <= 2 * FRAMES_BURST_MAX + 126 * at + 32


@pytest.mark.parametrize("read_every_seconds", [0.01, 0.02, 0.03])
def test_a_flood_of_repeats_is_closed_though_few_are_read_between_two_looks(read_every_seconds: float) -> None:
    client = Client(5000, Cost.REPEAT, frames_at_once=7, read_every_seconds=read_every_seconds)
    at = client.closed_after(60)
    used_up_at = 2 * FRAMES_BURST_MAX / (7 / read_every_seconds - 126)
    assert at is not None
    assert used_up_at + FLOOD_SECONDS - 1 < at < used_up_at + FLOOD_SECONDS + 2


@pytest.mark.parametrize("per_second", [1, 20])
@pytest.mark.parametrize("read_every_seconds", [0.3, 1.0])
def test_a_busy_client_is_not_closed_by_a_server_that_reads_it_late(
    per_second: float, read_every_seconds: float
) -> None:
    late = Client(per_second, burst=FRAMES_BURST_MAX, frames_at_once=7, read_every_seconds=read_every_seconds)
    assert late.closed_after(60) is None


def test_a_burst_beyond_the_allowance_is_read_later() -> None:
    allowance = Allowance(20, 0.0)
    for _ in range(FRAMES_BURST_MAX + 1):
        assert not allowance.is_empty
        allowance.take(Cost.FRAME, 0.0)
    assert allowance.is_empty
    assert not allowance.look(0.04, is_waiting=True)
    assert allowance.is_empty
    assert not allowance.look(0.1, is_waiting=True)
    assert not allowance.is_empty
