"""Node, as the tests of the JavaScript client want it: a release that has a `WebSocket`, and one that has none."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Final, Literal

from tests.programs import ROOT, node_package, program

CLIENT: Final = ROOT / "clients" / "javascript"

Release = Literal["with WebSocket", "without WebSocket"]

RELEASES: Final[tuple[Release, ...]] = ("with WebSocket", "without WebSocket")

_ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm64"}


def node(release: Release) -> list[str]:
    """What starts Node; skips where it is missing.

    Args:
        release: with `WebSocket` it is one of npm, of the oldest line that has one. Without, it is the Node that is
            installed where that is of the oldest line that the client supports, else that of npm, which leaves it out.
    """
    of_npm = str(node_package(f"node-linux-{_ARCHITECTURES.get(platform.machine())}") / "bin" / "node")
    if release == "with WebSocket":
        return [of_npm]
    found = program("node")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return [found] if version.startswith("v20.") else [of_npm, "--no-experimental-websocket"]


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
