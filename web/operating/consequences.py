"""What follows from an act once it is committed, whoever asked for it and wherever.

The store tells of each change, in order. Two kinds of things follow:

* What later judgements rely on is done at once, in the stretch in which the store tells: the copy of the revocations,
  and that a deleted diagnosis has no actor any more. The store's own memory of the registry is up to date by then.
* What is done to thousands of connections takes turns, in a task of its own for each change. The tasks are started in
  order. Whoever answers for an act waits for them (`settled`).

Where other processes write, each erases once more what its own connections of an erased person have left. Whoever was
asked for the erasure cannot do that for them: it is over before the last of them has heard of it.

Why nobody keeps following without the right to: a connection is judged, attached, and judged again by what the store
knows and by the revocations (`web.following.admission`). There is no checkpoint between the moment in which these two
change and the start of the task that ends connections. What was attached before the task looks at it is ended by the
task. What is attached later is judged for the second time by what holds now.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, assert_never

import trio

from actors.batching import RETRY_SECONDS
from actors.registry import Registry
from actors.roster import Subscriber, Whose
from actors.transport import Ending
from actors.upkeep import describe
from actors.which import OfErased, OfUser
from storage.changes import (
    Change,
    DiagnosisDeleted,
    DiagnosisRegistered,
    EpochsRenewed,
    EventsEvicted,
    OutboxPurged,
    RevocationsLifted,
    SubjectErased,
    TokensRevoked,
)
from storage.errors import Busy, Failed, NoSuchDiagnosis
from storage.news import News
from storage.records import ERASED_ROWS_MAX, Diagnosis, Erasure, Revocation, SubscriberId
from storage.store import Store
from web.contract.principals import Principal
from web.identity import rights
from web.identity.revoked import Revoked
from web.identity.tokens import issued_at_of
from web.operating.audit_rows import spellings_of

PAGE_REVOCATIONS: Final = 1000
"""Revocations read from the store at once."""

logger = logging.getLogger("avicenna.server")


@dataclass(frozen=True, slots=True)
class WithoutRight:
    """The connections that may not follow a diagnosis that is registered like this."""

    diagnosis: Diagnosis
    anonymous_allowed: bool

    def picks(self, subscriber: Subscriber) -> bool:
        who = _who(subscriber)
        return not rights.may_subscribe(who, self.diagnosis, anonymous_allowed=self.anonymous_allowed)


@dataclass(frozen=True, slots=True)
class Covered:
    """The connections whose token is revoked when they are looked at: a revocation may be lifted meanwhile."""

    revoked: Revoked
    now: Callable[[], float]

    def picks(self, subscriber: Subscriber) -> bool:
        return self.covers(_who(subscriber))

    def covers(self, who: Principal) -> bool:
        """Whether the token of somebody is revoked now."""
        return self.revoked.covering(who.sub, who.token_id, issued_at_of(who, self.now())) is not None


class NamesOf:
    """Whoever another value means, and the names of those that were met."""

    def __init__(self, whose: Whose) -> None:
        self._whose = whose
        self.met: set[str] = set()

    def names(self, subscriber_id: SubscriberId) -> bool:
        is_meant = self._whose.names(subscriber_id)
        if is_meant and subscriber_id.sub is not None:
            self.met.add(subscriber_id.sub)
        return is_meant

    def picks(self, subscriber: Subscriber) -> bool:
        return self.names(subscriber.id)


class Connections(Protocol):
    """Connections of one kind that follow no diagnosis."""

    async def end_where(self, picks: Callable[[Principal], bool], ending: Ending) -> None:
        """End those whose clients `picks` picks."""


class Consequences:
    """Listens to a store (`storage.changes.Hears`). One per server."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        revoked: Revoked,
        consequences_nursery: trio.Nursery,
        *,
        now: Callable[[], float],
        anonymous_allowed: bool,
    ) -> None:
        """Carry out what follows on the connections of `registry`, in tasks of this nursery.

        Args:
            store: waits as long as it takes.
            now: the wall clock, in seconds since the Unix epoch.
            anonymous_allowed: whether somebody without a token may follow.
        """
        self._store = store
        self._registry = registry
        self._revoked = revoked
        self._nursery = consequences_nursery
        self._now = now
        self._anonymous_allowed = anonymous_allowed
        self.others: Sequence[Connections] = ()
        """Connections that follow no diagnosis; none before the server is composed."""
        self._is_revoked_read = False
        """Nothing was revoked or lifted since the last reading of what is began."""
        self._under_way: dict[trio.Event, None] = {}
        """Set when a task has ended; the oldest first."""

    def changed(self, change: Change) -> None:
        registry = self._registry
        match change:
            case DiagnosisRegistered(diagnosis=diagnosis):
                lost = WithoutRight(diagnosis, self._anonymous_allowed)
                self._begin(partial(registry.end_where, diagnosis.diagnosis_id, lost, Ending.VIEWER_REMOVED))
            case DiagnosisDeleted(diagnosis=diagnosis):
                if (ending := registry.retire(diagnosis.diagnosis_id)) is not None:
                    self._begin(ending)
            case OutboxPurged(diagnosis_id=diagnosis_id, window=window):
                registry.evicted(diagnosis_id, window)
            case EventsEvicted(windows=windows):
                for diagnosis_id, window in windows.items():
                    registry.evicted(diagnosis_id, window)
            case TokensRevoked(revocation=revocation):
                self._is_revoked_read = False
                self._revoked.add(revocation)
                covered = Covered(self._revoked, self._now)
                self._begin(partial(registry.end_everywhere, covered, Ending.REVOKED))
                self._end_others(covered.covers, Ending.REVOKED)
            case RevocationsLifted(revocations=revocations):
                self._is_revoked_read = False
                for revocation in revocations:
                    self._revoked.lift(revocation)
            case SubjectErased(digest=digest, stand_in=stand_in):
                self._begin(self._erasing(digest, stand_in))
                erased = OfErased(digest)
                self._end_others(lambda who: erased.names(SubscriberId(who.sub, None)), Ending.DISCONNECTED)
            case EpochsRenewed(diagnosis_id=renewed):
                self._begin(registry.renewed(renewed))
            case _:
                assert_never(change)

    def grew(self, diagnosis_id: str, news: News) -> None:
        self._registry.grew(diagnosis_id, news)

    def missed(self) -> None:
        self._begin(self._look_anew)

    async def read_revoked(self) -> None:
        """Read what is revoked now."""
        is_current = False
        while not is_current:
            self._is_revoked_read = True
            found: list[Revocation] = []
            while page := await self._store.revocations(after=found[-1].number if found else 0, limit=PAGE_REVOCATIONS):
                found += page
            is_current = self._is_revoked_read  # else it has changed meanwhile
        self._revoked.replace(found)

    async def settled(self) -> None:
        """Wait until all that follows from changes told so far is done, and what was handed over before is stored.

        Something was judged before a change, and handed over to the store while the change was on its way to the disk.
        It is stored or refused by then, too.
        """
        await self.carried_out()
        await self._store.barrier()

    async def carried_out(self) -> None:
        """Wait until all that follows from changes told so far is done here."""
        for ended in list(self._under_way):
            await ended.wait()

    async def _look_anew(self) -> None:
        """Judge all connections by what the store holds now. Actors look at their logs by themselves."""
        while True:
            try:
                await self._judge_anew()
            except (Busy, Failed) as refusal:
                logger.warning("rights are not judged anew, trying again: %s", refusal)
                await trio.sleep(RETRY_SECONDS)
            else:
                return

    async def _judge_anew(self) -> None:
        await self.read_revoked()
        covered = Covered(self._revoked, self._now)
        await self._registry.end_everywhere(covered, Ending.REVOKED)
        self._end_others(covered.covers, Ending.REVOKED)
        for diagnosis_id in list(self._registry.connections):
            try:
                diagnosis = await self._store.get(diagnosis_id)
            except NoSuchDiagnosis:
                if (ending := self._registry.retire(diagnosis_id)) is not None:
                    await ending()
            else:
                lost = WithoutRight(diagnosis, self._anonymous_allowed)
                await self._registry.end_where(diagnosis_id, lost, Ending.VIEWER_REMOVED)

    def _erasing(self, digest: str, stand_in: str) -> Callable[[], Awaitable[object]]:
        """What ends and forgets an erased person here."""
        if not self._store.shared:  # whoever was asked for the erasure erases what is left
            return partial(self._registry.let_go_of, OfErased(digest), stand_in)
        person = NamesOf(OfErased(digest))
        # At once: what waits to be stored may be all that names the person here.
        self._registry.forget_what_waits(person, stand_in)
        return partial(self._erase, person, stand_in)

    async def _erase(self, person: NamesOf, stand_in: str) -> None:
        await self._registry.let_go_of(person, stand_in)
        for sub in person.met:
            await self._erase_what_is_left(Erasure(sub, stand_in, spellings_of(sub)))

    async def _erase_what_is_left(self, erasure: Erasure) -> None:
        is_whole = False
        while not is_whole:
            # No checkpoint until the store has taken it: nothing of before may reach it after that.
            self._registry.erase(OfUser(erasure.sub), erasure.stand_in)
            try:
                is_whole = (await self._store.erase(erasure)).cursors < ERASED_ROWS_MAX
            except (Busy, Failed) as refusal:
                logger.warning("what an erased person left is not erased, trying again: %s", refusal)
                await trio.sleep(RETRY_SECONDS)

    def _end_others(self, picks: Callable[[Principal], bool], ending: Ending) -> None:
        for connections in self.others:
            self._begin(partial(connections.end_where, picks, ending))

    def _begin(self, work: Callable[[], Awaitable[object]]) -> None:
        if self._nursery.cancel_scope.cancel_called:
            # The server has ended, and all connections with it. What was handed over to the store before is still told.
            return
        ended = trio.Event()
        self._under_way[ended] = None
        self._nursery.start_soon(self._carry_out, work, ended)

    async def _carry_out(self, work: Callable[[], Awaitable[object]], ended: trio.Event) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the boundary of a consequence: the next ones are carried out
            logger.error("what follows from an act failed unexpectedly: %s", describe(error))
        finally:
            del self._under_way[ended]
            ended.set()


def _who(subscriber: Subscriber) -> Principal:
    who = subscriber.principal
    assert isinstance(who, Principal), "connections are admitted by web.following.sockets"
    return who
