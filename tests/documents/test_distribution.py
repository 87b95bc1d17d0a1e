"""What `pyproject.toml` says of the distribution, and what is in it: dependencies, packages, types, one version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.contract import ROOT, asyncapi, openapi

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def declared() -> set[str]:
    """The distributions that an installation brings because we ask for them, as indexes spell them."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    declared = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    return {re.split(r"[^A-Za-z0-9._-]", text)[0] for text in declared}


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def foreign(room: str) -> dict[str, set[str]]:
    """For each top-level name that a room imports from elsewhere: the files that do."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / room).rglob("*.py"):
        for name in imported(ast.parse(file.read_text(), str(file))):
            if name not in sys.stdlib_module_names and name not in ROOMS:
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return found


def distributions_of(name: str) -> set[str]:
    """The distributions that bring a top-level name, as indexes spell them."""
    return {re.sub(r"[-_.]+", "-", one).lower() for one in packages_distributions().get(name, ())}


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_is_declared(room: str) -> None:
    undeclared = {name: files for name, files in foreign(room).items() if not distributions_of(name) & declared()}
    assert undeclared == {}


def test_what_is_declared_is_imported() -> None:
    used = set().union(*(distributions_of(name) for room in ROOMS for name in foreign(room)))
    assert declared() - used == set()


def test_every_dependency_has_a_lower_bound_and_says_what_it_is_for() -> None:
    found = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    for line in found[1].splitlines():
        assert re.fullmatch(r' {4}"[a-z0-9\[\]-]+>=[\d.]+(,<[\d.]+)?", +# \S.*', line), line


def test_the_version_stands_in_pyproject_alone_and_all_documents_agree() -> None:
    stated = PROJECT["project"]["version"]
    assert version("avicenna-live") == stated, "the environment is of another version: make setup"
    assert openapi()["info"]["version"] == stated
    assert asyncapi()["info"]["version"] == stated
    copies = [file for room in ROOMS for file in (ROOT / room).rglob("*.py") if f'"{stated}"' in file.read_text()]
    assert copies == []


def test_the_wheel_holds_the_rooms_each_with_its_mark_of_types_and_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(ROOMS)
    assert {f"{room}/py.typed" for room in ROOMS} <= names
    assert {f"web/console/page/{one.name}" for one in (ROOT / "web" / "console" / "page").iterdir()} <= names
