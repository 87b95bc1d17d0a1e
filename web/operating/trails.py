"""`GET /audit`, `GET /accesses`: what was done, and who followed what, newest first (PROTOCOL section 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from storage.records import AccessRow, AuditRow, TrailFilter
from storage.store import TrailStore
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.paging import PAGE_BYTES_MAX, page_of
from web.contract.records import diagnosis_id_as_json, diagnosis_id_of
from web.identity import rights
from web.identity.access import require

TIME_RULE: Final = "must be a time of RFC 3339, such as 2026-01-31T12:00:00Z"

SHOWN_EARLIER_SECONDS: Final = 0.000_000_5
"""Times are shown rounded to microseconds and cut to milliseconds, so a row up to this much earlier is shown with the
same time. Reason: a row is among the rows since its own `at`, and not among those before it."""

_TIME: Final = re.compile(
    r"([0-9]{4})(-[0-9]{2}-[0-9]{2})[Tt ]((?:[01][0-9]|2[0-3]):[0-5][0-9]:)([0-9]{2})([.][0-9]{1,20})?"
    r"([Zz]|[+ -][0-9]{2}:[0-5][0-9])"
)


def trails(store: TrailStore) -> Handlers:
    """Both operations."""

    async def audit(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        page, wanted = page_of(asked.query), _filter(asked.query, "actor", "action")
        found = await store.audit(before=page.before, limit=page.limit + 1, wanted=wanted, bytes_max=PAGE_BYTES_MAX)
        return answer(page.of(found, _shown_act, lambda row: str(row.number)))

    async def accesses(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        page, wanted = page_of(asked.query), _filter(asked.query, "user_id", "what")
        found = await store.accesses(before=page.before, limit=page.limit + 1, wanted=wanted)
        return answer(page.of(found, _shown_access, lambda row: str(row.number)))

    return {"listActs": audit, "listAccesses": accesses}


def time_of(text: str) -> float | None:
    """A time of RFC 3339 in seconds since the Unix epoch; `None`: it is none.

    A space before an offset is a `+` that nobody escaped in a URL.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, date, minute, second, fraction, zone = found.groups()
    # Python knows no year 0 and no leap second. The year 4 has the same days, and no row is as old.
    year = "0004" if year == "0000" else year
    extra = float(fraction or 0)
    if second == "60":
        second, extra = "59", extra + 1
    zone = zone.upper().replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{year}{date}T{minute}{second}{zone}").timestamp() + extra
    except ValueError:
        return None


def _filter(query: Mapping[str, str], who: str, what: str) -> TrailFilter:
    """The rows a query asks for; `who` and `what` are the names of its parameters for the two.

    Raises:
        Problem: a parameter is not what it must be.
    """
    diagnosis_id = query.get("diagnosis_id")
    return TrailFilter(
        who=query.get(who),
        what=query.get(what),
        diagnosis_id=None if diagnosis_id is None else diagnosis_id_of(diagnosis_id),
        since=_time(query, "since"),
        until=_time(query, "until"),
    )


def _time(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    at = time_of(text)
    if at is None:
        raise Problem("invalid_field", f"{name} {TIME_RULE}")
    return at - SHOWN_EARLIER_SECONDS


def _shown_act(row: AuditRow) -> dict[str, object]:
    return {
        "id": row.number,
        "at": wire.timestamp(row.at),
        "actor": row.who,
        "action": row.what,
        "target": row.target,
        "diagnosis_id": None if row.diagnosis_id is None else diagnosis_id_as_json(row.diagnosis_id),
        "before": _state(row.before),
        "after": _state(row.after),
    }


def _shown_access(row: AccessRow) -> dict[str, object]:
    return {
        "id": row.number,
        "at": wire.timestamp(row.at),
        "what": row.what,
        "diagnosis_id": diagnosis_id_as_json(row.diagnosis_id),
        "user_id": row.subscriber.sub,
        "device": row.subscriber.device,
    }


def _state(text: str | None) -> object:
    """What an act found or left; stored as JSON, and shown as what it is. `None`: there was nothing."""
    try:
        return None if text is None else wire.decode_json(text.encode())
    except ValueError:
        return {"damaged": text}  # by the disk
