"""Whatever goes through all connections or all known subscribers of a diagnosis leaves others their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from actors.messages import Purge, Trace
from actors.transport import Ending
from actors.turns import ENDED_AT_ONCE_MAX
from actors.which import EVERYBODY
from storage.records import Act, CursorMove, Seq, SubscriberId
from tests.actors.world import DIAGNOSIS, Reader, World, anybody, retire, world

CROWD = 2000


class Busy:
    """Counts the most connections that were touched between two turns of everybody else."""

    def __init__(self) -> None:
        self.touched = self.most = 0

    def touch(self) -> None:
        self.touched += 1
        self.most = max(self.most, self.touched)

    async def take_turns(self) -> None:
        while True:
            self.touched = 0
            await trio.lowlevel.checkpoint()


class Touched(Reader):
    """A connection that tells when something is done to it."""

    def __init__(self, busy: Busy, number: int) -> None:
        super().__init__(f"user-{number}")
        self.busy = busy

    def wake(self) -> None:
        self.busy.touch()
        super().wake()

    def end(self, ending: Ending) -> None:
        self.busy.touch()
        super().end(ending)


async def restart(there: World) -> None:
    await there.registry.restart(DIAGNOSIS)
    await there.settled()


ACTS: dict[str, Callable[[World], Awaitable[object]]] = {
    "a deletion": lambda there: retire(there.registry),
    "a right taken away": lambda there: there.registry.end_where(DIAGNOSIS, EVERYBODY, Ending.VIEWER_REMOVED),
    "a revocation": lambda there: there.registry.end_everywhere(EVERYBODY, Ending.REVOKED),
    "an erasure": lambda there: there.registry.let_go_of(EVERYBODY, "[erased]"),
    "a drain": lambda there: there.registry.end_all(),
    "a purge": lambda there: there.registry.ask(DIAGNOSIS, Purge(Act("op", "outbox.purge"), anybody)),
    "a restart": restart,
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.guarantee(7)
async def test_an_act_on_thousands_of_connections_leaves_others_their_turn(act: str, autojump_clock: MockClock) -> None:
    async with world() as there:
        await there.publish()
        busy = Busy()
        for number in range(CROWD):
            await there.connect(Touched(busy, number))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.take_turns)
            busy.touched = busy.most = 0
            await ACTS[act](there)
            await there.registry.drain()
            nursery.cancel_scope.cancel()
        assert 0 < busy.most <= 2 * ENDED_AT_ONCE_MAX, "Trio runs who is ready in any order, each once"


async def test_known_subscribers_are_loaded_and_traced_in_pages(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.diagnosis.PAGE_CURSORS", 7)
    monkeypatch.setattr("actors.diagnosis.TRACED_AT_ONCE_MAX", 5)
    everybody = [SubscriberId(sub, device) for sub in (None, "amira", "bo") for device in (None, "a", "b", "c", "d")]
    async with world() as there:
        epoch = (await there.store.inner.get(DIAGNOSIS)).epoch
        await there.store.inner.move_cursors([CursorMove(DIAGNOSIS, one, epoch, Seq(0), 1e6) for one in everybody])
        await there.publish()
        found: list[SubscriberId] = []
        while page := await there.registry.ask(DIAGNOSIS, Trace(Seq(1), found[-1] if found else None, 4)):
            found += [delivery.subscriber for delivery in page]
        assert found == sorted(everybody, key=lambda one: one.order)
        assert (await there.publish()).known == len(everybody)
