"""Supervision of diagnosis actors, one for one: a crash ends one incarnation and touches nothing else.

A `Cell` holds what outlives incarnations; `Supervisor.supervise` runs them, one after the other, until
the actor passivates. The first restart is immediate, further ones back off, and too many within the
restart intensity quarantine the diagnosis until its cool-off or an operator's release.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from actors.cursors import CursorKeeper
from actors.diagnosis import DiagnosisActor, Hands, Render
from actors.errors import Crashed, Draining, Quarantined
from actors.intensity import Intensity
from actors.mailbox import Mailbox
from actors.roster import Roster
from actors.subscriber import Ending
from storage.clock import Clock
from storage.errors import NoSuchDiagnosis, StorageError
from storage.store import Store

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
class Cell:
    """What outlives the incarnations of one diagnosis actor."""

    diagnosis_id: str
    mailbox: Mailbox
    roster: Roster
    intensity: Intensity
    hands: Hands = field(default_factory=Hands)
    state: ActorState = ActorState.PASSIVE
    incarnation: int = 0
    restarts: int = 0
    last_crash: Crash | None = None
    wish: Wish = Wish.NONE
    scope: trio.CancelScope | None = None
    """Around the running incarnation, or the wait that stands in for it."""
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
    def has_work(self) -> bool:
        """Whether a message waits or is in hand."""
        return bool(self.mailbox or self.hands.holding or self.hands.retries)

    def refuse_all(self, refusal: Exception) -> None:
        """Answer everything that waits or is in hand."""
        waiting = [*self.hands.holding, *self.hands.retries, *self.mailbox.drain_nowait()]
        self.hands.holding.clear()
        self.hands.retries.clear()
        for envelope in waiting:
            envelope.reply.refuse(refusal)


class Supervisor:
    """Runs the incarnations of every cell."""

    def __init__(
        self,
        store: Store,
        keeper: CursorKeeper,
        *,
        render: Render,
        clock: Clock,
        jitter: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._render = render
        self._clock = clock
        self._jitter = jitter
        self._limits = limits

    async def supervise(self, cell: Cell, rested: Callable[[Cell], None]) -> None:
        """Run incarnations until the actor rests; then call `rested` and return, without a checkpoint between.

        Cancellation: the server stops; whoever waits for an answer is told so.
        """
        try:
            while True:
                if await self._run_one(cell):
                    rested(cell)
                    return
        except trio.Cancelled:
            cell.refuse_all(Draining("the server is stopping"))
            raise

    async def _run_one(self, cell: Cell) -> bool:
        """Run one incarnation, and what follows from its end; True: the actor rests now."""
        if cell.wish is Wish.RETIRE:
            return await self._after_wish(cell)
        cell.wish = Wish.NONE
        cell.incarnation += 1
        cell.become(ActorState.RUNNING)
        crash: Exception | None = None
        with trio.CancelScope() as cell.scope:
            try:
                await self._incarnate(cell).run()
                return True
            except NoSuchDiagnosis as refusal:
                cell.refuse_all(refusal)
                cell.roster.end_where(lambda _: True, Ending.DELETED)
                return True
            except StorageError as refusal:
                logger.warning("diagnosis %s: outbox not loaded: %s", cell.diagnosis_id, refusal)
                cell.refuse_all(refusal)
                return True
            except Exception as error:  # noqa: BLE001  # here a crash becomes a restart
                crash = error
        if crash is not None:
            return await self._after_crash(cell, crash)
        return await self._after_wish(cell)

    def _incarnate(self, cell: Cell) -> DiagnosisActor:
        return DiagnosisActor(
            cell.diagnosis_id,
            cell.mailbox,
            cell.roster,
            cell.hands,
            store=self._store,
            keeper=self._keeper,
            render=self._render,
            clock=self._clock,
            passivate_after_seconds=self._limits.passivate_after_seconds,
        )

    async def _after_wish(self, cell: Cell) -> bool:
        """An operator interrupted the incarnation: never counted as a crash, no backoff."""
        match cell.wish:
            case Wish.RETIRE:
                cell.refuse_all(NoSuchDiagnosis(cell.diagnosis_id))
                return True
            case Wish.STOP:
                await self._keeper.flush(cell.diagnosis_id)
                return not cell.has_work
            case _:
                return False

    async def _after_crash(self, cell: Cell, error: Exception) -> bool:
        now = self._clock.monotonic()
        cell.restarts += 1
        cell.last_crash = Crash(self._clock.wall(), describe(error))
        logger.error(
            "diagnosis %s: incarnation %d crashed: %s, in hand: %s",
            cell.diagnosis_id,
            cell.incarnation,
            cell.last_crash.error,
            ", ".join(type(one.message).__name__ for one in cell.hands.holding) or "nothing",
        )
        self._give_up_on_repeaters(cell.hands)
        if cell.intensity.crashed(now):
            return await self._quarantine(cell, now)
        cell.become(ActorState.RESTARTING)
        with trio.CancelScope() as cell.scope:
            await trio.sleep(cell.intensity.backoff_seconds(self._jitter))
        return False

    def _give_up_on_repeaters(self, hands: Hands) -> None:
        """A message in hand at two crashes is answered; the others are tried once more, each alone."""
        for envelope in list(hands.holding):
            envelope.crashes += 1
            if envelope.crashes > 1:
                hands.holding.remove(envelope)
                envelope.reply.refuse(Crashed("the actor crashed twice over this message"))

    async def _quarantine(self, cell: Cell, now: float) -> bool:
        """Rest until the cool-off is over or an operator intervenes."""
        rest = self._limits.quarantine_seconds
        cell.quarantined_until = now + rest
        cell.become(ActorState.QUARANTINED)
        logger.error("diagnosis %s: quarantined for %.0f s after %d restarts", cell.diagnosis_id, rest, cell.restarts)
        cell.refuse_all(Quarantined(rest))
        cell.roster.end_where(lambda _: True, Ending.QUARANTINED)
        with trio.CancelScope() as cell.scope:
            await trio.sleep(rest)
        cell.intensity.reset()
        return cell.wish in (Wish.NONE, Wish.STOP) and not cell.has_work


def describe(error: Exception) -> str:
    """Kind and place of an exception, without its text (which may hold a payload)."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
