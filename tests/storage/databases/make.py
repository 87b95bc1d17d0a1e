"""Makes the database of the current schema that later versions must open: `python -m tests.storage.databases.make`.

Run it once, with the last commit of a schema, and commit both files: the database (`version-N.db`, closed in order) and
what it holds (`version-N.json`). A file that is there is never made again: it is what that version really wrote.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import trio

from storage.records import Act, Appended, CursorMove, NewAccessRow, NewAuditRow, NewEvent, Seq, SubscriberId
from storage.sqlite.opening import open_store
from storage.sqlite.schema import MIGRATIONS
from storage.store import Store
from tests.storage.rows import ROWS

HERE: Final = Path(__file__).parent
BEGAN_AT: Final = 1_790_000_000.0
PHONE: Final = SubscriberId("patient-1", "phone")
ANYBODY: Final = SubscriberId(None, None)


class SteadyClock:
    """Moves on by a second at each look."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def wall(self) -> float:
        return BEGAN_AT + next(self._seconds)

    def monotonic(self) -> float:
        return float(next(self._seconds))


async def fill(store: Store) -> None:
    """Something of everything a store can hold."""
    registering = Act("registrar", "diagnosis.register", {"target": "full", "after": '{"owner":"doctor-1"}'})
    await store.register("empty", "doctor-1", [], registering)
    full = (await store.register("full", "doctor-1", ["patient-1", "patient-2"], registering)).diagnosis
    purged = (await store.register("purged", "doctor-2", [], registering)).diagnosis
    await store.register("gone", "doctor-2", [], registering)
    for number in range(1, 131):
        key = f"key-{number}" if number % 10 == 0 else None
        event = NewEvent(
            "feedback_update", b'{"feedback_id":%d,"rating":5,"effectiveness":null}' % number, key, b"digest"
        )
        for diagnosis_id in ("full", "gone"):
            await store.append_nowait(diagnosis_id, [event]).wait()
    for number in range(1, 8):
        await store.append_nowait("purged", [NewEvent("feedback_update", b'{"feedback_id":%d}' % number)]).wait()
    await store.purge("purged")
    await store.append_nowait("purged", [NewEvent("feedback_update", b'{"feedback_id":8}')]).wait()
    await store.move_cursors([CursorMove("full", PHONE, full.epoch, Seq(0), BEGAN_AT)])
    await store.move_cursors(
        [
            CursorMove("full", PHONE, full.epoch, Seq(117), BEGAN_AT + 5),
            CursorMove("full", ANYBODY, full.epoch, Seq(40), BEGAN_AT + 6),
            CursorMove("purged", PHONE, purged.epoch, Seq(3), BEGAN_AT + 7),
        ]
    )
    await store.revoke(sub="thief")
    await store.revoke(token_id="stolen-token")
    await store.record(NewAuditRow("op", "actor.restart", "full", before='{"state":"running"}'))
    await store.record_accesses(
        [
            NewAccessRow(BEGAN_AT + 8, "connect", "full", PHONE),
            NewAccessRow(BEGAN_AT + 9, "disconnect", "full", PHONE),
        ]
    )
    await store.delete("gone")


async def described(store: Store) -> dict[str, Any]:
    """What a store holds, as far as every version must keep it."""
    diagnoses = {}
    for one in await store.diagnoses(limit=1000):
        found = await store.read_after(one.diagnosis_id, Seq(0))
        window = found.window
        diagnoses[one.diagnosis_id] = {
            "owner": one.owner,
            "viewers": list(one.viewers),
            "created_at": one.created_at,
            "epoch": one.epoch,
            "head": window.head,
            "floor": window.floor,
            "purged": window.purged,
            "events": [[event.seq, event.at, event.kind, event.body.decode()] for event in found.events],
            "cursors": [
                [move.subscriber.sub, move.subscriber.device, move.epoch, move.seq, move.seen_at, move.acknowledged_at]
                for move in await store.cursors(one.diagnosis_id)
            ],
        }
    return {
        "diagnoses": diagnoses,
        "revocations": [[one.number, one.sub, one.token_id, one.at] for one in await store.revocations()],
        "audit": [
            [row.number, row.at, row.who, row.what, row.target, row.before, row.after] for row in await store.audit()
        ],
        "accesses": [
            [row.number, row.at, row.what, row.diagnosis_id, row.subscriber.sub, row.subscriber.device]
            for row in await store.accesses()
        ],
    }


async def key_is_known(store: Store, diagnosis_id: str, key: str) -> bool:
    """Whether the event this key made in `fill` is found again by it."""
    number = int(key.removeprefix("key-"))
    event = NewEvent("feedback_update", b'{"feedback_id":%d,"rating":5,"effectiveness":null}' % number, key, b"digest")
    (outcome,) = await store.append_nowait(diagnosis_id, [event]).wait()
    return isinstance(outcome, Appended) and outcome.replayed and outcome.seq == number


async def make(target: Path) -> None:
    """Make both files."""
    clock, epochs = SteadyClock(), itertools.count(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "avicenna.db"
        async with open_store(path, clock=clock, new_epoch=lambda: f"epoch{next(epochs)}", rows=ROWS) as store:
            await fill(store)
            held = await described(store)
        target.write_bytes(path.read_bytes())
    target.with_suffix(".json").write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    wanted = HERE / f"version-{len(MIGRATIONS)}.db"
    if wanted.exists():
        sys.exit(f"{wanted.name} is there already")
    trio.run(make, wanted)
