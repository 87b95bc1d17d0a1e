"""No file of the server needs itself by way of others: a circle of files can only be read as a whole.

An import counts wherever it stands: for types alone (`TYPE_CHECKING`) or within a function, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.programs import ROOT

ROOMS = ("actors", "storage", "web")


def modules_of(root: Path) -> dict[str, Path]:
    """The files of all rooms below a directory, by module name."""
    files = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def names_in(source: str) -> Iterator[str]:
    """Everything a file imports, as `module` or `module.name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports between files are absolute"
            yield from (f"{node.module}.{one.name}" for one in node.names)


def imports_of(root: Path) -> dict[str, set[str]]:
    """Which files of the rooms each one imports."""
    modules = modules_of(root)
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = list(names_in(path.read_text()))
        # `from a.b import c` imports the file a/b/c.py, or a name of a/b.py.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        imports[module] = (found & modules.keys()) - {module}
    return imports


def reached_from(module: str, imports: Mapping[str, set[str]]) -> frozenset[str]:
    """The files that a file needs, directly or by way of others."""
    reached: set[str] = set()
    ahead = list(imports[module])
    while ahead:
        if (one := ahead.pop()) not in reached:
            reached.add(one)
            ahead += imports[one]
    return frozenset(reached)


def circles_in(root: Path) -> set[frozenset[str]]:
    """Files that need each other, each with all of its circle."""
    imports = imports_of(root)
    reached = {module: reached_from(module, imports) for module in imports}
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
        if module in reached[module]
    }


def test_the_files_of_the_server_make_no_circle() -> None:
    assert circles_in(ROOT) == set()


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    files = {
        "actors/one.py": "from storage import two",
        "storage/two.py": "import typing\nif typing.TYPE_CHECKING:\n    from web.three.four import Name",
        "storage/below.py": "import json",
        "web/three/__init__.py": "",
        "web/three/four.py": "def function():\n    import actors.one\n    from storage.below import name",
    }
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert circles_in(tmp_path) == {frozenset({"actors.one", "storage.two", "web.three.four"})}
