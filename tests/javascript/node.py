"""Node, as the tests of the JavaScript client want it: a release that has a `WebSocket`, and one that has none."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.programs import ROOT, node_package, program

CLIENT: Final = ROOT / "clients" / "javascript"

Release = Literal["with WebSocket", "without WebSocket"]

RELEASES: Final[tuple[Release, ...]] = ("with WebSocket", "without WebSocket")

_ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm64"}


def node(release: Release) -> str:
    """The path of a Node; skips where it is missing.

    Args:
        release: with `WebSocket` it is the oldest line that has one, of npm; without, the one that is installed, if it
            is one of those the client supports.
    """
    if release == "with WebSocket":
        return str(node_package(f"node-linux-{_ARCHITECTURES.get(platform.machine())}") / "bin" / "node")
    installed = program("node")
    version = subprocess.run([installed, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    if not version.startswith(("v20.", "v21.")):
        pytest.skip(f"the node that is installed is {version.strip()}, neither 20 nor 21")
    return installed


def installed(directory: Path) -> Path:
    """A directory with the client in its `node_modules`, made and installed as a user does it."""
    npm = program("npm")
    environment = {"PATH": f"{Path(program('node')).parent}:/usr/bin:/bin", "HOME": str(directory)}

    def run(*arguments: str, at: Path) -> str:
        done = subprocess.run(
            [npm, *arguments], cwd=at, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = run("pack", "--pack-destination", str(directory), at=CLIENT).splitlines()[-1]
    project = directory / "project"
    project.mkdir()
    (project / "package.json").write_text('{"name": "project", "private": true, "type": "module"}')
    run("install", "--offline", "--no-audit", "--no-fund", "--ignore-scripts", str(directory / made), at=project)
    return project
