"""`POST /backup`, `POST /check`: look after the database of a running server (PROTOCOL section 8).

The audit row of either is stored first: a copy holds the row of its own making.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Final

from quart import Blueprint, Response

from storage.records import NewAuditRow
from web.contract import wire
from web.http.bodies import answer, whole_request
from web.identity import rights
from web.identity.access import authenticate_for
from web.identity.judging import judge_token
from web.operating.draining import unless_draining
from web.server.services import Services
from web.server.settings import BACKUPS_DIRECTORY

BACKUPS: Final = "avicenna-*.db"
"""What copies in `backups/` are called."""

CHECKS: Final = "check-*.db"
"""What copies in the data directory are called that are checked."""


def maintenance(services: Services) -> Blueprint:
    """Both routes."""
    blueprint = Blueprint("maintenance", __name__)

    @blueprint.post("/backup")
    async def backup() -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(services.clock.wall()))
        # The random part keeps two backups of one second apart.
        name = BACKUPS.replace("*", f"{stamp}-{secrets.token_hex(4)}")
        path = services.settings.data.absolute() / BACKUPS_DIRECTORY / name
        after = wire.encode({"path": str(path)}).decode()
        judge_token(services, who)
        await services.store.record(NewAuditRow(who.sub or "", "database.backup", name, after=after))
        made = await unless_draining(services, partial(services.store.backup, path), "no copy was made")
        return answer({"path": made.path, "bytes": made.size_bytes, "sha256": made.sha256})

    @blueprint.post("/check")
    async def check() -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        judge_token(services, who)
        await services.store.record(NewAuditRow(who.sub or "", "database.check", ""))
        scratch = services.settings.data.absolute() / CHECKS.replace("*", secrets.token_hex(8))
        problems = list(
            await unless_draining(services, partial(services.store.check, scratch), "the check has not ended")
        )
        return answer({"status": "damaged" if problems else "ok", "problems": problems})

    return blueprint
