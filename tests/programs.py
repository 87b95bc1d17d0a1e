"""Programs from outside the project that some tests want: the path of one, or a skip that names it.

Users need Python and make, nothing else: a test that wants a C compiler, Node, Chromium, nginx, HAProxy, Caddy,
systemd, promtool, zsh, fish or a NATS server skips where it is missing. `.ci/run` installs these programs and names
those it has in `REQUIRED_PROGRAMS`: a test that misses one of them fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, NoReturn

import pytest

ROOT: Final = Path(__file__).parents[1]

REQUIRED: Final = "REQUIRED_PROGRAMS"
"""The environment variable: names of programs, with spaces between them, whose absence is a failure."""

NODE_PACKAGES: Final = ROOT / "build" / "node" / "node_modules"
"""Where `make node-packages` installs what `tests/documents/package.json` lists."""

SPELLINGS: Final = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    # Debian puts both where only root's PATH leads.
    "nginx": ("nginx", "/usr/sbin/nginx"),
    "haproxy": ("haproxy", "/usr/sbin/haproxy"),
    # `make nats-server` installs it.
    "nats-server": ("nats-server", str(ROOT / ".venv" / "bin" / "nats-server")),
    # `make python-client` makes it.
    "python-client": (str(ROOT / "clients" / "python" / ".venv" / "bin" / "python"),),
}
"""Names and paths under which a program may be installed, where there is more than one."""


def found(name: str) -> str | None:
    """The path of a program; `None`: it is missing."""
    return next(filter(None, map(shutil.which, SPELLINGS.get(name, (name,)))), None)


def program(name: str) -> str:
    """The path of a program; skips the test where it is missing, or fails it if `REQUIRED_PROGRAMS` names it."""
    path = found(name)
    if path is None:
        _missing(name, f"{name} is not installed")
    return path


def node_package(name: str) -> Path:
    """The directory of an npm package; skips or fails as `program` does, by the name `npm-packages`."""
    directory = NODE_PACKAGES / name
    if not (directory / "package.json").exists():
        _missing("npm-packages", f"the npm package {name} is not installed: make node-packages")
    return directory


def _missing(name: str, reason: str) -> NoReturn:
    if name in os.environ.get(REQUIRED, "").split():
        pytest.fail(f"{reason}, and {REQUIRED} names {name}", pytrace=False)
    pytest.skip(reason)
