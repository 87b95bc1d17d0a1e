"""The table of rights, line by line: who may do what with amira's diagnosis, which bo may view."""

from __future__ import annotations

import pytest

from storage.records import Diagnosis, Epoch
from web.contract.principals import ANONYMOUS, Principal
from web.identity import rights
from web.identity.rights import Right, has_right

pytestmark = pytest.mark.both_ways

DIAGNOSIS = Diagnosis("42", "amira", ("bo",), Epoch("e"), 0.0)
PEOPLE = {
    "owner": Principal("amira"),
    "viewer": Principal("bo"),
    "stranger": Principal("mallory"),
    "anonymous": ANONYMOUS,
    **{scope: Principal("service", frozenset({scope})) for scope in ("monitor", "broadcast", "register", "operate")},
}


@pytest.mark.parametrize(
    ("right", "who"),
    [
        (rights.SUBSCRIBE, "owner viewer monitor operate"),
        (rights.BROADCAST, "owner broadcast operate"),
        (rights.SEE_REGISTRATION, "owner register operate"),
        (rights.REGISTER, "register operate"),
        (rights.OPERATE, "operate"),
        (rights.KNOW_ABSENCE, "monitor broadcast register operate"),
        (rights.KNOW_ABSENCE_CONNECTING, "monitor operate"),
    ],
)
def test_a_right_is_theirs_and_nobody_elses(right: Right, who: str) -> None:
    assert {name for name, one in PEOPLE.items() if has_right(one, right, DIAGNOSIS)} == set(who.split())


def test_anonymous_subscribers_may_follow_where_they_are_allowed_and_do_nothing_else() -> None:
    table = [one for one in vars(rights).values() if isinstance(one, Right)]
    assert [one for one in table if has_right(ANONYMOUS, one, DIAGNOSIS, anonymous_allowed=True)] == [
        rights.SUBSCRIBE,
        rights.KNOW_ABSENCE,
        rights.KNOW_ABSENCE_CONNECTING,
    ]
