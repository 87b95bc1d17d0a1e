"""`kill -9` under load, again and again: what was acknowledged is kept. `make crash-test` is the long form."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.crash import loop
from tests.crash.ledger import Found, Ledger, fields_of

ROUNDS = int(os.environ.get("CRASH_TEST_ROUNDS", "8"))
"""Kills of one run; `make crash-test ROUNDS=1000` asks for more."""


@pytest.mark.both_ways
@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.guarantee(5)
@pytest.mark.guarantee(9)
async def test_a_server_killed_under_load_keeps_every_acknowledged_event_its_number_and_its_key(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"\nseed {seed}")  # noqa: T201 - shown if it fails, and by `make crash-test`
    figures = await loop.run(tmp_path / "data", ROUNDS, random.Random(seed))
    print(figures)  # noqa: T201 - as above
    assert figures.violations == []
    assert figures.rounds == ROUNDS
    assert figures.acknowledged > ROUNDS
    assert figures.keys_tried > ROUNDS


def found(*pairs: tuple[int, int]) -> list[Found]:
    return [Found(seq, fields_of(update)) for seq, update in pairs]


def acknowledged(*updates: int) -> Ledger:
    ledger = Ledger("d")
    for seq, update in enumerate(updates, start=1):
        ledger.acknowledge(update, seq, "e")
    return ledger


@pytest.mark.parametrize(
    ("epoch", "head", "events", "complaint"),
    [
        ("e", 1, found((1, 7)), "events 2 to 2 are lost"),
        ("e", 2, found((1, 7)), "these are retained: [1]"),
        ("e", 2, found((1, 8), (2, 7)), "number 1 is update 7 and update 8"),
        ("e", 3, found((1, 7), (2, 8), (3, 8)), "update 8 is event 2 and event 3"),
        ("e", 3, found((1, 7), (2, 8), (3, 9)), "which was answered or never sent"),
        ("e", 2, [*found((1, 7)), Found(2, fields_of(8) | {"comment": "8"})], "not the body"),
        ("f", 2, found((1, 7), (2, 8)), "epoch e became f"),
    ],
)
def test_the_ledger_sees_each_kind_of_broken_promise(
    epoch: str, head: int, events: list[Found], complaint: str
) -> None:
    ledger = acknowledged(7, 8)
    ledger.judge(epoch, head, events)
    assert any(complaint in one for one in ledger.violations), ledger.violations


def test_the_ledger_takes_what_may_be() -> None:
    ledger = acknowledged(7, 8)
    ledger.leave_unanswered(9)
    ledger.leave_unanswered(10)
    ledger.judge("e", 3, found((1, 7), (2, 8), (3, 10)))
    ledger.acknowledge(9, 4, "e")
    assert ledger.violations == []
    assert ledger.stored_unanswered == 1
