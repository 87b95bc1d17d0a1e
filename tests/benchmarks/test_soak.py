"""The soak of `make soak`, short: it comes to rest, and what it compares and promises is judged."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.churn import KINDS, STEADY
from benchmarks.crashing import CRASHES, ActorCrash, Faulty
from benchmarks.kept import Kept
from benchmarks.soak import BOUNDS, PAGE_IN_CACHE, grown, soak
from storage.records import Event, Seq
from storage.sqlite.schema import CACHE_KIB

FIRST_SECONDS, THEN_SECONDS = 1.5, 3.0


async def test_a_short_soak_comes_to_rest_and_loses_nothing(tmp_path: Path) -> None:
    kept = Kept()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown if it fails
    chance, data = random.Random(seed), tmp_path / "data"
    seen = await soak(FIRST_SECONDS, THEN_SECONDS, data, kept, chance, lambda text: None, settle_seconds=0.5)
    lost = [one for one in kept.violations if not one.startswith(tuple(BOUNDS))]
    assert lost == [], "what is cached after a second grows yet: that is for a longer one"
    assert kept.acknowledged > 0
    assert sum(kept.acts.values()) > len(STEADY)
    assert [point.values["followers"] for point in seen.at_rest] == [[0.0], [0.0]]
    assert seen.under_load != []


def test_every_act_of_a_soak_has_a_name_of_its_own() -> None:
    assert max(Counter(kind.act.__name__ for kind in KINDS).values()) == 1


@pytest.mark.parametrize("name", BOUNDS)
def test_what_grows_beyond_its_bound_is_said(name: str) -> None:
    before = dict.fromkeys((*BOUNDS, "database_mib"), 30.0)
    at_most = before | {name: BOUNDS[name].limit(30.0, 0.0)}
    assert grown(before, at_most) == []
    (said,) = grown(before, at_most | {name: at_most[name] + 1})
    assert said.startswith(f"{name} was 30 after the first tenth")


def test_memory_may_grow_with_the_database_up_to_the_cache_of_sqlite() -> None:
    bound = BOUNDS["memory_mib"]
    assert bound.limit(70.0, 4.0) - bound.limit(70.0, 0.0) == pytest.approx(4.0 * PAGE_IN_CACHE)
    assert bound.limit(70.0, 400.0) - bound.limit(70.0, 0.0) == pytest.approx(CACHE_KIB / 2**10)


def kept() -> Kept:
    found = Kept()
    found.acknowledge("d", 7, 1, "e")
    found.acknowledge("d", 8, 2, "e")
    found.cursors["d", "bo"] = 2
    found.acts["diagnosis.register"] = 1
    assert found.violations == []
    return found


def test_the_soak_sees_each_kind_of_broken_promise() -> None:
    found = kept()
    found.judge_position("d", {"epoch": "e", "head": 1})
    found.judge_position("d", {"epoch": "f", "head": 2})
    found.see("d", 9, 1)
    found.see("d", 8, 3)
    found.judge_cursors("d", {"bo": 1})
    found.judge_rows({}, before=())
    found.judge_rows({"diagnosis.register": 2}, before=())
    assert [one.partition(": ")[2] for one in found.violations] == [
        "events 2 to 2 are lost",
        "epoch e became f",
        "number 1 is update 7 and update 9",
        "update 8 is ('d', 2) and ('d', 3)",
        "the cursor of bo was acknowledged at 2 and is 1",
        "1 acts were answered, 0 refused, and there are 0 rows",
        "1 acts were answered, 0 refused, and there are 2 rows",
    ]


def test_the_soak_takes_what_may_be() -> None:
    found = kept()
    found.unknown_acts["diagnosis.register"] = 1
    found.judge_position("d", {"epoch": "e", "head": 3})
    found.see("d", 9, 3)
    found.judge_cursors("d", {"bo": 2, "amira": 0})
    found.judge_rows({"diagnosis.register": 2, "actor.stop": 1}, before=("actor.stop",))
    assert found.violations == []


def test_an_actor_crashes_once_over_an_event_that_says_so() -> None:
    faulty = Faulty(began_at=1.0)
    for number in (1, 2):
        event = Event(Seq(number), 1.0, "feedback_update", b'{"comment":"%b"}' % CRASHES)
        with pytest.raises(ActorCrash):
            faulty.render("d", event)
        assert CRASHES in faulty.render("d", event)
    for at, body in ((1.0, b"{}"), (0.9, CRASHES)):
        assert b'"seq":3' in faulty.render("d", Event(Seq(3), at, "feedback_update", body))
