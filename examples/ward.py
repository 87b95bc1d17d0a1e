"""Follows diagnoses on Trio, and applies each update exactly once: effect and position are one transaction.

AVICENNA_TOKEN=... python ward.py http://127.0.0.1:8000 ward.db 42 43
"""

from __future__ import annotations

import os
import sqlite3
import sys

import trio

from avicenna_live import DiagnosisId, Event, Follower, Gap, Position, Reset

TABLES = """
CREATE TABLE IF NOT EXISTS applied (
    diagnosis TEXT, epoch TEXT, seq INTEGER, type TEXT, PRIMARY KEY (diagnosis, epoch, seq)
);
CREATE TABLE IF NOT EXISTS position (diagnosis TEXT PRIMARY KEY, epoch TEXT, seq INTEGER);
"""


class Ward:
    """What this program knows, in a database of its own."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path)
        self._db.executescript(TABLES)

    def load(self, diagnosis_id: DiagnosisId) -> Position | None:
        """Where to go on; the client asks before it connects."""
        query = "SELECT epoch, seq FROM position WHERE diagnosis = ?"
        row = self._db.execute(query, (str(diagnosis_id),)).fetchone()
        return None if row is None else Position(*row)

    def save(self, diagnosis_id: DiagnosisId, position: Position) -> None:
        """The client asks for it once a step is done. An event has saved its position already, a gap has not."""
        with self._db:
            self._move(diagnosis_id, position)

    def apply(self, event: Event) -> None:
        """The effect of an event, and the position behind it: both, or none."""
        with self._db:
            row = (str(event.diagnosis_id), event.epoch, event.seq, event.type)
            self._db.execute("INSERT INTO applied VALUES (?, ?, ?, ?)", row)
            self._move(event.diagnosis_id, Position(event.epoch, event.seq))

    def _move(self, diagnosis_id: DiagnosisId, position: Position) -> None:
        row = (str(diagnosis_id), position.epoch, position.seq)
        self._db.execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", row)


async def follow(live: Follower, ward: Ward, diagnosis_id: str) -> None:
    """Follow one diagnosis until it ends."""
    async for item in live.follow(diagnosis_id):
        match item:
            case Gap(first, last, reason):
                print(f"{diagnosis_id}: {first} to {last} are gone ({reason})", flush=True)
            case Reset():
                print(f"{diagnosis_id}: begins anew", flush=True)
            case Event():
                ward.apply(item)
                print(f"{diagnosis_id}: applied {item.seq}", flush=True)


async def main(url: str, path: str, diagnoses: list[str]) -> None:
    """Follow all of them side by side; if one is refused for good, the program ends."""
    ward = Ward(path)
    async with (
        Follower(url, token=os.environ["AVICENNA_TOKEN"], device="ward", store=ward) as live,
        trio.open_nursery() as nursery,
    ):
        for diagnosis_id in diagnoses:
            nursery.start_soon(follow, live, ward, diagnosis_id)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
