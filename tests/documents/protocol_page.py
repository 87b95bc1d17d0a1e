"""`docs/PROTOCOL.md` as tests read it: its sections, and its examples, which are conversations line by line.

A line of an example begins with `>` (the client says it), `<` (the server says it) or `#` (a remark). A line whose mark
is followed by three blanks or more goes on with the line before. An empty line ends a part. A part that begins with a
method and a path is a request; any other part goes on with the WebSocket or event stream that was opened last, or that
its remark names (`# The first connection:`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"

CHARACTERS_MAX: Final = 200
"""Longest line of the page. Reason: a table cell that takes more is a paragraph, and belongs below the table."""

_HEADING: Final = re.compile(r"#{2,4} ([0-9.]+?)\.? (.+)")
_REQUEST: Final = re.compile(r"(GET|HEAD|POST|PUT|DELETE) (/\S*)")
_RETAINED: Final = re.compile(r"Diagnosis 42 has ([0-9]+) events?[.]")
_SETTING: Final = re.compile(r"[(]([a-z_]+) = ([0-9]+)[)]")
_SELECTED: Final = re.compile(r"The (first|second) connection")
_CODE: Final = re.compile(r"`([^`\n]+)`")


@dataclass
class Section:
    """A numbered heading and what stands below it, up to the next one."""

    number: str
    title: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def names(self) -> list[str]:
        """What the heading shows as code."""
        return _CODE.findall(self.title)

    def paragraph(self, label: str) -> str:
        """The paragraph that begins with this label in bold; empty: there is none."""
        found = re.search(rf"^\*\*{label}\*\*(.*?)(?:\n\n|\n```|\Z)", self.text, re.DOTALL | re.MULTILINE)
        return "" if found is None else found[1]

    def first_rows(self) -> Iterator[list[str]]:
        """What the first cell of each row of its first table shows as code."""
        rows = iter(self.lines)
        for line in rows:
            if line.startswith("|---"):
                break
        for line in rows:
            if not line.startswith("|"):
                return
            yield _CODE.findall(line.split(" | ")[0])


@dataclass
class Part:
    """Some lines of a conversation: a request with its answer, or what goes on over a connection."""

    remarks: list[str] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Who says it (`>`, `<`), and what."""

    @property
    def request(self) -> tuple[str, str] | None:
        """Method and target, if the part begins with a request."""
        found = _REQUEST.fullmatch(self.lines[0][1]) if self.lines and self.lines[0][0] == ">" else None
        return None if found is None else (found[1], found[2])

    @property
    def selected(self) -> int | None:
        """Which connection goes on, as its remark says; `None`: the one that was opened last."""
        found = next(filter(None, map(_SELECTED.search, self.remarks)), None)
        return None if found is None else ("first", "second").index(found[1])


@dataclass
class Example:
    """One conversation."""

    section: str
    parts: list[Part]

    @property
    def retained(self) -> int:
        """Events that diagnosis 42 has when it begins."""
        found = next(filter(None, map(_RETAINED.search, self._remarks)), None)
        return 0 if found is None else int(found[1])

    @property
    def settings(self) -> dict[str, int]:
        """Settings of the server, by name, that are not the defaults."""
        return {found[1]: int(found[2]) for one in self._remarks for found in _SETTING.finditer(one)}

    @property
    def _remarks(self) -> list[str]:
        return [one for part in self.parts for one in part.remarks]


def sections(text: str) -> list[Section]:
    """Every numbered section of the page, in order."""
    found: list[Section] = []
    is_fenced = False
    for line in text.splitlines():
        is_fenced ^= line.startswith("```")
        heading = None if is_fenced else _HEADING.fullmatch(line)
        if heading is not None:
            found.append(Section(heading[1], heading[2]))
        elif found:
            found[-1].lines.append(line)
    return found


def examples(text: str) -> Iterator[Example]:
    """Every conversation of the page, in order."""
    for section in sections(text):
        for block in re.findall(r"^```conversation\n(.*?)^```", section.text, re.DOTALL | re.MULTILINE):
            yield Example(section.number, [_part(one) for one in block.strip().split("\n\n")])


def _part(text: str) -> Part:
    part = Part()
    for line in text.splitlines():
        mark, said = line[:1], line[1:]
        assert mark in ("#", ">", "<"), f"a line of an example begins with one of # > <: {line}"
        if mark == "#":
            part.remarks.append(said.strip())
        elif said.startswith("   "):
            part.lines[-1] = (mark, f"{part.lines[-1][1]} {said.strip()}")
        else:
            part.lines.append((mark, said.strip()))
    return part
