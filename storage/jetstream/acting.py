"""Acts: what changes rights or the registry, each one atomic batch that ends with the act and its number.

The number is expected to be that of the last act known here. If another process was first, its acts are applied, and
the batch is made again of what is true then. Acts of this process are carried out one after another, in the order in
which they were handed over, in a task of their own: a caller that leaves changes nothing of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from storage import checks
from storage.errors import Busy, Failed
from storage.jetstream.acts import ActSaid, Erased, Evicted, Made, Purged, Renewed, encoded, row_at
from storage.jetstream.engine import CONFLICTS, PATIENCE_SECONDS, TOO_LATE, Engine
from storage.nats.errors import JetStreamError, NatsError, Unanswered
from storage.nats.jetstream import EXPECTED_LAST, ROLLUP
from storage.nats.wire import Outgoing
from storage.pending import Pending
from storage.records import Act, NewAuditRow

ACTS_WAITING_MAX: Final = 10_000
"""Acts that were handed over. Beyond: `Busy`."""

CONFLICT_SECONDS_MAX: Final = 0.02
"""Before a batch is made again that came second; drawn by lot."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an act is to store, made of what is known in this moment."""

    answer: Any
    messages: Sequence[Outgoing] = ()
    made: Sequence[Made] = ()
    """What the last of the messages are, in their order."""
    also: Purged | Evicted | Erased | Renewed | None = None
    is_silent: bool = False
    row: NewAuditRow | None = None
    """`None`: it is made of the act that somebody does, if somebody does."""
    is_nothing: bool = False
    """Nothing is to be stored: the answer is known."""
    stored: Callable[[int], None] = field(default=lambda pos: None)
    """Called with the position of the act once it is stored. Must not raise or wait."""


Planning = Callable[[int], Awaitable[Plan]]
"""Makes the plan of the act with this number; may raise what the operation raises."""


@dataclass(slots=True)
class _Job:
    plan: Planning
    act: Act | None
    after: Callable[[], Awaitable[None]] | None
    first: Sequence[Pending[Any]]
    """What was handed over before, and must have its outcome."""
    pending: Pending[Any]


class Acting:
    """Carries out the acts of this process."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is carried out before `run`."""
        self._engine = engine
        self._jobs: deque[_Job] = deque()
        self._came = trio.Event()

    def hand_over(
        self,
        plan: Planning,
        act: Act | None = None,
        *,
        after: Callable[[], Awaitable[None]] | None = None,
        first: Sequence[Pending[Any]] = (),
    ) -> Pending[Any]:
        """Have an act carried out; where its answer will be.

        Args:
            act: an audit row is made of it and of the answer.
            after: what else follows, once it is stored; can be repeated.
            first: what must have its outcome before.

        Raises:
            Busy: too many wait already.
        """
        if len(self._jobs) >= ACTS_WAITING_MAX:
            raise Busy(f"{len(self._jobs)} changes wait for the engine")
        job = _Job(plan, act, after, first, Pending())
        self._jobs.append(job)
        self._came.set()
        return job.pending

    async def run(self) -> None:
        """Carry out what was handed over, until cancelled."""
        while True:
            while self._jobs:
                job = self._jobs[0]
                try:
                    job.pending.answer(await self._carried_out(job))
                except Exception as error:  # noqa: BLE001 - whoever has handed it over gets it
                    job.pending.refuse(error)
                self._jobs.popleft()
            self._came = trio.Event()
            await self._came.wait()

    async def _carried_out(self, job: _Job) -> Any:
        for pending in job.first:
            await pending.done.wait()
        answer = await self._committed(job)
        if job.after is not None:
            await job.after()
        return answer

    async def _committed(self, job: _Job) -> Any:
        unsure: dict[str, Plan] = {}
        """What was sent without an answer, by its id."""
        # Whoever stands behind others in an outage has waited with them.
        left_seconds = PATIENCE_SECONDS - (self._engine.away_seconds or 0.0)
        if left_seconds > PATIENCE_SECONDS * TOO_LATE:
            with trio.move_on_after(left_seconds):
                return await self._try(job, unsure)
        if unsure:
            raise Failed("the engine has not said what became of the change")
        raise Busy("the engine is away")

    async def _try(self, job: _Job, unsure: dict[str, Plan]) -> Any:
        """Store an act, until cancelled; `unsure` then holds what may be stored."""
        engine, this = self._engine, self._engine.new_id()
        attempts = 0
        while True:
            number, sent = engine.known.applied + 1, ""
            attempts += 1
            try:
                plan = await job.plan(number)
                if plan.is_nothing:
                    return plan.answer
                if number != engine.known.applied + 1:
                    continue  # another's act has come meanwhile: what was planned may be wrong
                act = self._said(f"{this}/{attempts}", plan, job.act)
                sent = act.id
                unsure[sent] = plan
                stored = await engine.jetstream.store(self._batch(number, plan, act))
                engine.apply(number, act, stored.pos - 1)
                plan.stored(stored.pos - 1)
                return plan.answer
            except NatsError as error:
                if not isinstance(error, Unanswered):
                    unsure.pop(sent, None)
                if engine.is_passing(error):
                    await engine.wait_a_little()
                    continue
                if not isinstance(error, Unanswered) and not _is_conflict(error):
                    raise Failed(f"the engine refuses: {error}") from error
            await engine.patiently(engine.catch_up)
            for act_id, plan in unsure.items():
                if (pos := engine.applied_at(act_id)) is not None:
                    plan.stored(pos)
                    return plan.answer
            await trio.sleep(CONFLICT_SECONDS_MAX * engine.jitter())

    def _said(self, this: str, plan: Plan, act: Act | None) -> ActSaid:
        at = self._engine.time.moment().wall
        row = plan.row if act is None else self._engine.rows.row_of(act, plan.answer)
        if row is not None:
            checks.check(row)
        return ActSaid(
            this, at, None if row is None else row_at(at, row), list(plan.made), plan.also, is_silent=plan.is_silent
        )

    def _batch(self, number: int, plan: Plan, act: ActSaid) -> Sequence[Outgoing]:
        layout, pos = self._engine.layout, self._engine.known.number_pos
        said = Outgoing(layout.act(number), encoded(act))
        return [*plan.messages, said, replacing(layout.number, str(number).encode(), pos)]


def replacing(subject: str, data: bytes, pos: int) -> Outgoing:
    """A message that takes the place of the one of its subject that lies at this position, and of no other."""
    return Outgoing(subject, data, {EXPECTED_LAST: str(pos), ROLLUP: "sub"})


def _is_conflict(error: NatsError) -> bool:
    return isinstance(error, JetStreamError) and error.err_code in CONFLICTS
