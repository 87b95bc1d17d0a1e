"""What outlives the incarnations of a diagnosis actor: its mailbox, its roster, what is in hand, and its history."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import trio

from actors.counts import RestartReason
from actors.following import Following
from actors.intensity import Intensity
from actors.mailbox import InHand, Mailbox
from actors.messages import Envelope
from actors.roster import Roster
from storage.errors import Failed, NoSuchDiagnosis, StorageError


@dataclass(frozen=True, slots=True)
class ActorLimits:
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
    """Quarantines tolerated within the window. Beyond: the server reports itself unready: they share a cause."""
    escalation_seconds: float = 60.0
    ring_bytes_max: int = 256 * 1024 * 1024
    """Events in memory, of all diagnoses. Beyond: those that nobody follows and that were used least recently leave."""


class ActorState(StrEnum):
    """What an actor is doing (`state` of PROTOCOL section 8)."""

    RUNNING = "running"
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"
    PASSIVE = "passive"


WORST_FIRST: Final = (ActorState.QUARANTINED, ActorState.RESTARTING, ActorState.RUNNING, ActorState.PASSIVE)
"""Of an actor at several processes the first of these that it has anywhere is shown."""


class Interruption(StrEnum):
    """Why an actor is interrupted. The four after `NONE` begin a new incarnation, which reads the outbox anew."""

    NONE = "none"
    RESTART = "restart"
    """An operator wants it."""
    RENEWED = "renewed"
    """The numbering of its diagnosis began anew."""
    DAMAGED = "damaged"
    """Its outbox was found damaged."""
    BEHIND = "behind"
    """Its mailbox had no room for the news that events were dropped."""
    STOP = "stop"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of an incarnation."""

    at: float
    error: str
    """Kind of exception and where it was raised; never its text, which may hold a payload."""


RESTARTS_KEPT: Final = 10
"""Restarts that are remembered of one actor, the newest."""


@dataclass(frozen=True, slots=True)
class Restart:
    """An incarnation that ended, and was or will be followed by another one."""

    incarnation: int
    at: float
    """When it ended, on the wall clock."""
    reason: RestartReason
    error: str | None
    """As `Crash.error`; `None`: it did not crash."""


@dataclass(eq=False, slots=True)
class History:
    """What is remembered of an actor, even while it is not in memory."""

    incarnation: int = 0
    """Incarnations begun."""
    restarts: int = 0
    """Incarnations that crashed."""
    last_crash: Crash | None = None
    recent: tuple[Restart, ...] = ()
    """The newest restarts for whatever reason, at most `RESTARTS_KEPT`, the oldest first."""

    def restarted(self, at: float, reason: RestartReason, error: str | None = None) -> None:
        """The incarnation has ended, and is not the last one."""
        self.recent = (*self.recent, Restart(self.incarnation, at, reason, error))[-RESTARTS_KEPT:]


@dataclass(eq=False, slots=True)
class Slot:
    """What outlives the incarnations of one diagnosis actor."""

    diagnosis_id: str
    mailbox: Mailbox
    roster: Roster
    intensity: Intensity
    history: History
    following: Following
    in_hand: InHand = field(default_factory=InHand)
    state: ActorState = ActorState.PASSIVE
    interruption: Interruption = Interruption.NONE
    scope: trio.CancelScope | None = None
    """Cancels the running incarnation, or the wait in its place."""
    quarantined_until: float = 0.0
    """On the monotonic clock."""
    _changed: trio.Event | None = None
    """`None` (usual): nobody waits for a change."""
    stop_peers: Callable[[], None] | None = None
    """Ends what other processes tell of the diagnosis."""

    def become(self, state: ActorState) -> None:
        """Change the state and tell who waits for it."""
        self.state = state
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def change(self) -> None:
        """Return when `state` changes or an incarnation begins."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def interrupt(self, interruption: Interruption) -> None:
        """End the running incarnation, or the wait in its place. Retirement is final."""
        if self.interruption is Interruption.RETIRE:
            return
        self.interruption = interruption
        if self.scope is not None:
            self.scope.cancel()

    def stop_listening(self) -> None:
        """It leaves memory, and is told nothing more."""
        self.following.leave()
        stop, self.stop_peers = self.stop_peers, None
        if stop is not None:
            stop()

    @property
    def is_to_stop(self) -> bool:
        """Whether an operator wants it to leave memory."""
        return self.interruption is Interruption.STOP

    def settle_interruption(self) -> None:
        """The interruption has had its effect; a retirement stays."""
        if self.interruption is not Interruption.RETIRE:
            self.interruption = Interruption.NONE

    @property
    def has_work(self) -> bool:
        """Whether a message waits or is in hand."""
        return bool(self.mailbox or self.in_hand.holding or self.in_hand.retries)

    def let_go_of_ring(self) -> bool:
        """Drop the ring; False: the actor has work, or an operator wants something of it."""
        if self.has_work or self.interruption is not Interruption.NONE:
            return False
        # An actor that rests after a crash does not need its former ring. Its rest goes on.
        if self.state is ActorState.RUNNING:
            self.interrupt(Interruption.STOP)
        self.roster.ring = None
        return True

    async def outcomes(self) -> None:
        """Wait until it is known what became of everything that has reached the store."""
        for envelope in list(self.in_hand.holding):
            if envelope.pending is not None:
                with suppress(Exception):  # a crash of the store is no crash of whoever supervises
                    await envelope.outcome()

    def refuse_all(self, refusal: Exception) -> None:
        """Answer everything that waits or is in hand."""
        waiting = [*self.in_hand.holding, *self.in_hand.retries, *self.mailbox.drain_nowait()]
        self.in_hand.holding.clear()
        self.in_hand.retries.clear()
        for envelope in waiting:
            envelope.reply.refuse(self._refusal_of(envelope, refusal))

    def _refusal_of(self, envelope: Envelope, refusal: Exception) -> Exception:
        """What a message is refused with that the actor does not finish.

        What has reached the store may be stored, if the diagnosis was deleted and registered again before it: nobody
        may be told that it certainly is not, unless the store has said so, or it has gone with its registration.
        """
        if envelope.pending is None:
            return refusal
        outcome, ring = envelope.outcome_nowait(), self.roster.ring
        if isinstance(outcome, StorageError):
            return outcome
        is_of_the_deleted = outcome is not None and ring is not None and outcome.epoch == ring.epoch
        if is_of_the_deleted and isinstance(refusal, NoSuchDiagnosis):
            return refusal
        return Failed("the actor ended before the outcome was known")
