"""The watch over tokens by itself: what it keeps in memory, and how one connection's failure stays its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
import trio.testing

from actors.transport import Ending
from storage.changes import RevocationsLifted
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from tests.storage.conftest import Heard
from web.contract.principals import Principal
from web.following.session import Session
from web.identity.expiry import LOOK_SECONDS, Expiry
from web.identity.keys import hmac_key
from web.identity.revoked import Revoked
from web.identity.tokens import LEEWAY_SECONDS, Verifier, issue
from web.operating.revocations import EXPIRE_EVERY_SECONDS, expire_revocations

KEY = b"k" * 32


class TrioClock:
    """Both times are Trio's: a test clock rules them."""

    def wall(self) -> float:
        return trio.current_time() + 1_000_000

    def monotonic(self) -> float:
        return trio.current_time()


class FakeSession:
    """As much of a `Session` as the watch asks for."""

    def __init__(self, expires_at: float, *, fails: bool = False) -> None:
        self.who = Principal("amira", expires_at=expires_at)
        self.diagnosis_id = "d"
        self.warn_at = -math.inf
        self.is_live = True
        self.is_gone = False
        self.fails = fails
        self.said: list[tuple[str, float]] = []

    def say(self, kind: str, data: object) -> None:
        if self.fails:
            raise RuntimeError("a bug")
        self.said.append((kind, trio.current_time()))

    def end(self, ending: Ending) -> None:
        self.is_gone = True
        self.said.append((ending.value, trio.current_time()))

    def renewed(self, who: Principal) -> None:
        self.who = who
        self.said.append(("auth_ok", trio.current_time()))


def watched(expiry: Expiry, session: FakeSession) -> FakeSession:
    expiry.watch(session)
    return session


@asynccontextmanager
async def watching() -> AsyncIterator[Expiry]:
    async def may_follow(who: Principal, diagnosis_id: str) -> bool:
        return True

    async def prepare(token: str) -> None:
        await trio.lowlevel.checkpoint()

    verifier = Verifier([hmac_key(KEY)], Revoked())
    expiry = Expiry(verifier, TrioClock(), may_follow=may_follow, prepare=prepare)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expiry.run)
        yield expiry
        nursery.cancel_scope.cancel()


async def test_each_connection_is_warned_and_ended_at_its_own_time(autojump_clock: trio.testing.MockClock) -> None:
    now = TrioClock().wall()
    async with watching() as expiry:
        late, early = (watched(expiry, FakeSession(now + seconds)) for seconds in (300, 100))
        await trio.sleep(400)
    assert [(kind, round(at)) for kind, at in early.said] == [
        ("auth_expiring", 40),
        ("token expired", 100 + LEEWAY_SECONDS),
    ]
    assert [(kind, round(at)) for kind, at in late.said] == [
        ("auth_expiring", 240),
        ("token expired", 300 + LEEWAY_SECONDS),
    ]


async def test_a_replay_that_lasts_holds_the_warning_back_and_not_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    now = TrioClock().wall()
    async with watching() as expiry:
        slow, never = FakeSession(now + 100), FakeSession(now + 100)
        slow.is_live = never.is_live = False
        watched(expiry, slow)
        watched(expiry, never)
        await trio.sleep(70)
        slow.is_live = True
        expiry.changed(slow)
        await trio.sleep(100)
    assert [(kind, round(at)) for kind, at in slow.said] == [("auth_expiring", 70), ("token expired", 110)]
    assert [kind for kind, _ in never.said] == ["token expired"]


async def test_a_renewed_token_moves_both_times(autojump_clock: trio.testing.MockClock) -> None:
    clock = TrioClock()
    async with watching() as expiry:
        session = watched(expiry, FakeSession(clock.wall() + 100))
        await trio.sleep(50)
        token = issue(KEY, sub="amira", scope="", ttl_seconds=200, now=clock.wall(), token_id="t")
        expiry.renew(session, token)
        await trio.sleep(400)
    assert [(kind, round(at)) for kind, at in session.said] == [
        ("auth_expiring", 40),
        ("auth_ok", 50),
        ("auth_expiring", 190),
        ("token expired", 260),
    ]


async def test_the_same_token_again_is_warned_about_less_and_less_soon_and_never_in_a_hurry(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clock = TrioClock()
    token = issue(KEY, sub="amira", scope="", ttl_seconds=60, now=clock.wall(), token_id="t")
    async with watching() as expiry:
        session = watched(expiry, FakeSession(clock.wall() + 60))
        while not session.is_gone:
            warnings = sum(kind == "auth_expiring" for kind, _ in session.said)
            if warnings > sum(kind == "auth_ok" for kind, _ in session.said):
                expiry.renew(session, token)
            await trio.sleep(LOOK_SECONDS / 10)
    warned_at = [at for kind, at in session.said if kind == "auth_expiring"]
    pauses = [after - before for before, after in pairwise(warned_at)]
    assert len(warned_at) == 7
    assert 30 <= pauses[0] <= 30 + 2 * LOOK_SECONDS
    assert min(pauses) >= 5


async def test_connections_that_come_and_go_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with watching() as expiry:
        for _ in range(10_000):
            watched(expiry, FakeSession(TrioClock().wall() + 86_400)).is_gone = True
        stays = watched(expiry, FakeSession(TrioClock().wall() + 86_400))
        await trio.sleep(2 * LOOK_SECONDS)
        assert [*map(id, expiry._sessions)] == [id(stays)]


async def test_a_connection_that_fails_does_not_touch_the_others(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching() as expiry:
        watched(expiry, FakeSession(TrioClock().wall() + 10, fails=True))
        other = watched(expiry, FakeSession(TrioClock().wall() + 10))
        await trio.sleep(60)
    assert other.is_gone
    assert "failed: RuntimeError" in caplog.text


def test_a_session_has_all_the_watch_asks_for() -> None:
    asked = {name for name in vars(FakeSession(0.0)) if name not in ("fails", "said")}
    offered = set(dir(Session))
    assert asked <= offered
    assert {"say", "end", "renewed"} <= offered


async def test_revocations_go_once_no_token_they_refuse_can_live(autojump_clock: trio.testing.MockClock) -> None:
    clock = TrioClock()
    store = MemoryStore(MemoryEngine(clock=clock, new_epoch=lambda: "e"))
    made = (await store.revoke(sub="amira", leeway_seconds=10)).revocation
    heard = Heard()
    store.tell(heard)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expire_revocations, store, 86_400)
        # The last token it covers is issued 10 s after it, lives for a day, and is accepted for 10 s longer.
        await trio.sleep(86_400 + 19)
        assert list(await store.revocations()) == [made]
        await trio.sleep(2 * EXPIRE_EVERY_SECONDS)
        assert list(await store.revocations()) == []
        assert heard == [RevocationsLifted(2, (made,))]
        nursery.cancel_scope.cancel()
