"""A driver that does not report what the table says fails its scenario, with what it reported; others go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.clients import part
from tests.clients.drivers import Driver
from tests.clients.play import play
from tests.clients.reports import Report
from tests.clients.table import Scenario, Step
from tests.server.forged import Forge

SCENARIO = Scenario(
    name="a small one",
    says="It becomes live.",
    steps=(Step("follow", None), Step("expect exactly", ["connecting", "live"]), Step("restart actor", None)),
    server={},
    excused={},
)

CONNECTING: Report = {"status": "connecting", "reason": None, "code": None}
LIVE: Report = {"status": "live", "reason": None, "code": None}


def reporting(name: str, *reports: Report, ready: Report | None = None, exit_code: int = 0) -> Driver:
    """A driver that reports this once it follows, whatever happens."""
    lines = "\n".join(map(json.dumps, reports))
    script = f"""
import json, sys
print({json.dumps(ready or {"ready": True})!r}, flush=True)
for line in sys.stdin:
    match json.loads(line)["do"]:
        case "follow":
            print({lines!r}, flush=True)
        case "stop":
            sys.exit({exit_code})
"""
    return Driver(name, lambda: [sys.executable, "-c", script])


HONEST = reporting("honest", CONNECTING, LIVE)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (reporting("not ready", CONNECTING, LIVE, ready={"failed": "no"}), '{"failed": "no"} where a driver says'),
        (reporting("silent", CONNECTING), "nothing came where the table has Status(name='live'"),
        (reporting("another", CONNECTING, {**LIVE, "status": "offline"}), "'offline'"),
        (reporting("too much", CONNECTING, LIVE, {"raised": 1}), '{"raised": 1} where nothing is expected'),
        (reporting("failed", {"failed": "of a fault"}, CONNECTING, LIVE), "of a fault"),
        (reporting("crash", CONNECTING, LIVE, exit_code=3), "the driver has exited 3"),
    ],
    ids=str,
)
async def test_a_driver_that_reports_something_else_fails_and_another_one_does_not(
    driver: Driver, said: str, servers: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "REPORT_SECONDS_MAX", 5)
    wrong = await play(SCENARIO, [driver, HONEST], servers, tmp_path)
    assert [*wrong] == [driver.name]
    assert said in wrong[driver.name]
