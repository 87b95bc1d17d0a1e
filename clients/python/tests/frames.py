"""Frames as the server sends them (PROTOCOL section 4), for tests of the core and for a server that is scripted."""

from __future__ import annotations

import json
from typing import Any

EPOCH = "e1"


def frame(kind: str, data: dict[str, Any] | None = None, **fields: object) -> str:
    return json.dumps(
        {"type": kind, "diagnosis_id": 42, "timestamp": "2026-11-27T10:00:00.123456Z", "data": data, **fields}
    )


def connect(
    *, resume: str = "fresh", head: int = 0, floor: int = 0, queued: int = 0, missed: int = 0, epoch: str = EPOCH,
    ack: str | None = "app",
) -> str:  # fmt: skip
    data = {"resume": resume, "head": head, "floor": floor, "queued": queued, "missed": missed, "epoch": epoch}
    return frame("connect", data | {"ack": ack, "message": "", "user_id": None, "device": None})


def feedback(seq: int) -> str:
    return frame("feedback_update", {"feedback_id": seq, "rating": 3, "effectiveness": None}, seq=seq)


def gap(first: int, last: int, reason: str = "evicted") -> str:
    return frame("gap", {"from": first, "to": last, "count": last - first + 1, "reason": reason})


def live(seq: int) -> str:
    return frame("live", {"seq": seq})


def bye(code: int, reason: str, retry_after_ms: int | None = None) -> str:
    return frame("bye", {"code": code, "reason": reason, "retry_after_ms": retry_after_ms})


def error(code: str, detail: str = "") -> str:
    return frame("error", {"code": code, "detail": detail})
