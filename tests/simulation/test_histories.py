"""Random histories of a whole server: whatever dies, fails, hangs or lies, no promise is broken.

`make simulate SEEDS=0-9999` plays more of them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.programs import ROOT
from tests.simulation.__main__ import report
from tests.simulation.history import History, drawn, plain
from tests.simulation.nodes import drawn_for_nodes
from tests.simulation.play import play
from tests.simulation.rare import SEEDS_ENOUGH, too_weak

BUDGET = 60
"""Seeds that every run of the tests plays."""

SEEDS_AT_ONCE = 10

NODES_BUDGET = 20
"""Seeds of histories with several servers that every run of the tests plays."""

REGRESSIONS: tuple[int, ...] = (2, 461, 499, 957, 1255, 1964, 2478, 2764, 3779, 4306, 5246, 5255, 5410)
"""Seeds that have failed, and what it was: the server, or the simulation. They are played without what is put into
histories (`history.RARELY`). Once a kind of operation is drawn with the others, a seed is another history: what it has
found in the server has a test of its own, or is planted (`tests/mutants`).

2: whoever waited for a transaction that failed in a way that nothing is known about waited for ever.
461, 957: of acknowledgements of the same number each may be answered, or several at once.
499: a server that finds no room when it starts ends, and is started again.
1255: each line of a bulk request waited 5 s anew for a disk that hung.
1964: what a power failure had left behind the end of a log looked like damage once a kill had followed.
2478: with a deletion that a power failure undoes, what it had refused comes back.
2764: an event that waited while its diagnosis was deleted and registered again was stored, and its publisher told 404.
3779, 4306: a token was from the future once the clock was set back, and no revocation of its subject covered it.
5246: whoever waited for a connection that had been cut kept others from waiting for theirs.
5255: an acknowledgement of what was still on its way to the client was taken for a lie.
5410: old events were dropped while the answer about an outbox travelled.
"""

NATS_BUDGET = 8
"""The same on simulated NATS servers: each takes two seconds."""

drawn_for_nats = partial(drawn_for_nodes, engine="nats")

NODES_REGRESSIONS: tuple[int, ...] = (87, 132, 243)
"""The same of several servers; what is put into histories is played, too.

87: a cursor that was acknowledged in an epoch that a restoration had ended just then was looked for in the store.
132: a server that began after a jump of its clock had nothing to compare it with, and took a key for expired.
243: a server that could not reach the engine told a subscriber a head below its position.
"""

assert BUDGET >= SEEDS_ENOUGH

SEEN: Counter[str] = Counter()
PLAYED: set[int] = set()
DIGESTS: dict[History, str] = {}
"""The traces of the histories that were played in this process."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A history writes its own trace of what servers log."""
    logger = logging.getLogger("avicenna")
    before, logger.propagate = logger.propagate, False
    yield
    logger.propagate = before


def plays(seed: int, draw: Callable[[int], History] = drawn) -> None:
    history = draw(seed)
    played = play(history)
    DIGESTS[history] = played.digest
    assert played.violation is None, report(history, played)
    if draw is drawn:
        SEEN.update(played.seen)
        PLAYED.add(seed)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.guarantee(3)
@pytest.mark.guarantee(4)
@pytest.mark.guarantee(5)
@pytest.mark.guarantee(6)
@pytest.mark.guarantee(8)
@pytest.mark.guarantee(9)
@pytest.mark.guarantee(10)
@pytest.mark.guarantee(11)
@pytest.mark.guarantee(13)
@pytest.mark.guarantee(16)
@pytest.mark.parametrize("first", range(0, BUDGET, SEEDS_AT_ONCE))
def test_no_history_of_a_server_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_ONCE):
        plays(seed)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.guarantee(3)
@pytest.mark.guarantee(4)
@pytest.mark.guarantee(8)
@pytest.mark.guarantee(9)
@pytest.mark.guarantee(16)
@pytest.mark.parametrize("first", range(0, NODES_BUDGET, SEEDS_AT_ONCE))
def test_no_history_of_several_servers_on_one_engine_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + SEEDS_AT_ONCE):
        plays(seed, drawn_for_nodes)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.guarantee(3)
@pytest.mark.guarantee(4)
@pytest.mark.guarantee(8)
@pytest.mark.guarantee(9)
@pytest.mark.guarantee(16)
@pytest.mark.guarantee(17)
@pytest.mark.parametrize("first", range(0, NATS_BUDGET, 4))
def test_no_history_of_several_servers_on_nats_breaks_a_promise(first: int) -> None:
    for seed in range(first, first + 4):
        plays(seed, drawn_for_nats)


def test_everything_rare_has_happened_in_these_histories() -> None:
    if len(PLAYED & set(range(BUDGET))) < BUDGET:
        pytest.skip("not all histories were played in this process")
    assert too_weak(SEEN) == []


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_history_that_has_failed_fails_no_more(seed: int) -> None:
    plays(seed, plain)


@pytest.mark.parametrize("seed", NODES_REGRESSIONS)
def test_a_history_of_several_servers_that_has_failed_fails_no_more(seed: int) -> None:
    plays(seed, drawn_for_nodes)


def test_the_same_history_gives_the_same_trace_again() -> None:
    """Else what is shown as the shortest history that fails would be one that does not."""
    history = drawn(3)
    assert play(history).digest == play(history).digest


def test_the_same_seed_gives_the_same_trace_in_another_process_with_other_hashes() -> None:
    # The second one dies often, and its outboxes are looked through.
    histories = [drawn(3), drawn(20), drawn_for_nodes(3), drawn_for_nats(3)]
    program = (
        "from tests.simulation.nodes import drawn, drawn_for_nodes as nodes; from tests.simulation.play import play; "
        "histories = drawn(3), drawn(20), nodes(3), nodes(3, engine='nats'); "
        "print([play(history).digest for history in histories])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},  # the one of this process is another one
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert told == str([DIGESTS.get(history) or play(history).digest for history in histories])
