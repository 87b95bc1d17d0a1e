"""Supervision of diagnosis actors, one for one: a crash ends one incarnation and touches nothing else.

A `Cell` holds what outlives incarnations; `Supervisor.supervise` runs them, one after the other, until
the actor passivates. The first restart is immediate, further ones back off, and too many within the
restart intensity quarantine the diagnosis until its cool-off or an operator's release.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import trio

from actors import turns
from actors.budget import RingBudget
from actors.cursors import CursorKeeper
from actors.diagnosis import FLUSH_SECONDS_MAX, DiagnosisActor, Hands, Render
from actors.errors import Crashed, Draining, Quarantined
from actors.intensity import Intensity
from actors.mailbox import Mailbox
from actors.roster import Roster
from actors.subscriber import Ending
from storage.clock import Clock
from storage.errors import Failed, NoSuchDiagnosis, OutboxDamaged, Refused, StorageError
from storage.store import Store

SERVICE_WINDOW_SECONDS: Final = 60.0
"""A service that crashes again within this time waits longer before each restart."""

RELOAD_SECONDS: Final = 1.0
"""Wait before an outbox that could not be read is tried again, while somebody follows it."""

logger = logging.getLogger("avicenna.actors")


@dataclass(frozen=True, slots=True)
class Limits:
    """How actors are run; each value comes from a setting of the operator."""

    passivate_after_seconds: float = 300.0
    """An actor without subscribers and mail for so long leaves memory."""
    mailbox_publishes_max: int = 1000
    """Publishes that may wait in one mailbox. Beyond: refused at once."""
    restart_intensity_max: int = 3
    """Crashes tolerated within the window. Beyond: quarantined."""
    restart_intensity_seconds: float = 60.0
    quarantine_seconds: float = 60.0
    """How long a quarantined diagnosis rests before it is tried again."""
    escalation_quarantines_max: int = 10
    """Quarantines tolerated within the window. Beyond: escalated (the server is unready), as they probably share a
    cause."""
    escalation_seconds: float = 60.0
    ring_bytes_max: int = 256 * 1024 * 1024
    """Events in memory, of all diagnoses. Beyond: those that nobody follows and that were used least recently leave."""


class ActorState(StrEnum):
    """What an actor is doing (`state` of PROTOCOL section 8)."""

    RUNNING = "running"
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"
    PASSIVE = "passive"


class Wish(StrEnum):
    """What an operator asked of a running actor."""

    NONE = "none"
    RESTART = "restart"
    STOP = "stop"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of an incarnation."""

    at: float
    error: str
    """Kind of exception and where it was raised; never its text, which may hold a payload."""


@dataclass(eq=False, slots=True)
class History:
    """What is remembered of an actor, even while it is not in memory."""

    incarnation: int = 0
    """Incarnations begun."""
    restarts: int = 0
    """Incarnations that crashed."""
    last_crash: Crash | None = None


@dataclass(eq=False, slots=True)
class Cell:
    """What outlives the incarnations of one diagnosis actor."""

    diagnosis_id: str
    mailbox: Mailbox
    roster: Roster
    intensity: Intensity
    history: History
    hands: Hands = field(default_factory=Hands)
    state: ActorState = ActorState.PASSIVE
    wish: Wish = Wish.NONE
    scope: trio.CancelScope | None = None
    """Cancels the running incarnation, or the wait in its place."""
    quarantined_until: float = 0.0
    """On the monotonic clock."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set, and replaced, whenever `state` changes or an incarnation begins."""

    def become(self, state: ActorState) -> None:
        """Change the state and tell who waits for it."""
        self.state = state
        self.changed.set()
        self.changed = trio.Event()

    def ask_for(self, wish: Wish) -> None:
        """Interrupt whatever the actor is doing, to do what an operator wants. Retirement is final."""
        if self.wish is Wish.RETIRE:
            return
        self.wish = wish
        if self.scope is not None:
            self.scope.cancel()

    @property
    def is_to_stop(self) -> bool:
        """Whether an operator wants it to leave memory."""
        return self.wish is Wish.STOP

    def settle_wish(self) -> None:
        """What an operator wanted is done; a retirement stays."""
        if self.wish is not Wish.RETIRE:
            self.wish = Wish.NONE

    @property
    def has_work(self) -> bool:
        """Whether a message waits or is in hand."""
        return bool(self.mailbox or self.hands.holding or self.hands.retries)

    def let_go_of_ring(self) -> bool:
        """Drop the ring; False: the actor has work, or an operator wants something of it."""
        if self.has_work or self.wish is not Wish.NONE:
            return False
        # An actor that rests after a crash does not need its former ring. Its rest goes on.
        if self.state is ActorState.RUNNING:
            self.ask_for(Wish.STOP)
        self.roster.ring = None
        return True

    def refuse_all(self, refusal: Exception) -> None:
        """Answer everything that waits or is in hand."""
        waiting = [*self.hands.holding, *self.hands.retries, *self.mailbox.drain_nowait()]
        self.hands.holding.clear()
        self.hands.retries.clear()
        for envelope in waiting:
            # What has reached the store may be stored: nobody may be told that it certainly is not.
            unknown = envelope.pending is not None and not isinstance(refusal, Refused)
            envelope.reply.refuse(Failed("the actor ended before the outcome was known") if unknown else refusal)


class Supervisor:
    """Runs the incarnations of every cell."""

    def __init__(
        self,
        store: Store,
        keeper: CursorKeeper,
        budget: RingBudget,
        *,
        render: Render,
        clock: Clock,
        jitter: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._budget = budget
        self._render = render
        self._clock = clock
        self._jitter = jitter
        self._limits = limits
        self._quarantines = Intensity(limits.escalation_quarantines_max, limits.escalation_seconds)

    @property
    def escalated(self) -> bool:
        """Whether so many diagnoses were quarantined lately that they probably share a cause."""
        return self._quarantines.exceeded(self._clock.monotonic())

    async def supervise(self, cell: Cell, rested: Callable[[Cell], None]) -> None:
        """Run incarnations until the actor rests; then call `rested` and return, without a checkpoint between.

        Cancellation: the server stops; whoever waits for an answer is told so.
        """
        try:
            while True:
                if await self._run_one(cell):
                    cell.settle_wish()
                    rested(cell)
                    return
        except trio.Cancelled:
            cell.mailbox.close()
            cell.refuse_all(Draining("the server is stopping"))
            raise

    async def _run_one(self, cell: Cell) -> bool:
        """Run one incarnation, and what follows from its end; True: the actor rests now."""
        if cell.wish is Wish.RETIRE or (cell.is_to_stop and not cell.has_work):
            return await self._after_wish(cell)
        # An actor that is to stop finishes its mail first: the wish stands until there is none.
        stops = cell.is_to_stop
        if not stops:
            cell.settle_wish()
        cell.history.incarnation += 1
        cell.become(ActorState.RUNNING)
        failure: Exception | None = None
        with trio.CancelScope() as cell.scope:
            try:
                await self._incarnate(cell, stops=stops).run()
                return True
            except Exception as error:  # noqa: BLE001  # here a crash becomes a restart
                failure = error
        if isinstance(failure, NoSuchDiagnosis | OutboxDamaged):
            # The store has logged the damage. The outbox is read again with the next message, and not before.
            cell.refuse_all(failure)
            ending = Ending.DELETED if isinstance(failure, NoSuchDiagnosis) else Ending.QUARANTINED
            await turns.end_where(cell.roster, lambda _: True, ending)
            return not cell.has_work
        if isinstance(failure, StorageError):
            return await self._after_refusal(cell, failure)
        if failure is not None:
            return await self._after_crash(cell, failure)
        return await self._after_wish(cell)

    def _incarnate(self, cell: Cell, *, stops: bool) -> DiagnosisActor:
        return DiagnosisActor(
            cell.diagnosis_id,
            cell.mailbox,
            cell.roster,
            cell.hands,
            store=self._store,
            keeper=self._keeper,
            budget=self._budget,
            render=self._render,
            passivate_after_seconds=self._limits.passivate_after_seconds,
            stops=stops,
        )

    async def _after_wish(self, cell: Cell) -> bool:
        """An operator interrupted the incarnation: never counted as a crash, no backoff."""
        match cell.wish:
            case Wish.RETIRE:
                cell.refuse_all(NoSuchDiagnosis(cell.diagnosis_id))
                return True
            case Wish.STOP:
                with trio.move_on_after(FLUSH_SECONDS_MAX):
                    await self._keeper.flush(cell.diagnosis_id)
                # Meanwhile it may have been asked for something else.
                return cell.is_to_stop and not cell.has_work
            case _:
                return False

    async def _after_refusal(self, cell: Cell, refusal: StorageError) -> bool:
        """The outbox could not be read, which is no crash. It is tried again while somebody is attached."""
        logger.warning("diagnosis %s: outbox not loaded: %s", cell.diagnosis_id, refusal)
        cell.refuse_all(refusal)
        if not cell.roster.subscribers:
            return True
        cell.become(ActorState.RESTARTING)
        return await self._rest(cell, RELOAD_SECONDS)

    async def _after_crash(self, cell: Cell, error: Exception) -> bool:
        now = self._clock.monotonic()
        cell.history.restarts += 1
        cell.history.last_crash = Crash(self._clock.wall(), describe(error))
        logger.error(
            "diagnosis %s: incarnation %d crashed: %s, in hand: %s",
            cell.diagnosis_id,
            cell.history.incarnation,
            cell.history.last_crash.error,
            ", ".join(type(one.message).__name__ for one in cell.hands.holding) or "nothing",
        )
        self._give_up_on_repeaters(cell.hands)
        if cell.intensity.crashed(now):
            return await self._quarantine(cell, now)
        cell.become(ActorState.RESTARTING)
        return await self._rest(cell, cell.intensity.backoff_seconds(self._jitter))

    async def _rest(self, cell: Cell, seconds: float) -> bool:
        """Wait, unless an operator wants something; True: the operator wants the actor to rest."""
        with trio.CancelScope() as cell.scope:
            if cell.wish is Wish.NONE:
                await trio.sleep(seconds)
        return cell.is_to_stop and not cell.has_work

    def _give_up_on_repeaters(self, hands: Hands) -> None:
        """A message in hand at two crashes is answered; the others are tried once more, each alone.

        A message that has reached the store is not tried again and counts no crash: its outcome is its answer.
        """
        for envelope in [one for one in hands.holding if one.pending is None]:
            envelope.crashes += 1
            if envelope.crashes > 1:
                hands.holding.remove(envelope)
                envelope.reply.refuse(Crashed("the actor crashed twice over this message"))

    async def _quarantine(self, cell: Cell, now: float) -> bool:
        """Rest until the cool-off is over or an operator intervenes."""
        rest = self._limits.quarantine_seconds
        cell.quarantined_until = now + rest
        cell.become(ActorState.QUARANTINED)
        logger.error(
            "diagnosis %s: quarantined for %.0f s after %d crashes", cell.diagnosis_id, rest, cell.history.restarts
        )
        if self._quarantines.crashed(now):
            logger.critical(
                "escalated: more than %d diagnoses quarantined within %.0f s, this server is not ready",
                self._limits.escalation_quarantines_max,
                self._limits.escalation_seconds,
            )
        cell.refuse_all(Quarantined(rest))
        await turns.end_where(cell.roster, lambda _: True, Ending.QUARANTINED)
        wanted_to_rest = await self._rest(cell, rest)
        cell.intensity.reset()
        return wanted_to_rest or (cell.wish is Wish.NONE and not cell.has_work)


async def keep_up(name: str, service: Callable[[], Awaitable[None]], clock: Clock, jitter: Callable[[], float]) -> None:
    """Run a service until cancelled: one that crashes is logged, and started again after a backoff."""
    crashes = Intensity(0, SERVICE_WINDOW_SECONDS)
    while True:
        try:
            await service()
        except Exception as error:  # noqa: BLE001  # here a crash becomes a restart
            logger.error("the %s crashed: %s", name, describe(error))
            crashes.crashed(clock.monotonic())
            await trio.sleep(crashes.backoff_seconds(jitter))


def describe(error: Exception) -> str:
    """Kind and place of an exception, without its text (which may hold a payload)."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
