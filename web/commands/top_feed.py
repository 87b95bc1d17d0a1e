"""What `top` shows: read from `GET /console/events`, in a thread of its own, and handed over as frozen values.

The stream says once what there is, and then once a second what has changed (PROTOCOL section 8.32). `Picture` puts that
together, and is pure. Nothing here knows how it is drawn.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from web.commands.answers import ConsoleFigures, ConsoleMessage, ConsoleRow, is_a
from web.commands.arguments import reference
from web.commands.client import Client
from web.commands.failures import CommandFailed, RefusedByServer, UsageError
from web.commands.following import POLICY, Backoff, code_of
from web.commands.top_view import Row, Snapshot

SILENT_SECONDS_MAX: Final = 30
"""Longest wait for a part of the stream. Beyond: the server counts as unreachable. Reason: it speaks every second."""


class Strange(Exception):
    """A message that is none of this stream."""


class Picture:
    """All rows and figures, as the messages of one stream after another say them."""

    def __init__(self) -> None:
        self.rows: Sequence[Row] = ()
        """As of the last turn; the same object until one of them changes."""
        self.figures: dict[str, Any] = {}
        self.events_per_second = 0.0
        self.deliveries_per_second = 0.0
        self.turned_at: float | None = None
        """When the last turn came, on the monotonic clock, in seconds; `None`: none did."""
        self._columns: Sequence[str] = ()
        self._rows: dict[str, Row] = {}
        self._heads: dict[str, int] = {}
        """Of the rows that came since the last turn: the head before."""
        self._busy: set[str] = set()
        """Ids of rows that say something is published."""
        self._has_changed = False
        self._is_new = True
        """The stream has begun: nothing can be compared with what was before."""

    def take(self, message: ConsoleMessage, now: float) -> bool:
        """Take a message in; whether a turn is complete.

        Raises:
            Strange: it has not the form of one.
        """
        kind, data = message["type"], message["data"]
        try:
            match kind:
                case "snapshot":
                    self._columns, self._rows, self._heads, self._busy = data["columns"], {}, {}, set()
                    self._has_changed = self._is_new = True
                case "rows":
                    self._take_rows(data["rows"], data["gone"])
                case "turn":
                    self._turn(data["node"], now)
                    return True
        except (LookupError, TypeError, ValueError):
            raise Strange from None
        return False

    def _take_rows(self, rows: Sequence[Any], gone: Sequence[str]) -> None:
        for values in rows:
            facts: Any = dict(zip(self._columns, values, strict=True))
            if not is_a(facts, ConsoleRow):
                raise Strange
            name = facts["diagnosis_id"]
            before = self._rows.get(name)
            if before is not None:
                self._heads.setdefault(name, before.head)
            self._rows[name] = row_of(facts)
        for name in gone:
            self._rows.pop(name, None)
            self._heads.pop(name, None)
        self._has_changed = self._has_changed or bool(rows or gone)

    def _turn(self, changed: dict[str, Any], now: float) -> None:
        figures = changed if self._is_new else {**self.figures, **changed}
        if not is_a(figures, ConsoleFigures):
            raise Strange
        seconds = 0.0 if self._is_new or self.turned_at is None else now - self.turned_at
        self.events_per_second = self._rate("events", figures, seconds)
        self.deliveries_per_second = self._rate("deliveries", figures, seconds)
        busy = {name for name, head in self._heads.items() if seconds and self._rows[name].head > head}
        for name in busy:
            row = self._rows[name]
            self._rows[name] = replace(row, events_per_second=(row.head - self._heads[name]) / seconds)
        for name in self._busy.difference(busy).intersection(self._rows):
            self._rows[name] = replace(self._rows[name], events_per_second=0.0)
        if self._has_changed or busy != self._busy:
            self.rows = tuple(self._rows.values())
        self.figures, self.turned_at, self._busy, self._heads = figures, now, busy, {}
        self._has_changed = self._is_new = False

    def _rate(self, name: str, figures: dict[str, Any], seconds: float) -> float:
        return max(0.0, figures[name] - self.figures[name]) / seconds if seconds else 0.0


def row_of(facts: ConsoleRow) -> Row:
    """A row of the stream, as `top` shows it."""
    return Row(
        reference(facts["diagnosis_id"]),
        facts["state"],
        facts["subscribers"],
        facts["unacknowledged"],
        facts["lag"],
        facts["mailbox"],
        facts["head"],
        0.0,
        facts["restarts"],
        facts["damage"] or ("" if facts["crash"] is None else f"{facts['crashed_at']} {facts['crash']}"),
    )


class ConsoleFeed:
    """Follows the stream, and comes back when it ends."""

    def __init__(
        self,
        client: Client,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Read the first turn.

        Raises:
            CommandFailed: the server does not answer, or refuses.
        """
        self._client = client
        self._monotonic = monotonic
        self._backoff = Backoff(jitter)
        self._picture = Picture()
        self._retry_after_ms: object = None
        self._turns = self._followed()
        self._snapshot = Snapshot(client.url, {}, (), 0.0, 0.0, None)
        self.next_turn()

    def latest(self) -> Snapshot:
        """The newest snapshot."""
        return self._snapshot

    def start(self) -> None:
        """Begin to follow, until the process ends."""
        threading.Thread(target=self._follow, name="top", daemon=True).start()

    def next_turn(self) -> None:
        """Wait for a turn, and take it in. Raises as `Client.messages`; `CommandFailed` also where the stream ends."""
        next(self._turns)
        self._make("")

    def _follow(self) -> None:
        while True:
            try:
                self.next_turn()
                self._backoff.reset()
            except (CommandFailed, UsageError) as failure:
                self._make(str(failure))
                time.sleep(self._backoff.seconds(self._retry_after_ms))
                self._turns = self._followed()

    def _make(self, failure: str) -> None:
        picture = self._picture
        rates = picture.events_per_second, picture.deliveries_per_second
        self._snapshot = Snapshot(self._client.url, picture.figures, picture.rows, *rates, picture.turned_at, failure)

    def _followed(self) -> Iterator[None]:
        """One stream after another, while each ends for a newer token. A value for each turn."""
        while True:
            token = self._client.credentials.token()
            for message in self._client.messages("console", "events", seconds_max=SILENT_SECONDS_MAX):
                match message["type"]:
                    case "auth_expiring" if self._client.credentials.renewable:
                        # A stream takes no newer token.
                        if self._client.credentials.token() != token:
                            break
                    case "bye":
                        raise self._ended(message["data"])
                    case _:
                        try:
                            is_turn = self._picture.take(message, self._monotonic())
                        except Strange:
                            raise self._client.strange() from None
                        if is_turn:
                            yield
            else:
                self._retry_after_ms = None
                raise CommandFailed(f"{self._client.url} has ended the stream")

    def _ended(self, bye: Any) -> CommandFailed:
        code, reason = bye.get("code"), str(bye.get("reason"))
        self._retry_after_ms = bye.get("retry_after_ms")
        text = f"{self._client.url} has ended the stream: {reason}"
        return RefusedByServer(code_of(POLICY, reason), text, text) if code == POLICY else CommandFailed(text)
