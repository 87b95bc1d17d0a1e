"""`POST /backup`, `POST /check`: look after the database of a running server (PROTOCOL section 8)."""

from __future__ import annotations

import secrets
import time

from quart import Blueprint, Response

from storage.records import NewAuditRow
from web import rights, wire
from web.access import authenticate_for
from web.bodies import answer
from web.services import Services
from web.settings import BACKUPS_DIRECTORY


def maintenance(services: Services) -> Blueprint:
    """Both routes."""
    blueprint = Blueprint("maintenance", __name__)

    @blueprint.post("/backup")
    async def backup() -> Response:
        who = authenticate_for(services, rights.OPERATE)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(services.clock.wall()))
        # The random part keeps two backups of one second apart.
        name = f"avicenna-{stamp}-{secrets.token_hex(4)}.db"
        made = await services.store.backup(services.settings.data.absolute() / BACKUPS_DIRECTORY / name)
        shown = {"path": made.path, "bytes": made.size_bytes, "sha256": made.sha256}
        await services.store.record(
            NewAuditRow(who.sub or "", "database.backup", name, after=wire.encode(shown).decode())
        )
        return answer(shown)

    @blueprint.post("/check")
    async def check() -> Response:
        who = authenticate_for(services, rights.OPERATE)
        problems = list(await services.store.check())
        shown = {"status": "damaged" if problems else "ok", "problems": problems}
        await services.store.record(NewAuditRow(who.sub or "", "database.check", "", after=wire.encode(shown).decode()))
        return answer(shown)

    return blueprint
