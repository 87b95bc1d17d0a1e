"""What `make chaos` is made of: ways that can be cut, and judges that notice what must not be."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tests.cluster.chaos import Result, chosen, table
from tests.cluster.clients import Follower, Ledger
from tests.cluster.faults import FAULTS
from tests.cluster.judging import judge_window
from tests.cluster.links import Links


@pytest.fixture
async def ledger() -> Ledger:
    """Of updates 11 to 14, which have numbers 1 to 4."""
    made = Ledger()
    made.begin()
    for seq in range(1, 5):
        made.acknowledge("d", seq, seq + 10)
    return made


WINDOW = [(seq, seq + 10) for seq in range(1, 5)]


async def test_what_is_as_it_was_acknowledged_is_right_and_so_is_what_nobody_was_told(ledger: Ledger) -> None:
    for window in (WINDOW, WINDOW[2:], [*WINDOW, (5, 99)]):
        assert judge_window(ledger, "d", window) == 0
    assert (ledger.wrong, ledger.doubled) == ([], 0)


@pytest.mark.parametrize(
    ("window", "lost", "doubled", "said"),
    [
        (WINDOW[:3], 1, 0, "has lost {4: 14}"),
        ([*WINDOW[:3], (4, 15)], 1, 0, "has lost {4: 14}"),
        ([*WINDOW, (5, 11)], 0, 1, "has updates [11] twice"),
        ([*WINDOW, (6, 16)], 0, 0, "numbers with holes"),
    ],
)
async def test_what_is_lost_doubled_or_missing_is_noticed(
    ledger: Ledger, window: list[tuple[int, int]], lost: int, doubled: int, said: str
) -> None:
    assert judge_window(ledger, "d", window) == lost
    assert ledger.doubled == doubled
    assert any(said in one for one in ledger.wrong), ledger.wrong


async def test_a_number_that_is_given_twice_is_noticed(ledger: Ledger) -> None:
    ledger.acknowledge("d", 4, 15)
    assert ledger.doubled == 1


async def test_a_slow_machine_is_no_standstill_and_a_standstill_is_said(
    autojump_clock: trio.testing.MockClock, ledger: Ledger
) -> None:
    async def acknowledge() -> None:
        for seq in range(5, 10):
            await trio.sleep(50)
            ledger.acknowledge("d", seq, seq + 10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(acknowledge)
        await ledger.more(5, 60)
    assert ledger.wrong == []
    await ledger.more(1, 60)
    assert ledger.wrong == ["nothing was acknowledged for 60 s"]


@pytest.mark.parametrize(
    ("frames", "missing", "doubled", "gaps"),
    [
        (("1", "2", "3"), 0, 0, 0),
        (("1", "3"), 1, 0, 0),
        (("1", "2", "2"), 0, 1, 0),
        (("1", "2-4", "5"), 0, 0, 3),
        (("1", "3-4", "5"), 1, 0, 2),
    ],
)
def test_a_follower_counts_what_it_missed_and_what_came_twice(
    frames: tuple[str, ...], missing: int, doubled: int, gaps: int
) -> None:
    wrong: list[str] = []
    follower = Follower([], b"k" * 32, "d", wrong.append)
    for frame in frames:
        first, _, last = frame.partition("-")
        if last:
            count = int(last) - int(first) + 1
            follower.take({"type": "gap", "data": {"from": int(first), "to": int(last), "count": count}})
        else:
            follower.take({"type": "feedback_update", "seq": int(first), "data": {"feedback_id": 1}})
    assert (follower.missing, follower.doubled, follower.gaps) == (missing, doubled, gaps)
    assert bool(wrong) == bool(missing or doubled)


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of who says what it is told."""
    async with trio.open_nursery() as nursery:

        async def answer(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        port: int = listeners[0].socket.getsockname()[1]
        yield port
        nursery.cancel_scope.cancel()


async def test_nothing_passes_a_way_that_is_cut_and_all_of_it_once_it_is_mended(echo: int) -> None:
    async with trio.open_nursery() as nursery:
        links = Links(nursery)
        await trio.to_thread.run_sync(links.lead_to, {"1": echo, "2": echo}, "12a")
        async with await trio.open_tcp_stream("127.0.0.1", links.port("a", "1")) as cut:
            other = await trio.open_tcp_stream("127.0.0.1", links.port("a", "2"))
            await said(cut, b"before")
            links.cut("1", "2a")
            await cut.send_all(b"meanwhile")
            late = await trio.open_tcp_stream("127.0.0.1", links.port("2", "1"))
            await late.send_all(b"late")
            await said(other, b"elsewhere")
            await trio.testing.wait_all_tasks_blocked()
            assert not any(map(has_data, (cut, late)))
            links.mend()
            assert await received(cut, 9) == b"meanwhile"
            assert await received(late, 4) == b"late"
            await other.aclose()
            await late.aclose()
        nursery.cancel_scope.cancel()


def has_data(stream: trio.SocketStream) -> bool:
    return bool(select.select([stream.socket.fileno()], [], [], 0)[0])


async def said(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    assert await received(stream, len(data)) == data


async def received(stream: trio.SocketStream, size: int) -> bytes:
    found = b""
    with trio.fail_after(10):
        while len(found) < size:
            found += await stream.receive_some(size - len(found))
    return found


def test_a_result_of_several_rounds_adds_counts_and_keeps_the_longest_time() -> None:
    result = Result(rounds=1, acknowledged=2, pause_seconds=3.0)
    result.add(Result(rounds=1, acknowledged=5, pause_seconds=2.0, lost=1))
    assert (result.rounds, result.acknowledged, result.lost, result.pause_seconds) == (2, 7, 1, 3.0)
    assert "| kill-node | 2 | 7 | 1 | 0 | 3.0 s |" in table({"kill-node": result})


def test_faults_are_chosen_by_name() -> None:
    assert chosen(None, has_former=True) == list(FAULTS)
    assert [one.name for one in FAULTS if one not in chosen(None)] == ["upgrade"]
    assert [one.name for one in chosen("cut-node,kill-node")] == ["kill-node", "cut-node"]
    with pytest.raises(ValueError, match="'kill-all' is none of"):
        chosen("kill-all")
