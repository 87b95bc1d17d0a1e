"""The arithmetic of limits: token buckets, connection counts, addresses behind proxies."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.identity.addresses import client_address
from web.identity.limits import Limits, TooMany
from web.identity.rates import Rate
from web.server.settings import Settings

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


def test_as_many_pass_at_once_as_a_second_allows_and_then_one_after_the_other() -> None:
    rate = Rate(2)
    assert [rate.take("a", 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert [rate.take("a", 0.5) for _ in range(2)] == [0, 0.5]
    assert [rate.take("a", 100.0) for _ in range(3)] == [0, 0, 0.5]


def test_names_do_not_share_a_bucket_and_a_slow_rate_lets_the_first_one_pass() -> None:
    rate = Rate(0.1)
    assert (rate.take("a", 0.0), rate.take("b", 0.0), rate.take("a", 0.0)) == (0, 0, 10)


def test_the_name_unseen_for_longest_makes_room_for_another() -> None:
    rate = Rate(1, names_max=2)
    for name in ("a", "b", "a", "c"):
        rate.take(name, 0.0)
    assert rate.take("a", 0.0) > 0
    assert rate.take("b", 0.0) == 0, "it was forgotten"


@given(st.floats(0.1, 100), st.lists(st.floats(0, 3), max_size=60))
def test_never_more_pass_than_the_rate_and_one_burst_allow(per_second: float, pauses: list[float]) -> None:
    rate, now, passed = Rate(per_second), 0.0, 0
    for pause in pauses:
        now += pause
        passed += rate.take("a", now) == 0
    assert passed <= max(1, per_second) + per_second * now + 1e-6


def test_a_connection_gives_its_place_back_and_a_take_over_needs_none() -> None:
    limits = Limits(Settings(data=Path("x"), user_connections_max=1, address_connections_max=2), lambda: 0.0)
    release = limits.hold("amira", "d", lambda: "192.0.2.1")
    assert release is not None
    with pytest.raises(TooMany, match="at most 1 connections of one user"):
        limits.hold("amira", "other", lambda: "192.0.2.1")
    limits.hold("bo", "d", lambda: "192.0.2.1")
    with pytest.raises(TooMany, match="of one address"):
        limits.hold("cyrus", "d", lambda: "192.0.2.1")
    taking_over = limits.hold("amira", "d", lambda: "192.0.2.2", replaces=True)
    assert taking_over is not None
    release()
    taking_over()
    assert limits.hold("amira", "d", lambda: "192.0.2.1") is not None


def test_nothing_is_counted_where_no_limit_is_set() -> None:
    assert Limits(Settings(data=Path("x")), lambda: 0.0).hold("amira", "d", lambda: "192.0.2.1") is None


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.2.3.4", "198.51.100.7"),
        ("10.0.0.1", "10.9.9.9, 10.2.3.4", "10.9.9.9"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::/64"),
        ("10.0.0.1", "203.0.113.9, nonsense, 10.2.3.4", "10.2.3.4"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("fd00::1", "198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("unix", "198.51.100.7", "unix"),
        ("10.0.0.1", "203.0.113.9" + ", 10.0.0.2" * 1000, "10.0.0.2"),
    ],
)
def test_the_address_is_the_last_one_no_trusted_proxy_vouches_for(peer: str, forwarded: str, address: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == address


def test_whoever_uses_the_unix_socket_is_a_proxy_if_the_operator_says_so() -> None:
    assert client_address("unix", "203.0.113.9, 198.51.100.7", (*PROXIES, "unix")) == "198.51.100.7"
