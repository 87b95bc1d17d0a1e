"""Who may do what: the whole table, in one file. Pure."""

from __future__ import annotations

from storage.records import Diagnosis
from web.tokens import Principal


def owns(who: Principal, diagnosis: Diagnosis) -> bool:
    """Whether it is this principal's own diagnosis."""
    return who.sub is not None and who.sub == diagnosis.owner


def may_subscribe(who: Principal, diagnosis: Diagnosis, *, anonymous_allowed: bool) -> bool:
    """The owner, a viewer, a token with scope `monitor` or `operate`, anybody where anonymous access is allowed."""
    if who.sub is None:
        return anonymous_allowed
    return owns(who, diagnosis) or who.sub in diagnosis.viewers or who.has("monitor", "operate")


def may_broadcast(who: Principal, diagnosis: Diagnosis) -> bool:
    """The owner, or a token with scope `broadcast` or `operate`."""
    return owns(who, diagnosis) or who.has("broadcast", "operate")


def may_see_registration(who: Principal, diagnosis: Diagnosis) -> bool:
    """The owner, or a token with scope `register` or `operate`."""
    return owns(who, diagnosis) or may_register(who)


def may_register(who: Principal) -> bool:
    """A token with scope `register` or `operate`: registers, replaces and deletes diagnoses."""
    return who.has("register", "operate")


def may_operate(who: Principal) -> bool:
    """A token with scope `operate`."""
    return who.has("operate")


def may_know_absence(who: Principal) -> bool:
    """Whether this principal is told that a diagnosis does not exist; others learn only that it is not theirs."""
    return who.has("monitor", "broadcast", "register", "operate")
