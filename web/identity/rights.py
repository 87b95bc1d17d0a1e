"""Who may do what: the whole table, in one file. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from storage.records import Diagnosis
from web.contract.principals import Principal

Scope = Literal["monitor", "broadcast", "register", "operate"]

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
"""Every scope that gives a right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Who may do one thing; anybody who fits one of these."""

    owner: bool = False
    """The owner of the diagnosis it is about."""
    viewer: bool = False
    """One of its viewers."""
    anonymous: bool = False
    """Somebody without a token, where the operator allows it."""
    scopes: tuple[Scope, ...] = ()
    """Whoever has a token with one of these scopes."""


SUBSCRIBE: Final = Right(owner=True, viewer=True, anonymous=True, scopes=("monitor", "operate"))
BROADCAST: Final = Right(owner=True, scopes=("broadcast", "operate"))
SEE_REGISTRATION: Final = Right(owner=True, scopes=("register", "operate"))
REGISTER: Final = Right(scopes=("register", "operate"))
OPERATE: Final = Right(scopes=("operate",))
KNOW_ABSENCE: Final = Right(anonymous=True, scopes=("monitor", "broadcast", "register", "operate"))
"""Is told that a diagnosis does not exist; others learn only that it is not theirs."""
KNOW_ABSENCE_CONNECTING: Final = Right(anonymous=True, scopes=("monitor", "operate"))
"""The same, of somebody who wants to follow it."""


def has_right(
    who: Principal, right: Right, diagnosis: Diagnosis | None = None, *, anonymous_allowed: bool = False
) -> bool:
    """Whether somebody fits a right; without a diagnosis nobody is its owner or viewer."""
    if who.sub is None:
        return right.anonymous and anonymous_allowed
    if diagnosis is not None and (
        (right.owner and who.sub == diagnosis.owner) or (right.viewer and who.sub in diagnosis.viewers)
    ):
        return True
    return who.has(*right.scopes)


def may_subscribe(who: Principal, diagnosis: Diagnosis, *, anonymous_allowed: bool) -> bool:
    """`SUBSCRIBE`."""
    return has_right(who, SUBSCRIBE, diagnosis, anonymous_allowed=anonymous_allowed)


def may_broadcast(who: Principal, diagnosis: Diagnosis) -> bool:
    """`BROADCAST`."""
    return has_right(who, BROADCAST, diagnosis)


def may_broadcast_anywhere(who: Principal) -> bool:
    """`BROADCAST`, of any diagnosis, by a scope."""
    return has_right(who, BROADCAST)


def may_see_registration(who: Principal, diagnosis: Diagnosis) -> bool:
    """`SEE_REGISTRATION`."""
    return has_right(who, SEE_REGISTRATION, diagnosis)


def may_register(who: Principal) -> bool:
    """`REGISTER`."""
    return has_right(who, REGISTER)


def may_operate(who: Principal, diagnosis: Diagnosis | None = None) -> bool:
    """`OPERATE`."""
    return has_right(who, OPERATE, diagnosis)


def may_know_absence(who: Principal, *, anonymous_allowed: bool) -> bool:
    """`KNOW_ABSENCE`."""
    return has_right(who, KNOW_ABSENCE, anonymous_allowed=anonymous_allowed)


def may_know_absence_connecting(who: Principal, *, anonymous_allowed: bool) -> bool:
    """`KNOW_ABSENCE_CONNECTING`."""
    return has_right(who, KNOW_ABSENCE_CONNECTING, anonymous_allowed=anonymous_allowed)
