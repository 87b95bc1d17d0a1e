"""Both trails: the audit trail lies in the acts, the access trail in a stream of its own, with its names beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec
import trio

from storage.errors import Busy, Failed
from storage.jetstream import acts
from storage.jetstream.acts import ActSaid, Row
from storage.jetstream.engine import LAG_SECONDS, PATIENCE_SECONDS, Engine
from storage.jetstream.layout import digest, number_of
from storage.nats.errors import NatsError, Unanswered
from storage.nats.jetstream import BATCH_MESSAGES_MAX, ROLLUP, SUBJECTS_MAX, Found
from storage.nats.wire import Outgoing
from storage.records import AccessRow, AuditRow, Erasure, NewAccessRow, SubscriberId, TrailFilter

ERASED_NAME: Final = "[erased]"
"""What stands in the access trail in the place of a name that is gone."""

ACTS_AT_ONCE: Final = 200
"""Read at once, going back. Reason: each has two subjects, and the engine answers 1024 at once."""

ROWS_AT_ONCE: Final = 400
"""Rows of the access trail that are read at once, going back."""

NAMES_KNOWN_MAX: Final = 50_000
"""Names of the access trail that this process remembers to have stored. Beyond: they are stored again."""

LAGGING_READS_MAX: Final = 6
"""Reads in which the newest act may be missing. Beyond: it is gone."""


class AccessSaid(msgspec.Struct, frozen=True):
    """A row of the access trail as it is stored."""

    at: float
    what: str
    diagnosis_id: str
    sub: str
    who: str
    """Both digests: of the subject, and of the subscriber."""


class _Numbered(NamedTuple):
    number: int
    act: ActSaid
    is_twice: bool
    """It was rewritten, and its original is still there: an erasure was cut off between the two."""


def fits(wanted: TrailFilter, who: str | None, what: str, diagnosis_id: str | None, at: float) -> bool:
    """Whether a row is one of those that are wanted."""
    pairs = ((wanted.who, who), (wanted.what, what), (wanted.diagnosis_id, diagnosis_id))
    if any(given is not None and given != found for given, found in pairs):
        return False
    return (wanted.since is None or at >= wanted.since) and (wanted.until is None or at < wanted.until)


class Trails:
    """The trails of an installation."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is read yet."""
        self._engine = engine
        self._names: set[str] = set()
        self._newest_row = 0
        """The position of the newest row of the access trail that this process has stored; 0: none."""
        self.first_act = 1
        """No act with a lower number is stored."""

    async def load(self) -> None:
        """Learn where the acts begin. To be called patiently."""
        layout = self._engine.layout
        found = [
            (await self._engine.jetstream.first(layout.main, subject))[0]
            for subject in (layout.all_acts, layout.all_rewritten)
        ]
        numbers = [number_of(one.subject) for one in found if one is not None]
        self.first_act = min(numbers, default=self._engine.known.applied + 1)

    # The audit trail

    async def _acts(self, low: int, high: int) -> Sequence[_Numbered]:
        """The acts with these numbers, lowest first, each as an erasure has left it. To be called patiently."""
        layout, engine = self._engine.layout, self._engine
        subjects = [name(number) for number in range(low, high + 1) for name in (layout.act, layout.rewritten)]
        found: dict[int, list[Found]] = {}
        for attempt in range(LAGGING_READS_MAX):
            found.clear()
            for one in await engine.jetstream.direct(layout.main, {"multi_last": subjects}):
                found.setdefault(number_of(one.subject), []).append(one)
            if high in found:
                break
            await trio.sleep(LAG_SECONDS * 2.0**attempt)
        # What was rewritten lies behind its original.
        return [
            _Numbered(number, acts.decoded(ones[-1].data), is_twice=len(ones) > 1)
            for number, ones in sorted(found.items())
        ]

    async def audit(self, before: int | None, wanted: TrailFilter, limit: int) -> Sequence[AuditRow]:
        """The wanted rows, newest first."""
        rows: list[AuditRow] = []
        high = self._engine.known.applied if before is None else min(before - 1, self._engine.known.applied)
        while high >= self.first_act and len(rows) < limit:
            low = max(self.first_act, high - ACTS_AT_ONCE + 1)
            found = await self._engine.patiently(partial(self._acts, low, high))
            for number, act, _ in reversed(found):
                row = act.row
                if row is not None and fits(wanted, row.who, row.what, row.diagnosis_id, row.at):
                    rows.append(row.numbered(number))
            high = low - 1
        return rows[:limit]

    async def problems(self) -> Sequence[str]:
        """The acts that are missing, in words."""
        missing: list[str] = []
        low, last = self.first_act, self._engine.known.applied
        while low <= last:
            high = min(low + ACTS_AT_ONCE - 1, last)
            there = {one.number for one in await self._engine.patiently(partial(self._acts, low, high))}
            missing += [f"act {number} is missing" for number in range(low, high + 1) if number not in there]
            low = high + 1
        return missing

    async def expire_acts(self, before: float, limit: int) -> int:
        """Drop acts that are older, and all below them, but for the newest; how many rows they had."""
        layout, rows = self._engine.layout, 0
        last, at = self.first_act - 1, self.first_act
        # An act goes with all of a lower number: the highest old one is looked for first.
        numbered: list[_Numbered] = []
        while at < self._engine.known.applied:
            high = min(at + ACTS_AT_ONCE - 1, self._engine.known.applied - 1)
            page = await self._engine.patiently(partial(self._acts, at, high))
            numbered += page
            at = high + 1
            if not any(one.act.at < before for one in page) or len(numbered) > limit + 2 * ACTS_AT_ONCE:
                break
        highest = max((one.number for one in numbered if one.act.at < before), default=0)
        for number, act, _ in numbered:
            if number > highest or rows == limit:
                break
            rows += act.row is not None
            last = number
        if last < self.first_act:
            return 0
        for number in range(self.first_act, last + 1):
            for subject in (layout.act(number), layout.rewritten(number)):
                await self._engine.patiently(partial(self._engine.jetstream.purge, layout.main, subject))
        self.first_act = last + 1
        return rows

    async def rewrite(self, erasure: Erasure) -> int:
        """Write all acts anew in which a person is named; how many rows were changed."""
        layout, rows, low = self._engine.layout, 0, self.first_act
        last = self._engine.known.applied
        while low <= last:
            high = min(low + ACTS_AT_ONCE - 1, last)
            page = await self._engine.patiently(partial(self._acts, low, high))
            for number, act, is_twice in page:
                original = partial(self._engine.jetstream.purge, layout.main, layout.act(number))
                if is_twice:
                    await self._engine.patiently(original)
                text = acts.encoded(act).decode()
                if not any(spelling in text for spelling in (erasure.sub, *erasure.spellings)):
                    continue
                row = act.row
                if row is not None:
                    new = self._engine.rows.without_name(row.numbered(number), erasure)
                    changed = Row(new.at, new.who, new.what, new.target, new.before, new.after, new.diagnosis_id)
                    rows += changed != row
                    row = changed
                stripped = ActSaid(act.id, act.at, row, is_silent=True, is_stripped=bool(act.made) or act.is_stripped)
                if stripped == act:
                    continue
                message = Outgoing(layout.rewritten(number), acts.encoded(stripped), {ROLLUP: "sub"})
                await self._engine.patiently(partial(self._engine.jetstream.store, [message]))
                await self._engine.patiently(original)
            low = high + 1
        return rows

    # The access trail

    async def record(self, rows: Sequence[NewAccessRow]) -> None:
        """Store rows, all or none up to what a batch holds, with the names that may not be there yet."""
        for at in range(0, len(rows), BATCH_MESSAGES_MAX // 2):
            await self._record(rows[at : at + BATCH_MESSAGES_MAX // 2])

    async def _record(self, rows: Sequence[NewAccessRow]) -> None:
        engine, layout = self._engine, self._engine.layout
        names = {layout.who(one.subscriber): one.subscriber for one in rows}
        new = {subject: one for subject, one in names.items() if subject not in self._names}
        messages = [
            Outgoing(subject, msgspec.json.encode([one.sub, one.device]), {ROLLUP: "sub"})
            for subject, one in new.items()
        ]
        for row in rows:
            who = row.subscriber
            said = AccessSaid(row.at, row.what, row.diagnosis_id, digest(who.sub), digest(who.sub, who.device))
            messages.append(Outgoing(layout.row, msgspec.json.encode(said)))
        deadline = trio.current_time() + PATIENCE_SECONDS
        while trio.current_time() < deadline:
            try:
                stored = await engine.jetstream.store(messages)
            except Unanswered as error:
                raise Failed("the engine has not said what became of the rows") from error
            except NatsError as error:
                if not engine.is_passing(error):
                    raise Failed(f"the engine refuses: {error}") from error
                await engine.wait_a_little()
                continue
            if len(self._names) + len(new) > NAMES_KNOWN_MAX:
                self._names.clear()
            self._names.update(new)
            self._newest_row = stored.pos
            return
        raise Busy("the engine is away")

    async def accesses(self, before: int | None, wanted: TrailFilter, limit: int) -> Sequence[AccessRow]:
        """The wanted rows, newest first."""
        engine, layout = self._engine, self._engine.layout
        state = await engine.patiently(partial(engine.jetstream.state, layout.accesses))
        rows: list[AccessRow] = []
        high = state.last_pos if before is None else min(before - 1, state.last_pos)
        wanted_sub = None if wanted.who is None else digest(wanted.who)
        while high >= max(1, state.first_pos) and len(rows) < limit:
            low = max(1, high - ROWS_AT_ONCE + 1)
            found = await engine.patiently(partial(self._rows, low, high))
            # A name is judged by its digest: it may be gone.
            chosen = [
                (pos, said)
                for pos, said in reversed(found)
                if fits(wanted, wanted.who, said.what, said.diagnosis_id, said.at) and wanted_sub in (None, said.sub)
            ]
            subjects = sorted({f"{layout.name}t.who.{said.sub}.{said.who}" for _, said in chosen})
            names = await engine.patiently(partial(self._who, subjects))
            for pos, said in chosen:
                name = names.get(f"{layout.name}t.who.{said.sub}.{said.who}")
                if wanted.who is None or name is not None:
                    who = SubscriberId(ERASED_NAME, None) if name is None else name
                    rows.append(AccessRow(pos, said.at, said.what, said.diagnosis_id, who))
            high = low - 1
        return rows[:limit]

    async def _rows(self, low: int, high: int) -> Sequence[tuple[int, AccessSaid]]:
        layout = self._engine.layout
        # One more than wanted: whoever has a later one has all of these.
        asked = {"seq": low, "next_by_subj": layout.row, "batch": high - low + 2}
        found: Sequence[Found] = ()
        for attempt in range(LAGGING_READS_MAX):
            found = await self._engine.jetstream.direct(layout.accesses, asked)
            if self._newest_row < low or (found and found[-1].pos >= min(self._newest_row, high + 1)):
                break
            await trio.sleep(LAG_SECONDS * 2.0**attempt)
        return [(one.pos, msgspec.json.decode(one.data, type=AccessSaid)) for one in found if one.pos <= high]

    async def _who(self, subjects: Sequence[str]) -> dict[str, SubscriberId]:
        accesses, names = self._engine.layout.accesses, dict[str, SubscriberId]()
        for at in range(0, len(subjects), SUBJECTS_MAX):
            asked = subjects[at : at + SUBJECTS_MAX]
            found = {one.subject: one for one in await self._engine.jetstream.direct(accesses, {"multi_last": asked})}
            for subject in asked:
                # A replica may not have it yet; else it was erased.
                if (one := found.get(subject) or await self._engine.last(accesses, subject)) is not None:
                    sub, device = msgspec.json.decode(one.data, type=tuple[str | None, str | None])
                    names[subject] = SubscriberId(sub, device)
        return names

    async def erase_names(self, sub: str) -> int:
        """Have no row of the access trail name a person any more; how many did."""
        engine, layout = self._engine, self._engine.layout
        gone = await engine.patiently(partial(engine.jetstream.purge, layout.accesses, layout.who_by(sub)))
        self.names_are_gone()
        if not gone:
            return 0
        state = await engine.patiently(partial(engine.jetstream.state, layout.accesses))
        its, rows = digest(sub), 0
        for low in range(max(1, state.first_pos), state.last_pos + 1, ROWS_AT_ONCE):
            page = await engine.patiently(partial(self._rows, low, min(low + ROWS_AT_ONCE - 1, state.last_pos)))
            rows += sum(said.sub == its for _, said in page)
        return rows

    def names_are_gone(self) -> None:
        """Somebody was erased: what was stored may be gone."""
        self._names.clear()

    async def expire_accesses(self, before: float, limit: int) -> int:
        """Drop rows that are older, and all below them; how many."""
        engine, layout = self._engine, self._engine.layout
        page = await engine.patiently(partial(engine.page, layout.accesses, layout.row, 1))
        said = [msgspec.json.decode(one.data, type=AccessSaid) for one in page]
        count = min(limit, max((number for number, one in enumerate(said, start=1) if one.at < before), default=0))
        if not count:
            return 0
        last = page[count - 1].pos
        return await engine.patiently(partial(engine.jetstream.purge, layout.accesses, layout.row, before=last + 1))
