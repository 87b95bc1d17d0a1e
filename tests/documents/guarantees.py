"""The tests and planted bugs of each promise, and `docs/GUARANTEES.md`, which names them.

`make guarantees` writes the names anew. The marks are read from the text of the tests: none is imported or run.
The bugs are those of `tests.mutants.planted`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutants.planted import PLANTED, Planted

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "GUARANTEES.md"

HEADING: Final = "## The tests and the planted bugs\n"
"""Everything below it is written by `make guarantees`."""

_PROMISE: Final = re.compile(r"^\| G(\d+) \|", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Mark:
    """`@pytest.mark.guarantee(number)` above a test."""

    number: int
    file: str
    """From the root of the project, with slashes."""
    test: str


class UnreadableMark(Exception):
    """A mark that stands for no test, or whose number only a running program knows."""


def promises(page: str) -> list[int]:
    """The numbers of the promises, as the table of the page has them."""
    return [int(number) for number in _PROMISE.findall(page.partition(HEADING)[0])]


def marks(directory: Path = ROOT / "tests", root: Path = ROOT) -> list[Mark]:
    """Every mark in the test files below a directory, in order.

    Raises:
        UnreadableMark: with file and line.
    """
    return sorted(mark for path in directory.rglob("*.py") for mark in _marks_of(path, path.relative_to(root)))


def _marks_of(path: Path, name: Path) -> Iterator[Mark]:
    tree = ast.parse(path.read_text(), str(path))
    unread = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "guarantee"]
    tests = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for test in tests.values():
        if not (path.match("test_*.py") and test.name.startswith("test_")):
            continue
        for decorator in test.decorator_list:
            match decorator:
                case ast.Call(func=ast.Attribute(attr="guarantee") as found, args=[ast.Constant(value=int(number))]):
                    unread.remove(found)
                    yield Mark(number, name.as_posix(), test.name)
    if unread:
        raise UnreadableMark(f"{name}:{unread[0].lineno}: a guarantee's mark stands above a test, with one number")


def listing(found: list[Mark], planted: Sequence[Planted]) -> str:
    """What stands below `HEADING`: by promise, the tests of each file, and the bugs that are planted against it."""
    lines = [
        "",
        "`make guarantees` writes these names from the marks of the tests and from `tests/mutants/planted.py`:",
        "`make mutants` plants each of these bugs into a copy of the tree, and each must be caught.",
    ]
    by_promise: dict[int, dict[str, list[str]]] = {}
    for mark in sorted(set(found)):
        by_promise.setdefault(mark.number, {}).setdefault(mark.file, []).append(mark.test)
    for number, by_file in by_promise.items():
        lines += ["", f"### G{number}", *_lines(by_file)]
        if bugs := [one.what for one in planted if number in one.guarantees]:
            lines += ["* planted bugs", *(f"  * {what}" for what in bugs)]
    return "\n".join(lines) + "\n"


def _lines(by_file: Mapping[str, list[str]]) -> Iterator[str]:
    for file, tests in by_file.items():
        yield f"* `{file}`"
        yield from (f"  * `{test}`" for test in tests)


def complaints(page: str, found: list[Mark], planted: Sequence[Planted]) -> list[str]:
    """What keeps the page from being true: nothing, if each promise has tests and bugs, and the page names them."""
    promised = promises(page)
    marked = {mark.number for mark in found}
    wrong = [f"the promise G{number} stands twice" for number in sorted({n for n in promised if promised.count(n) > 1})]
    wrong += [f"no test is marked for the promise G{number}" for number in promised if number not in marked]
    wrong += [f"{one.file}: {one.test}: G{one.number} is no promise" for one in found if one.number not in promised]
    broken = {number for one in planted for number in one.guarantees}
    wrong += [f"no bug is planted against the promise G{number}" for number in promised if number not in broken]
    wrong += [f"a bug is planted against G{number}, which is no promise" for number in sorted(broken - set(promised))]
    if page.partition(HEADING)[2] != listing(found, planted):
        wrong.append("the names below are not those of the marks and of the planted bugs: make guarantees")
    return wrong


def main() -> None:
    """Write the names of the tests into the page."""
    promise_table = PAGE.read_text().partition(HEADING)[0].rstrip("\n")
    PAGE.write_text(f"{promise_table}\n\n{HEADING}{listing(marks(), PLANTED)}")


if __name__ == "__main__":
    main()
