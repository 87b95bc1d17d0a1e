"""What people do with one diagnosis, step by step, and whether what is found after a crash may be. No I/O.

A *case* is a diagnosis with its follower, its operator and a token. A step that was answered is there with its audit
row. A step that was under way is there with its row, or neither is.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

STEPS: Final = ("register", "publish", "acknowledge", "share", "purge", "revoke", "lift", "erase", "delete")
OPTIONAL: Final = frozenset({"purge", "lift", "erase", "delete"})
WITHOUT_ROW: Final = frozenset({"publish", "acknowledge"})
"""Steps of people who look after nothing."""


@dataclass
class Case:
    """One diagnosis, and how far it has come."""

    number: int
    plan: tuple[str, ...]
    done: int = 0
    """Steps of the plan that were answered, or were found."""
    is_in_doubt: bool = False
    """The next step was asked for, and not answered."""
    revocation: int | None = None
    halves: int = 0
    """Erasures that a crash has cut off between two of their transactions: each has its row, and is asked for again."""

    @property
    def name(self) -> str:
        return f"case-{self.number}"

    @property
    def person(self) -> str:
        """Who follows it."""
        return f"person-{self.number}"

    @property
    def guest(self) -> str:
        """Who may follow it, too, once it is shared."""
        return f"guest-{self.number}"

    @property
    def operator(self) -> str:
        """Who does all acts of this case alone: their audit rows are found by this name."""
        return f"operator-{self.number}"

    @property
    def token_id(self) -> str:
        """A token that is revoked."""
        return f"token-{self.number}"

    @property
    def step(self) -> str | None:
        """The next one; `None`: all are done."""
        return self.plan[self.done] if self.done < len(self.plan) else None

    def answered(self) -> None:
        """The next step is acknowledged."""
        self.done += 1
        self.is_in_doubt = False


def drawn(number: int, chance: random.Random) -> Case:
    """A case with some of the steps that need not be."""
    return Case(number, tuple(step for step in STEPS if step not in OPTIONAL or chance.random() < 0.7))


@dataclass
class Seen:
    """What is found of a case."""

    rows: Counter[str] = field(default_factory=Counter)
    """Audit rows, by step."""
    is_registered: bool = False
    viewers: tuple[str, ...] = ()
    head: int = 0
    floor: int = 0
    cursor: int | None = None
    """Of the person."""
    is_revoked: bool = False
    is_named: bool = False
    """Whether an audit row names the person."""


def expected(case: Case, steps: frozenset[str], cursor: int | None, halves: int) -> Seen:
    """What is there after these steps.

    Args:
        cursor: what was found, which counts where anything may be.
        halves: erasures that were begun and cut off. Of the person is left then what audit rows say.
    """
    rows = Counter(step for step in steps if step not in WITHOUT_ROW)
    rows.update({"erase": halves} if halves else {})
    is_erased = halves > 0 or "erase" in steps
    is_revoked = "revoke" in steps and "lift" not in steps
    is_named = "register" in steps and "erase" not in steps
    if "register" not in steps or "delete" in steps:
        return Seen(rows=rows, is_revoked=is_revoked, is_named=is_named)
    viewers = (case.person, case.guest) if "share" in steps else (case.person,)
    head = int("publish" in steps)
    if is_erased:
        cursor = None
    elif "acknowledge" in steps:
        cursor = head
    elif cursor:
        cursor = None  # a follower that has acknowledged nothing is known at 0, or not at all
    return Seen(
        rows=rows,
        is_registered=True,
        viewers=tuple(one for one in viewers if one != case.person or not is_erased),
        head=head,
        floor=head if "purge" in steps else 0,
        cursor=cursor,
        is_revoked=is_revoked,
        is_named=is_named,
    )


def judge(case: Case, seen: Seen) -> list[str]:
    """Compare what is found with what may be; a step in doubt that is there counts as done from now on."""
    done = frozenset(case.plan[: case.done])
    steps_and_halves = [(0, 0)]
    if case.is_in_doubt and case.step is not None:
        steps_and_halves += [(1, 0), (0, 1)] if case.step == "erase" else [(1, 0)]
    may_be = []
    for more, halves in steps_and_halves:
        steps = done | {case.step} if more and case.step is not None else done
        one = expected(case, steps, seen.cursor, case.halves + halves)
        if one == seen:
            case.done += more
            case.halves += halves
            case.is_in_doubt = False
            return []
        may_be.append(one)
    return [f"{case} is found as {seen}, and may be {' or '.join(map(str, may_be))}"]
