"""When a reading of the wall clock is believed: single cases, and any history of readings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.belief import AHEAD_SECONDS_MAX, EVEN_SECONDS, JUMP_SECONDS, Belief, Kept, Moment

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0


@dataclass
class Machine:
    """A machine whose true time only goes on, and whose wall clock may be anywhere."""

    true: float = NOW
    wrong_by: float = 0.0

    def begin(self, kept: Kept | None) -> None:
        """A run begins; its monotonic clock has nothing to do with the last one's."""
        self.booted = self.true - 5.0
        self.belief = Belief(kept, self.wall, self.monotonic)

    def look(self) -> Moment:
        return self.belief.look(self.wall, self.monotonic)

    def run(self, seconds: float) -> Moment:
        """Go on for so long, with a look each minute."""
        until = self.true + seconds
        while self.true < until:
            self.true = min(until, self.true + 60.0)
            moment = self.look()
        return moment

    @property
    def wall(self) -> float:
        return self.true + self.wrong_by

    @property
    def monotonic(self) -> float:
        return self.true - self.booted

    @property
    def kept(self) -> Kept:
        self.look()
        return self.belief.kept(self.monotonic)


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.begin(Kept(NOW - 60.0, held=False))
    return made


def is_held(machine: Machine) -> bool:
    moment = machine.look()
    assert (machine.belief.held_since is not None) is (moment.judged == -math.inf)
    return moment.judged == -math.inf


def test_an_even_clock_is_believed(machine: Machine) -> None:
    moment = machine.run(DAY)
    assert moment == Moment(NOW + DAY, NOW + DAY, NOW + DAY)
    assert machine.kept == Kept(NOW + DAY, held=False)


@pytest.mark.parametrize("seconds", [JUMP_SECONDS - 1, 1 - JUMP_SECONDS])
def test_a_clock_that_is_set_a_little_is_believed(machine: Machine, seconds: float) -> None:
    machine.wrong_by = seconds
    assert not is_held(machine)
    assert machine.look().reckoned >= NOW


@pytest.mark.parametrize("seconds", [JUMP_SECONDS + 1, -JUMP_SECONDS - 1, 40 * DAY, -40 * DAY])
def test_a_jump_holds_for_an_even_hour_and_then_the_new_time_is_believed(machine: Machine, seconds: float) -> None:
    machine.run(600.0)
    machine.wrong_by = seconds
    assert is_held(machine)
    assert machine.look().wall == machine.wall
    machine.run(EVEN_SECONDS - 1)
    assert is_held(machine)
    machine.run(1)
    assert not is_held(machine)
    assert machine.look() == Moment(machine.wall, machine.wall, machine.wall)
    assert machine.kept == Kept(machine.wall, held=False)


def test_a_jump_back_begins_the_hour_anew(machine: Machine) -> None:
    machine.wrong_by = 40 * DAY
    machine.run(EVEN_SECONDS - 60)
    machine.wrong_by = 0.0
    machine.run(EVEN_SECONDS - 60)
    assert is_held(machine)
    assert machine.run(120) == Moment(machine.true, machine.true, machine.true)


def test_small_steps_that_add_up_within_an_hour_are_a_jump(machine: Machine) -> None:
    for _ in range(4):
        machine.run(60.0)
        machine.wrong_by += 100.0
    assert is_held(machine)


def test_a_clock_that_drifts_slowly_is_believed(machine: Machine) -> None:
    for _ in range(48):
        machine.run(HOUR)
        machine.wrong_by += 100.0
        assert not is_held(machine)


@pytest.mark.parametrize(
    ("ahead", "held"),
    [
        (-JUMP_SECONDS, False),
        (-JUMP_SECONDS - 1, True),
        (0.0, False),
        (AHEAD_SECONDS_MAX, False),
        (AHEAD_SECONDS_MAX + 1, True),
    ],
)
def test_a_start_compares_with_the_time_that_was_kept(ahead: float, held: bool) -> None:
    machine = Machine()
    machine.begin(Kept(NOW - ahead, held=False))
    assert is_held(machine) is held


def test_a_start_with_nothing_kept_believes_the_clock() -> None:
    machine = Machine()
    machine.begin(None)
    assert not is_held(machine)


def test_a_restart_does_not_make_a_wrong_clock_believed(machine: Machine) -> None:
    machine.wrong_by = 2 * HOUR
    for _ in range(5):
        machine.run(600.0)
        assert is_held(machine)
        machine.begin(machine.kept)
    assert is_held(machine)
    machine.wrong_by = 0.0
    machine.begin(machine.kept)
    assert not is_held(machine)


def test_ends_are_reckoned_from_what_was_believed_while_the_clock_is_behind(machine: Machine) -> None:
    machine.wrong_by = -26 * HOUR
    assert machine.run(600.0).reckoned == machine.true
    machine.begin(machine.kept)
    assert machine.run(600.0).reckoned == machine.true


def test_the_beginning_of_a_hold_is_told_in_the_time_that_the_clock_shows_now(machine: Machine) -> None:
    machine.wrong_by = 40 * DAY
    machine.look()
    assert machine.belief.held_since == machine.wall
    machine.run(600.0)
    machine.wrong_by = 0.0
    machine.look()
    assert machine.belief.held_since == pytest.approx(machine.true - 600.0)


STEPS = st.one_of(
    st.tuples(st.just("run"), st.floats(1.0, 2 * HOUR)),
    st.tuples(st.just("set"), st.sampled_from([0.0, 200.0, -200.0, HOUR, -HOUR, 26 * HOUR, -26 * HOUR, 40 * DAY])),
    st.tuples(st.just("restart"), st.sampled_from([0.0, 1.0, HOUR, 23 * HOUR, 3 * DAY])),
)


@given(st.lists(STEPS, max_size=30))
@example([("set", 200.0), ("set", -200.0)])
@settings(max_examples=300)
def test_after_any_history_only_a_time_that_was_right_or_has_stood_for_an_hour_is_judged_by(
    steps: list[tuple[str, float]],
) -> None:
    machine = Machine()
    machine.begin(None)
    believed, standing, stands_since = 0.0, 0.0, machine.true  # the first two: how wrong the clock was
    for what, value in steps:
        machine.look()
        match what:
            case "run":
                machine.run(value)
            case "set":
                step, machine.wrong_by = value - machine.wrong_by, value
                if abs(step) > JUMP_SECONDS or abs(value - standing) > JUMP_SECONDS:
                    standing, stands_since = value, machine.true
            case "restart":
                kept = machine.kept
                machine.true += value
                machine.begin(kept)
                standing, stands_since = machine.wrong_by, machine.true
                ahead = machine.wall - kept.time
                if -JUMP_SECONDS <= ahead <= (JUMP_SECONDS if kept.held else AHEAD_SECONDS_MAX):
                    believed = standing
        moment = machine.look()
        assert moment.wall == machine.wall
        assert moment.reckoned >= moment.wall
        assert moment.judged in (moment.wall, -math.inf)
        if moment.judged != -math.inf:
            stood = machine.true - stands_since
            assert abs(machine.wrong_by - believed) <= JUMP_SECONDS or stood >= EVEN_SECONDS - 1e-3
            believed = machine.wrong_by
        if what == "run" and value >= EVEN_SECONDS + 60:
            assert moment.judged == moment.wall, "an even hour ends every hold"
