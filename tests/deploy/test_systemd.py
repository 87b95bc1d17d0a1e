"""The units of `deploy/systemd`: systemd takes them, and they agree with what the server does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.programs import ROOT, program
from tests.server.process import COMMAND
from web.http.handed_over import OPERATORS, PUBLIC
from web.server.composition import EXIT_SECONDS_MAX
from web.server.settings import Settings

UNITS = ROOT / "deploy" / "systemd"
NAMES = ("avicenna-live.service", "avicenna-live.socket", "avicenna-live-operators.socket")

EXPOSURE_MAX = 15
"""Of 100, as `systemd-analyze security` counts. What is left is the network, which a server needs."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a directory, with the command of these tests: systemd looks whether it is there."""
    for name in NAMES:
        text = (UNITS / name).read_text().replace("/opt/avicenna-live/bin/avicenna-live", str(COMMAND))
        (tmp_path / name).write_text(text)
    return tmp_path


def values(name: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / name).read_text(), re.MULTILINE)


def analyzed(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("systemd-analyze"), *arguments], cwd=units, capture_output=True, text=True, timeout=60, check=False
    )


def test_systemd_takes_the_units(units: Path) -> None:
    done = analyzed(units, "verify", "--man=no", "--recursive-errors=no", *(f"./{name}" for name in NAMES))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_an_unknown_line_in_a_unit(units: Path) -> None:
    file = units / "avicenna-live.service"
    file.write_text(file.read_text().replace("UMask=0077", "Umasque=0077"))
    assert "Umasque" in analyzed(units, "verify", "--man=no", "--recursive-errors=no", "./avicenna-live.service").stderr


def test_the_service_may_do_little(units: Path) -> None:
    done = analyzed(
        units, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", "./avicenna-live.service"
    )
    assert done.returncode == 0, done.stdout


def test_the_units_agree_with_the_server() -> None:
    assert values("avicenna-live.socket", "FileDescriptorName") == [PUBLIC]
    assert values("avicenna-live-operators.socket", "FileDescriptorName") == [OPERATORS]
    assert values("avicenna-live-operators.socket", "Service") == ["avicenna-live.service"]
    (stop_seconds,) = values("avicenna-live.service", "TimeoutStopSec")
    assert int(stop_seconds) > EXIT_SECONDS_MAX + 1
    (open_files,) = values("avicenna-live.service", "LimitNOFILE")
    assert int(open_files) > Settings().max_connections


def test_the_page_names_the_paths_of_the_units() -> None:
    page = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
    for name in NAMES:
        assert name in page
        for path in values(name, "ListenStream"):
            assert path in page
