"""What a `Follower` takes, and what it refuses by name and limit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from avicenna_live import Backoff, Follower
from avicenna_live.closing import after
from avicenna_live.follower import _checked_after, _checked_id, _checked_start, checked_url

CLOSE_CODES = Path(__file__).parents[2] / "close-codes.json"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "https://live.example.org", "http://[::1]:8000", "http://localhost/"]
)
def test_a_url_names_scheme_host_and_port(url: str) -> None:
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["", "live.example.org", "ws://h", "http://h/live", "http://h?x=1", "http://u:pa55@h", "http://h:x", "http://",
     "http://h\n", "http://h:65536", "http://a..b", "http://" + "x" * 64, "http://.", None],
)  # fmt: skip
def test_another_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Follower(url)
    assert "pa55" not in str(caught.value)


async def waits(*_: object) -> None:
    """What `on_state` must not do."""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"device": "a b"}, "device must be 1-64 characters"),
        ({"device": ""}, "device must be 1-64 characters"),
        ({"heartbeat": 4}, "heartbeat must be a whole number of seconds from 5 to 300, not 4"),
        ({"heartbeat": 301}, "heartbeat must be"),
        ({"heartbeat": 20.0}, "heartbeat must be"),
        ({"token": "a b"}, "token must be 1-7168 printable ASCII characters without a space"),
        ({"token": ""}, "token must be"),
        ({"token": "t" * 7169}, "token must be"),
        ({"token": 5}, "token must be a text, not int"),
        ({"device": 5}, "device must be 1-64 characters"),
        ({"store": "positions.json"}, "store must have the functions load and save"),
        ({"get_state": {}}, "get_state must be a function"),
        ({"on_state": 5}, "on_state must be a function that is not async"),
        ({"on_state": waits}, "on_state must be a function that is not async"),
        ({"backoff": 3}, "backoff must be a Backoff"),
    ],
)
def test_an_argument_that_is_none_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Follower("http://h", **arguments)


def test_a_refused_token_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="token must be") as caught:
        Follower("http://h", token="tkn of-mine")
    assert "of-mine" not in str(caught.value)


def test_a_function_is_not_replaced_by_a_text() -> None:
    with pytest.raises(ValueError, match="has a token function"):
        Follower("http://h", token=lambda: "tkn").use_token("tkn")


@pytest.mark.parametrize(
    ("given", "used"),
    [(42, 42), ("42", 42), ("042", "042"), ("b-7", "b-7"), (0, 0), ("9" * 15, 10**15 - 1), ("9" * 16, "9" * 16)],
)
def test_a_diagnosis_has_one_name(given: int | str, used: int | str) -> None:
    assert _checked_id(given) == used


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, True, 4.0, None, "42\n"])
def test_what_is_no_name_of_a_diagnosis_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="diagnosis_id must be"):
        _checked_id(given)


def test_where_to_begin_is_checked() -> None:
    assert [_checked_start(start) for start in (None, "oldest", "new", 5, "5", 0)] == [
        None, "oldest", "new", "5", "5", "0",
    ]  # fmt: skip
    for start in ("newest", -1, True, 1.0, ""):
        with pytest.raises(ValueError, match="start must be"):
            _checked_start(start)
    assert [_checked_after(*given) for given in ((None, None), (0, None), (5, "e1"))] == [None, 0, 5]
    for given in ((None, "e1"), (-1, None), (True, None), (2**53, None)):
        with pytest.raises(ValueError, match="after"):
            _checked_after(*given)


@pytest.mark.parametrize("waits", [(0, 1), (2, 1), (-1, 1)])
def test_waits_that_are_none_are_refused(waits: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="backoff must have"):
        Backoff(*waits)


def test_every_end_is_followed_as_the_clients_agree() -> None:
    cases = json.loads(CLOSE_CODES.read_text())
    assert {case["then"] for case in cases} == {"come_back", "needs_auth", "ended"}
    assert [after(case["code"], case["reason"]) for case in cases] == [case["then"] for case in cases]
