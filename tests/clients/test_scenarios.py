"""Every client masters every situation of `clients/scenarios.yaml`: the real server, and a network that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.drivers import DRIVERS, Driver
from tests.clients.part import Part
from tests.clients.play import play
from tests.clients.proxy import FaultProxy
from tests.clients.reports import expected
from tests.clients.stage import Stage
from tests.clients.table import Scenario, scenarios
from tests.server.forged import Forge

SCENARIOS = scenarios()

PLAYED = [(scenario, driver) for scenario in SCENARIOS for driver in DRIVERS if driver.name not in scenario.excused]


@pytest.fixture(scope="session")
def outcomes() -> dict[str, dict[str, str]]:
    """What came of the scenarios that were played, by their names."""
    return {}


@pytest.mark.parametrize(("scenario", "driver"), PLAYED, ids=[f"{one}-{driver}" for one, driver in PLAYED])
def test_a_client_reports_what_the_table_says(
    scenario: Scenario,
    driver: Driver,
    servers: Forge,
    outcomes: dict[str, dict[str, str]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    driver.command()  # skips where a program is missing
    if scenario.name not in outcomes:
        # All drivers of a scenario that this run asks for play it together, with the first of them.
        players = _players(request.session, scenario)
        outcomes[scenario.name] = trio.run(play, scenario, players, servers, tmp_path)
    if (wrong := outcomes[scenario.name].get(driver.name)) is not None:
        pytest.fail(wrong, pytrace=False)


def _players(session: pytest.Session, scenario: Scenario) -> list[Driver]:
    """The drivers of this run that play a scenario, and are not skipped."""
    found: list[Driver] = []
    for item in session.items:
        asked: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if asked.get("scenario") == scenario and "driver" in asked:
            try:
                asked["driver"].command()
            except pytest.skip.Exception:
                continue
            found.append(asked["driver"])
    return found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_each_step_of_the_table_is_one_and_each_report_is_one(scenario: Scenario) -> None:
    for step in scenario.steps:
        if step.act == "network":
            assert hasattr(FaultProxy, step.name.removeprefix("network_")), step
        else:
            assert hasattr(Stage, step.name) or hasattr(Part, step.name), step
        if step.act.startswith("expect"):
            for entry in step.argument:
                assert any(expected(entry)), entry
