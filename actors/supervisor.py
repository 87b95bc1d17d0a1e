"""Supervision of diagnosis actors, one for one: a crash ends one incarnation and touches nothing else.

`Supervisor.supervise` runs the incarnations of one slot (`actors.slot`), one after the other, until
the actor passivates. The first restart is immediate, further ones back off, and too many within the
restart intensity quarantine the diagnosis until its cool-off or an operator's release.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio

from actors import turns
from actors.budget import RingBudget
from actors.counts import Counts, RestartReason
from actors.cursors import CursorKeeper
from actors.diagnosis import FLUSH_SECONDS_MAX, ConnectedElsewhere, DiagnosisActor, Render
from actors.errors import Crashed, Draining, Quarantined
from actors.intensity import Intensity
from actors.mailbox import InHand
from actors.slot import ActorLimits, ActorState, Crash, Interruption, Slot
from actors.tracing import Tracing
from actors.transport import Ending
from actors.upkeep import describe
from actors.which import EVERYBODY
from storage.clock import Clock
from storage.errors import NoSuchDiagnosis, OutboxDamaged, StorageError
from storage.store import Store

RELOAD_SECONDS: Final = 1.0
"""Wait before an outbox that could not be read is tried again, while somebody follows it."""

RESTART_REASONS_OF: Final[Mapping[Interruption, RestartReason]] = {
    Interruption.RESTART: "operator",
    Interruption.RENEWED: "renewed",
    Interruption.DAMAGED: "damaged",
    Interruption.BEHIND: "behind",
}
"""How a restart is counted that an interruption has caused."""

logger = logging.getLogger("avicenna.actors")


class Supervisor:
    """Runs the incarnations of every slot."""

    def __init__(
        self,
        store: Store,
        keeper: CursorKeeper,
        budget: RingBudget,
        *,
        render: Render,
        connected_elsewhere: ConnectedElsewhere,
        clock: Clock,
        jitter: Callable[[], float],
        limits: ActorLimits,
        counts: Counts,
        tracing: Tracing | None,
    ) -> None:
        self._counts = counts
        self._store = store
        self._keeper = keeper
        self._budget = budget
        self._render = render
        self._connected_elsewhere = connected_elsewhere
        self._clock = clock
        self._jitter = jitter
        self._limits = limits
        self._tracing = tracing
        self._quarantines = Intensity(limits.escalation_quarantines_max, limits.escalation_seconds)

    @property
    def escalated(self) -> bool:
        """Whether so many diagnoses were quarantined lately that they probably share a cause."""
        return self._quarantines.exceeded(self._clock.monotonic())

    async def supervise(self, slot: Slot, rested: Callable[[Slot], None]) -> None:
        """Run incarnations until the actor rests; then call `rested` and return, without a checkpoint between.

        Cancellation: the server stops; whoever waits for an answer is told so.
        """
        try:
            while True:
                if await self._run_one(slot):
                    slot.settle_interruption()
                    rested(slot)
                    return
        except trio.Cancelled:
            slot.mailbox.close()
            slot.refuse_all(Draining("the server is stopping"))
            raise

    async def _run_one(self, slot: Slot) -> bool:
        """Run one incarnation, and what follows from its end; True: the actor rests now."""
        if slot.interruption is Interruption.RETIRE or (slot.is_to_stop and not slot.has_work):
            return await self._after_interruption(slot)
        # An actor that is to stop finishes its mail first: the interruption stays until there is none.
        stops = slot.is_to_stop
        if not stops:
            slot.settle_interruption()
        slot.history.incarnation += 1
        slot.become(ActorState.RUNNING)
        failure: Exception | None = None
        with trio.CancelScope() as slot.scope:
            try:
                await self._incarnate(slot, stops=stops).run()
                return True
            except Exception as error:  # noqa: BLE001  # here a crash becomes a restart
                failure = error
        if isinstance(failure, NoSuchDiagnosis | OutboxDamaged):
            # The store has logged the damage. The outbox is read again with the next message, and not before.
            await slot.outcomes()
            slot.refuse_all(failure)
            ending = Ending.DELETED if isinstance(failure, NoSuchDiagnosis) else Ending.QUARANTINED
            await turns.end_where(slot.roster, EVERYBODY, ending)
            return not slot.has_work
        if isinstance(failure, StorageError):
            return await self._after_refusal(slot, failure)
        if failure is not None:
            return await self._after_crash(slot, failure)
        return await self._after_interruption(slot)

    def _incarnate(self, slot: Slot, *, stops: bool) -> DiagnosisActor:
        return DiagnosisActor(
            slot.diagnosis_id,
            slot.mailbox,
            slot.roster,
            slot.in_hand,
            slot.following,
            store=self._store,
            keeper=self._keeper,
            budget=self._budget,
            render=self._render,
            connected_elsewhere=self._connected_elsewhere,
            passivate_after_seconds=self._limits.passivate_after_seconds,
            stops=stops,
            tracing=self._tracing,
        )

    async def _after_interruption(self, slot: Slot) -> bool:
        """An operator interrupted the incarnation: never counted as a crash, no backoff."""
        match slot.interruption:
            case Interruption.RETIRE:
                await slot.outcomes()
                slot.refuse_all(NoSuchDiagnosis(slot.diagnosis_id))
                return True
            case Interruption.STOP:
                with trio.move_on_after(FLUSH_SECONDS_MAX):
                    await self._keeper.flush(slot.diagnosis_id)
                # Meanwhile it may have been asked for something else.
                return slot.is_to_stop and not slot.has_work
            case why:
                if (reason := RESTART_REASONS_OF.get(why)) is not None:
                    self._count_restart(slot, reason)
                return False

    async def _after_refusal(self, slot: Slot, refusal: StorageError) -> bool:
        """The outbox could not be read, which is no crash. It is tried again while somebody is attached."""
        logger.warning("diagnosis %s: outbox not loaded: %s", slot.diagnosis_id, refusal)
        slot.refuse_all(refusal)
        if not slot.roster.subscribers:
            return True
        self._count_restart(slot, "unreadable")
        slot.become(ActorState.RESTARTING)
        return await self._rest(slot, RELOAD_SECONDS)

    async def _after_crash(self, slot: Slot, error: Exception) -> bool:
        now = self._clock.monotonic()
        slot.history.restarts += 1
        slot.history.last_crash = Crash(self._clock.wall(), describe(error))
        self._count_restart(slot, "crash", slot.history.last_crash.error)
        logger.error(
            "diagnosis %s: incarnation %d crashed: %s, in hand: %s",
            slot.diagnosis_id,
            slot.history.incarnation,
            slot.history.last_crash.error,
            ", ".join(type(one.message).__name__ for one in slot.in_hand.holding) or "nothing",
        )
        self._give_up_on_repeaters(slot.in_hand)
        if slot.intensity.crashed(now):
            return await self._quarantine(slot, now)
        slot.become(ActorState.RESTARTING)
        return await self._rest(slot, slot.intensity.backoff_seconds(self._jitter))

    def _count_restart(self, slot: Slot, reason: RestartReason, error: str | None = None) -> None:
        self._counts.restarts[reason] += 1
        slot.history.restarted(self._clock.wall(), reason, error)

    async def _rest(self, slot: Slot, seconds: float) -> bool:
        """Wait, unless an operator wants something; True: the operator wants the actor to rest."""
        with trio.CancelScope() as slot.scope:
            if slot.interruption is Interruption.NONE:
                await trio.sleep(seconds)
        return slot.is_to_stop and not slot.has_work

    def _give_up_on_repeaters(self, in_hand: InHand) -> None:
        """A message in hand at two crashes is answered; the others are tried once more, each alone.

        A message that has reached the store is not tried again and counts no crash: its outcome is its answer.
        """
        for envelope in [one for one in in_hand.holding if one.pending is None]:
            envelope.crashes += 1
            if envelope.crashes > 1:
                in_hand.holding.remove(envelope)
                envelope.reply.refuse(Crashed("the actor crashed twice over this message"))

    async def _quarantine(self, slot: Slot, now: float) -> bool:
        """Rest until the cool-off is over or an operator intervenes."""
        rest = self._limits.quarantine_seconds
        self._counts.quarantines += 1
        slot.quarantined_until = now + rest
        slot.become(ActorState.QUARANTINED)
        logger.error(
            "diagnosis %s: quarantined for %.0f s after %d crashes", slot.diagnosis_id, rest, slot.history.restarts
        )
        if self._quarantines.crashed(now):
            logger.critical(
                "escalated: more than %d diagnoses quarantined within %.0f s, this server is not ready",
                self._limits.escalation_quarantines_max,
                self._limits.escalation_seconds,
            )
        slot.refuse_all(Quarantined(rest))
        await turns.end_where(slot.roster, EVERYBODY, Ending.QUARANTINED)
        wanted_to_rest = await self._rest(slot, rest)
        slot.intensity.reset()
        return wanted_to_rest or (slot.interruption is Interruption.NONE and not slot.has_work)
