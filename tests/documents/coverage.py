"""What the whole suite runs of the server: `make coverage` writes docs/COVERAGE.md from what was measured.

Judged are `actors`, `storage` and the pure files of `web`: those in the contract of pure modules in `pyproject.toml`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import coverage

from tests.programs import ROOT

PAGE: Final = ROOT / "docs" / "COVERAGE.md"
SHARE_MIN: Final = 0.95
"""Target: of the lines and branches of each group, so many are run."""

PURE: Final = "Pure modules know no event loop, no framework and no database"
"""The name of the contract."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some files, and how much of them is run."""

    name: str
    files: Mapping[str, Any]
    """What coverage.py says of each."""

    @property
    def whole(self) -> int:
        """Lines and branches."""
        return self._sum("num_statements") + self._sum("num_branches")

    @property
    def run(self) -> int:
        """Those of them that are run."""
        return self._sum("covered_lines") + self._sum("covered_branches")

    @property
    def share(self) -> float:
        """Of lines and branches, those that are run."""
        return self.run / self.whole

    def _sum(self, name: str) -> int:
        return sum(found["summary"][name] for found in self.files.values())


def pure_files() -> set[str]:
    """The pure files of `web`."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (modules,) = (one["source_modules"] for one in contracts if one["name"] == PURE)
    return {module.replace(".", "/") + ".py" for module in modules if module.startswith("web.")}


def measured() -> dict[str, Any]:
    """What coverage.py says of each file."""
    data = coverage.Coverage()
    data.load()
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        data.json_report(outfile=report.name)
        found: dict[str, Any] = json.loads(Path(report.name).read_text())["files"]
    return found


def groups(files: Mapping[str, Any]) -> list[Group]:
    """What is judged."""
    pure = pure_files()
    return [
        Group("actors", {name: one for name, one in files.items() if name.startswith("actors/")}),
        Group("storage", {name: one for name, one in files.items() if name.startswith("storage/")}),
        Group("pure files of web", {name: one for name, one in files.items() if name in pure}),
        Group(
            "the rest of web",
            {name: one for name, one in files.items() if name.startswith("web/") and name not in pure},
        ),
    ]


def left_in(found: Mapping[str, Any]) -> Iterable[str]:
    """The functions of a file of which something is not run, each with its lines and the ends of its branches."""
    for name, function in found["functions"].items():
        lines = set(function["missing_lines"]) | {line for line, _ in function["missing_branches"]}
        if lines:
            yield f"`{name or 'the module'}` {_ranges(lines)}"


def _ranges(lines: Iterable[int]) -> str:
    shown: list[list[int]] = []
    for line in sorted(lines):
        if shown and line == shown[-1][-1] + 1:
            shown[-1][1:] = [line]
        else:
            shown.append([line])
    return ", ".join("-".join(map(str, one)) for one in shown)


def page(found: Iterable[Group], of: str) -> str:
    """docs/COVERAGE.md.

    Args:
        of: which tests were run.
    """
    lines = [_PAGE_HEAD.format(of=of)]
    judged = list(found)
    lines += [f"| {one.name} | {len(one.files)} | {one.whole} | {one.share:.1%} |" for one in judged]
    for group in judged[:-1]:
        lines += ["", f"## Left in {group.name}", "", "| file | run | functions and lines |", "|---|---|---|"]
        for name, one in sorted(group.files.items()):
            if left := list(left_in(one)):
                lines.append(f"| `{name}` | {one['summary']['percent_covered']:.0f} % | {'; '.join(left)} |")
    return "\n".join([*lines, ""])


_PAGE_HEAD: Final = """\
# What the tests run

<!-- Made by `make coverage`; change tests/documents/coverage.py instead. -->

`make coverage` runs the tests with coverage.py, all but those of a browser, of JavaScript, of `deploy`, of examples and
of kills, and counts lines and branches: in the processes of the tests, in the servers that tests fork, and in the
commands they start. What a server does before `kill -9` is not seen. The target is 95 % of `actors`, of `storage` and
of the pure files of `web` (those that `make layers` keeps free of an event loop).
The numbers of lines are those of the run: {of}.

| files | how many | lines and branches | run |
|---|---|---|---|"""


def main() -> int:
    """Write the page; 1: a target is missed."""
    found = groups(measured())
    now = time.strftime("%Y-%m-%d", time.gmtime())
    PAGE.write_text(page(found, f"{' '.join(sys.argv[1:]) or 'the whole suite'}, {now}"))
    for group in found:
        print(f"{group.name}: {group.share:.1%} of {group.whole}")
    return int(any(group.share < SHARE_MIN for group in found[:-1]))


if __name__ == "__main__":
    sys.exit(main())
