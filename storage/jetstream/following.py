"""What others do: acts and entries of followed logs, heard of by live copies, and looked for in case one was lost.

A live copy is sent once, by the leader. So acts are also asked for each second, and each followed log is looked at
after a reconnect, a second after it is followed, and at least once within `LOOK_SECONDS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import trio

from storage.changes import Hears
from storage.errors import StoreBroken
from storage.jetstream.engine import BEHIND_SECONDS_MAX, REMEDY, Engine, WentBack
from storage.jetstream.entries import ENDED, Entry, entry_of
from storage.jetstream.layout import number_of
from storage.nats.errors import NatsError
from storage.nats.jetstream import SUBJECTS_MAX
from storage.nats.wire import Message
from storage.news import LOOK, News

ACTS_SECONDS: Final = 1.0
"""Between two looks at the number of the last act. Reason: within it and a second more a right taken away is gone."""

LOOK_SECONDS: Final = 60
"""Each followed log is looked at once within this time."""


class Following:
    """Hears of what others do, and tells."""

    def __init__(self, engine: Engine, wrote: Callable[[str, Entry], None]) -> None:
        """Nothing is heard before `run`.

        Args:
            wrote: called with each entry of another process in a followed log. Must not raise or wait.
        """
        self._engine = engine
        self._wrote = wrote
        self._followed: Counter[str] = Counter()
        self._undo: dict[str, Callable[[], None]] = {}
        self._soon: dict[str, None] = {}
        """Logs to be looked at at the next opportunity."""
        self._looked_at = 0
        self._told: dict[str, int] = {}
        """The position of the newest entry of each followed log that was told."""
        self._hears: Hears | None = None
        self._act_came = trio.Event()
        self._behind_since: float | None = None
        """Since when the engine has fewer acts than were applied here."""

    def tell(self, hears: Hears) -> None:
        """As `Store.tell`, of logs."""
        self._hears = hears

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        """As `EventStore.follow`."""
        layout = self._engine.layout
        if diagnosis_id not in self._followed:
            subject = layout.live_log(diagnosis_id)
            self._undo[diagnosis_id] = self._engine.connection.subscribe(subject, self._heard_of(diagnosis_id))
            self._soon[diagnosis_id] = None
        self._followed[diagnosis_id] += 1

        def unfollow() -> None:
            self._followed[diagnosis_id] -= 1
            if not self._followed[diagnosis_id]:
                del self._followed[diagnosis_id]
                self._told.pop(diagnosis_id, None)
                self._undo.pop(diagnosis_id)()

        return unfollow

    async def run(self) -> None:
        """Hear until cancelled."""
        connection = self._engine.connection
        connection.on_up(self._look_at_all)
        undo = connection.subscribe(self._engine.layout.live_acts, self._heard_act)
        try:
            while not self._engine.broke.is_set():
                with trio.move_on_after(ACTS_SECONDS):
                    await self._act_came.wait()
                is_time_to_look = not self._act_came.is_set()
                self._act_came = trio.Event()
                try:
                    await self._engine.catch_up()
                    self._behind_since = None
                    if is_time_to_look:
                        await self._look()
                except WentBack as error:
                    self._is_behind(error)
                except NatsError:
                    if not connection.up.is_set():
                        await connection.up.wait()
                except StoreBroken as error:
                    self._engine.breaks(str(error))
        finally:
            undo()

    def _is_behind(self, error: WentBack) -> None:
        now = trio.current_time()
        if self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > BEHIND_SECONDS_MAX:
            self._engine.breaks(f"the engine has lost what it had acknowledged: {error}; {REMEDY}")
        self._engine.connection.leave("what it reaches is behind")

    def _heard_act(self, message: Message) -> None:
        if number_of(message.subject) > self._engine.known.applied:
            self._act_came.set()

    def _heard_of(self, diagnosis_id: str) -> Callable[[Message], None]:
        def heard(message: Message) -> None:
            headers = message.headers
            entry = entry_of(
                int(headers.get("Nats-Sequence", "0")),
                headers,
                message.data,
                generation=self._engine.known.generation,
            )
            if entry is None or entry.kind == ENDED:
                self._tell(diagnosis_id, LOOK, 0)
            elif entry.node != self._engine.node:
                self._wrote(diagnosis_id, entry)
                self._tell(diagnosis_id, _news_of(entry), entry.pos)

        return heard

    def _tell(self, diagnosis_id: str, news: News, pos: int) -> None:
        self._engine.saw(diagnosis_id, pos)
        self._told[diagnosis_id] = max(pos, self._told.get(diagnosis_id, 0))
        if self._hears is not None:
            self._hears.grew(diagnosis_id, news)

    def _look_at_all(self) -> None:
        self._soon.update(dict.fromkeys(self._followed))
        self._act_came.set()

    async def _look(self) -> None:
        """Look at some of the followed logs: those for which something may have been missed, and a share of all."""
        followed = sorted(self._followed)
        count = -(-len(followed) // LOOK_SECONDS)
        share = [followed[(self._looked_at + number) % len(followed)] for number in range(count)]
        self._looked_at += count
        chosen = list(dict.fromkeys([*self._soon, *share]))[:SUBJECTS_MAX]
        for diagnosis_id in chosen:
            self._soon.pop(diagnosis_id, None)
        await self._compare([one for one in chosen if one in self._followed])

    async def _compare(self, diagnosis_ids: Sequence[str]) -> None:
        if not diagnosis_ids:
            return
        engine = self._engine
        by_subject = {engine.layout.log(one): one for one in diagnosis_ids}
        for found in await engine.jetstream.direct(engine.layout.main, {"multi_last": list(by_subject)}):
            diagnosis_id = by_subject[found.subject]
            if found.pos > max(engine.written(diagnosis_id), self._told.get(diagnosis_id, 0)):
                self._tell(diagnosis_id, LOOK, found.pos)


def _news_of(entry: Entry) -> News:
    return News(entry.window, (entry.event,) if entry.is_event else ())
