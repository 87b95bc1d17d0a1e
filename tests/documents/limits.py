"""The bounds of the server, read from its code, and `docs/LIMITS.md`, which lists them.

`make limits` writes the page anew. A bound is a constant of a module whose name ends in `_MAX` or `_MIN`, or whose text
says what is beyond it. Its text stands below it, as for every constant; a bound without one is a fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "LIMITS.md"

HEADING: Final = "## What clients meet\n"
"""It and everything below it is written by `make limits`."""

PARTS: Final = {
    "What clients meet": ("web/contract", "web/http", "web/websocket", "web/following", "web/publishing"),
    "Tokens and keys": ("web/identity",),
    "Actors": ("actors",),
    "Storage": ("storage",),
    "The process, and what operators ask": ("web/server", "web/operating", "web/console"),
}
"""The headings of the page, and the directories below each."""

NOT_OF_THE_SERVER: Final = ("storage/memory.py", "storage/memory_engine.py", "storage/nats/", "storage/jetstream/")
"""The twin that tests use, and an engine that no setting names yet."""

_NAMED: Final = re.compile(r"[A-Z][A-Z0-9_]*_(MAX|MIN)")
_SAID: Final = re.compile(r"\b(Beyond|Below):")
_SCALES: Final = ((1024 * 1024, "MiB"), (1024, "KiB"))


@dataclass(frozen=True)
class Bound:
    """One constant."""

    file: str
    name: str
    value: float
    text: str
    """One line; empty: it has none."""

    @property
    def shown(self) -> str:
        """The value with its unit, as far as the name says it."""
        if "_BYTES" in self.name and self.value and not self.value % 1024:
            scale, unit = next((scale, unit) for scale, unit in _SCALES if not self.value % scale)
            return f"{self.value / scale:g} {unit}"
        if self.value >= 2**53 - 1:
            return next(f"2^{power} - 1" for power in (53, 63) if self.value == 2**power - 1)
        unit = next((unit for part, unit in (("SECONDS", " s"), ("BYTES", " bytes")) if part in self.name), "")
        text = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:,.6g}"
        return f"{text}{unit}"


def bounds(directory: Path) -> list[Bound]:
    """Every bound in the modules below a directory, by file and in the order of each."""
    return [bound for path in sorted(directory.rglob("*.py")) for bound in _bounds_of(path)]


def _bounds_of(path: Path) -> Iterator[Bound]:
    file = path.relative_to(ROOT).as_posix()
    if file.startswith(NOT_OF_THE_SERVER):
        return
    body = ast.parse(path.read_text()).body
    for at, below in zip(body, [*body[1:], None], strict=True):
        match at, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                pass
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                text = ""
            case _:
                continue
        if not name.startswith("_") and (_NAMED.fullmatch(name) or _SAID.search(text)):
            value = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
            if isinstance(value, int | float):
                yield Bound(file, name, value, " ".join(text.split()))


def listing() -> str:
    """`HEADING` and what stands below it: a table for each part."""
    lines: list[str] = []
    for title, directories in PARTS.items():
        lines += [f"## {title}", "", "| bound | value | meaning | where |", "|---|---|---|---|"]
        for directory in directories:
            for one in bounds(ROOT / directory):
                text = one.text.replace("|", "\\|")
                lines.append(f"| `{one.name}` | {one.shown} | {text} | `{one.file}` |")
        lines.append("")
    return "\n".join(lines)


def complaints() -> list[str]:
    """What keeps the page from being true, or a bound from being understood."""
    found = [bound for directories in PARTS.values() for one in directories for bound in bounds(ROOT / one)]
    wrong = [f"{one.file}: {one.name} does not say what it bounds" for one in found if not one.text]
    if HEADING + PAGE.read_text().partition(HEADING)[2] != listing():
        wrong.append("docs/LIMITS.md is not what the code says: make limits")
    return wrong


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0] + listing())


if __name__ == "__main__":
    main()
