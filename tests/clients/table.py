"""The table `clients/scenarios.yaml`, read and checked: what is wrong in it is said before anything is played."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.programs import ROOT

FILE: Final = ROOT / "clients" / "scenarios.yaml"

WORDED: Final = frozenset({"actors", "network", "provider", "wait"})
"""Steps whose argument is part of what they are called."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a scenario."""

    act: str
    argument: Any
    """What stands behind the colon, `None`: nothing."""

    @property
    def name(self) -> str:
        """The name of the method that does it."""
        words = f"{self.act} {self.argument}" if self.act in WORDED else self.act
        return words.replace(" ", "_")

    def __str__(self) -> str:
        return self.act if self.argument is None else f"{self.act}: {self.argument}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One situation."""

    name: str
    says: str
    steps: tuple[Step, ...]
    server: Mapping[str, object]
    """Settings of the server."""
    excused: Mapping[str, str]
    """Drivers that do not play it, and why."""

    def __str__(self) -> str:
        return self.name.replace(" ", "_")


def scenarios() -> list[Scenario]:
    """All of them, in the order of the table."""
    with FILE.open() as file:
        return [_scenario(name, fields) for name, fields in yaml.safe_load(file).items()]


def _scenario(name: str, fields: dict[str, Any]) -> Scenario:
    steps = tuple(_step(one) for one in fields.pop("steps"))
    return Scenario(
        name=name, steps=steps, server=fields.pop("server", {}), excused=fields.pop("excused", {}), **fields
    )


def _step(given: object) -> Step:
    match given:
        case str():
            return Step(given, None)
        case dict() if len(given) == 1:
            ((act, argument),) = given.items()
            return Step(str(act), argument)
    raise ValueError(f"this is no step: {given!r}")
