"""What the largest body costs: its values are looked at many at once, and not one by one. Work is counted in calls."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from web.contract import wire
from web.contract.errors import Problem
from web.contract.number import WrittenNumber
from web.contract.records import DEPTH_MAX, RecommendationUpdate, Update, fault_of

CALLS_MAX = 500
"""Of functions of ours, for a body of 64 KiB; much more than for a small one, and much less than it has values."""

NESTED = b"[" * 58 + b"]" * 58
VALUES = {
    "nested lists": b",".join([NESTED] * 540),
    "empty lists": b",".join([b"[]"] * 21_000),
    "integers": b",".join([b"1"] * 31_000),
}


def calls_of(work: Callable[[], object]) -> int:
    """How many functions written in Python this calls."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_values_of_a_large_body_are_not_looked_at_one_by_one(values: bytes, key: str | None) -> None:
    body = b'{"diagnosis_id":1,"new_data":{"a":[%b]}}' % values
    assert 60_000 < len(body) <= 64 * 1024
    assert calls_of(lambda: wire.new_event(wire.decode_update(RecommendationUpdate, body), key)) < CALLS_MAX


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_nor_are_those_of_old_data_that_is_much_like_new_data(values: bytes) -> None:
    half = values[: len(values) // 2].rpartition(b",[[" if b"[[" in values else b",")[0]
    body = b'{"diagnosis_id":1,"old_data":{"a":[%b],"b":[%b,1]},"new_data":{"a":[%b],"b":[%b,2]}}' % ((half,) * 4)

    def decode() -> None:
        update: Update = wire.decode_update(RecommendationUpdate, body)
        assert update.data()["changed_fields"] == ["b"]

    assert calls_of(decode) < CALLS_MAX


def depth_of(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


@pytest.mark.parametrize("levels", [1, DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 1, 150])
@pytest.mark.parametrize("innermost", [[], {}, [1], {"a": "b"}])
@pytest.mark.parametrize("beside", [[], ["x"], [[[]]], [{"a": {}}]])
def test_an_object_has_at_most_64_levels(levels: int, innermost: object, beside: list[object]) -> None:
    value = innermost
    for level in range(levels - 1):
        value = [*beside, value] if level % 2 else {"a": value, "b": 1}
    body: dict[str, object] = {"a": value}
    fault = fault_of(body)
    assert (fault is None) == (depth_of(body) <= DEPTH_MAX)
    assert fault is None or "levels deep" in fault


HALFWAY = 2**1024 - 2**970
"""Beyond the largest double, the first integer that is rounded to infinity."""


@pytest.mark.parametrize("number", [HALFWAY, 10**400, float("inf"), WrittenNumber("1e309"), WrittenNumber("-1e309")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_beyond_a_double_is_found_wherever_it_stands(number: Any, sign: int) -> None:
    number = number if isinstance(number, WrittenNumber) else sign * number
    for value in (number, [1, 2.5, number], [[[0, {"b": [number]}]]], {"c": "x", "d": number}):
        fault = fault_of({"a": value})
        assert fault is not None
        assert "beyond a double" in fault


@pytest.mark.parametrize("number", [HALFWAY - 1, 0, True, 1.5, WrittenNumber("1e308"), WrittenNumber("1e-400")])
def test_any_other_number_is_none(number: Any) -> None:
    assert math.isfinite(number)
    for value in (number, [number, "x"], {"b": [number, -1]}):
        assert fault_of({"a": value}) is None


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["1.0", "1e0", "2.50", "2.5", "0.0", "-0.0"]).map(WrittenNumber),
    st.sampled_from(["", "a", "1"]),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)


def is_same(old: object, new: object) -> bool:
    """Whether two values are one in JSON, looked at one by one."""
    match old, new:
        case bool(), bool():
            return old == new
        case dict(), dict():
            return old.keys() == new.keys() and all(is_same(old[name], new[name]) for name in old)
        case list(), list():
            return len(old) == len(new) and all(map(is_same, old, new))
        case (int() | WrittenNumber(), int() | WrittenNumber()) if not isinstance(old, bool) | isinstance(new, bool):
            return float(old) == float(new)
        case str(), str():
            return old == new
        case _:
            return old is None and new is None


@given(JSON, JSON)
@example(True, 1)
@example([True], [1])
@example({"a": [False], "b": 1}, {"b": 1, "a": [0]})
@example({"a": 1, "b": 2}, {"b": WrittenNumber("2.0"), "a": 1})
def test_a_field_has_changed_if_its_value_has(old: object, new: object) -> None:
    update = RecommendationUpdate(diagnosis_id=1, old_data={"x": old}, new_data={"x": new})
    assert update.data()["changed_fields"] == ([] if is_same(old, new) else ["x"])


def test_a_field_that_was_not_there_has_changed() -> None:
    update = RecommendationUpdate(diagnosis_id=1, old_data={"x": None}, new_data={"y": None})
    assert update.data()["changed_fields"] == ["y"]


def test_a_body_that_is_too_deep_names_its_field() -> None:
    body = b'{"diagnosis_id":1,"new_data":{},"old_data":{"a":%b}}' % (b"[" * 64 + b"]" * 64)
    with pytest.raises(Problem, match="old_data must be at most 64 levels deep"):
        wire.new_event(wire.decode_update(RecommendationUpdate, body), None)
