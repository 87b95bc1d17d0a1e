"""`POST /backup`, `POST /check`: look after the database of a running server (PROTOCOL section 8).

The audit row of either is stored first: a copy holds the row of its own making.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from storage.clock import Clock
from storage.store import Store
from web.contract.exchange import Answer, Handlers, Request, answer
from web.http.bodies import whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.audit_rows import act, row_of
from web.operating.backups import CHECKS, Backups
from web.operating.draining import unless_stopping


def maintenance(
    access: Access,
    store: Store,
    clock: Clock,
    new_id: Callable[[], str],
    data: Path,
    backups: Backups,
    stopping: trio.Event,
) -> Handlers:
    """Both operations.

    Args:
        new_id: 16 hexadecimal digits that never repeat.
        data: the directory of the database.
        backups: the copies it has.
        stopping: interrupts either.
    """
    data = data.absolute()

    async def backup(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        await whole_request(asked)
        path = backups.path_of(clock.wall(), new_id())
        access.judge_token(asked.who)
        await store.record(row_of(act(asked.who, "database.backup", name=path.name, path=str(path))))
        made = await unless_stopping(stopping, partial(store.backup, path), "no copy was made")
        await trio.to_thread.run_sync(backups.drop_old, path.name)
        return answer({"path": made.path, "bytes": made.size_bytes, "sha256": made.sha256})

    async def check(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        await whole_request(asked)
        access.judge_token(asked.who)
        await store.record(row_of(act(asked.who, "database.check")))
        scratch = data / CHECKS.replace("*", new_id())
        problems = list(await unless_stopping(stopping, partial(store.check, scratch), "the check has not ended"))
        return answer({"status": "damaged" if problems else "ok", "problems": problems})

    return {"makeBackup": backup, "checkDatabase": check}
