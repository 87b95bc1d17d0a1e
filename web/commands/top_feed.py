"""What `top` shows: read from a server again and again, in threads of their own, and handed over as frozen values.

Nothing here knows how it is drawn. Another feed needs to be a `web.commands.top_view.Feed`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from web.commands.answers import Actor, Status
from web.commands.client import Client
from web.commands.failures import CommandFailed, UsageError
from web.commands.top_view import Row, Snapshot

EVERY_SECONDS: Final = 1.0
"""Shortest time between the beginnings of two readings of the same thing."""


@dataclass(frozen=True, slots=True)
class _Read:
    """An actor as it was read."""

    actor: Actor
    at: float
    """On the monotonic clock, in seconds."""
    events_per_second: float
    """Since it was read before; 0 the first time."""


class PollingFeed:
    """Asks for the status once a second, and for the pages of all actors one after another, half of the time."""

    def __init__(self, client: Client, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Read the status and the first page of actors.

        Raises:
            CommandFailed: the server does not answer, or refuses.
        """
        self._client = client
        self._monotonic = monotonic
        self._changing = threading.Lock()
        self._failures = {"status": "", "actors": ""}
        self._read: dict[int | str, _Read] = {}
        self._after: str | None = None
        """Behind which mark the next page begins; `None`: at the first."""
        self._round_began = monotonic()
        self._rows_at: float | None = None
        self._status: Mapping[str, Any] = {}
        self._renew_status()
        self._renew_actors()
        self._snapshot = self._made()

    def start(self) -> None:
        """Begin to read again and again, until the process ends."""
        for name, turn in (("status", self._renew_status), ("actors", self._renew_actors)):
            threading.Thread(target=self._keep_up, args=(name, turn), name=f"top: {name}", daemon=True).start()

    def latest(self) -> Snapshot:
        """The newest snapshot."""
        return self._snapshot

    def _keep_up(self, name: str, turn: Callable[[], bool]) -> None:
        while True:
            began = self._monotonic()
            try:
                is_whole, failure = turn(), ""
            except (CommandFailed, UsageError) as error:
                is_whole, failure = True, str(error)
            self._failures[name] = failure
            with self._changing:
                self._snapshot = self._made()
            took = self._monotonic() - began
            # What takes the server long is asked for half of the time: others get the other half.
            time.sleep(max(EVERY_SECONDS - took, took) if is_whole else took)

    def _renew_status(self) -> bool:
        _, self._status = self._client.request("GET", "ws", "status", answer=Status)
        return True

    def _renew_actors(self) -> bool:
        """Read one page; whether it was the last one of a round."""
        if self._after is None:
            self._round_began = self._monotonic()
        actors, self._after = self._client.page("actors", item=Actor, after=self._after)
        now, read = self._monotonic(), dict(self._read)
        for one in actors:
            before = read.get(one["diagnosis_id"])
            events = 0 if before is None else max(0, one["head"] - before.actor["head"])
            elapsed = 0.0 if before is None else now - before.at
            read[one["diagnosis_id"]] = _Read(one, now, events / elapsed if elapsed else 0.0)
        if self._after is None:
            # What this round has not met was removed.
            read = {name: one for name, one in read.items() if one.at >= self._round_began}
            self._rows_at = self._round_began
        self._read = read
        return self._after is None

    def _made(self) -> Snapshot:
        status, read = self._status, self._read
        connections = status.get("connections_by_diagnosis", {})
        queued = status.get("queued_messages_by_diagnosis", {})
        rows = [row_of(one.actor, connections, queued, one.events_per_second) for one in read.values()]
        failure = next((one for one in self._failures.values() if one), "")
        return Snapshot(self._client.url, status, rows, self._rows_at, failure)


def row_of(
    actor: Actor, connections: Mapping[str, int], queued: Mapping[str, int], events_per_second: float = 0.0
) -> Row:
    """An actor as `top` shows it.

    Args:
        connections: by diagnosis, of the status, which is newer than the actor; without the actor's diagnosis: none.
        queued: as `connections`.
    """
    diagnosis_id, crash = actor["diagnosis_id"], actor["last_crash"]
    key = str(diagnosis_id)
    return Row(
        diagnosis_id,
        actor["state"],
        connections.get(key, 0),
        queued.get(key, 0),
        max((one["lag"] for one in actor["lag"]), default=0),
        actor["mailbox"]["depth"],
        actor["head"],
        events_per_second,
        actor["restarts"],
        actor.get("damage") or ("" if crash is None else f"{crash['at']} {crash['error']}"),
    )
