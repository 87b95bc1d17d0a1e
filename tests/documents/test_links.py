"""The pages lead where they say: links to files and headings, names of files and tests, and the index of decisions."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.contract import ROOT

PAGES: Final = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/*/*.md",
        "clients/*.md",
        "clients/*/*.md",
        "examples/*.md",
        "examples/*/*.md",
    )
    for path in ROOT.glob(pattern)
)

OF_TODAY: Final = [page for page in PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]
"""Pages that describe what is there. A decision may name a file that has gone since."""

KEPT: Final = (
    "actors", "storage", "web", "tests", "benchmarks", "clients", "deploy", "docs", "examples", "requirements",
)  # fmt: skip
"""The directories whose files a page may name."""

MADE: Final = frozenset({"listening.json", "openapi.json", "live.toml"})
"""Files that a running server or the reader makes: no page can be held to them."""

BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```|^    [^\n]*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|js|mjs|ts|md|yaml|yml|json|toml|lock|c|h|html))`")
TEST = re.compile(r"`(test_\w+)`")
INDEXED = re.compile(r"^\| \[(\d{4})\]\((\d{4}-[^)]*\.md)\) \|", re.MULTILINE)


def text_of(page: Path) -> str:
    return (ROOT / page).read_text()


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, no punctuation, `-` for a blank."""
    found: list[str] = []
    for heading in HEADING.findall(BLOCK.sub("", text_of(page))):
        shown = LINK.sub(lambda link: link[0].partition("]")[0], heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).strip().replace(" ", "-")
        same = sum(1 for one in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
        found.append(f"{slug}-{same}" if same else slug)
    return frozenset(found)


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link that stands in a page leads to another site, or to a file or heading that is there."""
    if re.match(r"[a-z]+:", target):
        return True
    name, _, anchor = target.partition("#")
    file = (ROOT / page.parent / name).resolve() if name else ROOT / page
    return file.exists() and (not anchor or anchor in anchors(file.relative_to(ROOT)))


def broken(page: Path, text: str) -> list[str]:
    """The links of a text that lead nowhere if it stands in a page."""
    return [target for target in LINK.findall(CODE.sub("", text)) if not leads_somewhere(page, target)]


@cache
def paths() -> frozenset[str]:
    """The files that pages may name, from the root, with a slash in front."""
    below = [path.relative_to(ROOT) for top in KEPT for path in (ROOT / top).rglob("*")]
    beside = [path.relative_to(ROOT) for path in ROOT.iterdir()]
    foreign = {".venv", "node_modules", "__pycache__"}
    return frozenset(f"/{path.as_posix()}" for path in below + beside if not foreign & set(path.parts))


def unknown_files(text: str) -> set[str]:
    """Names of files in a text that no file has. A short name is the end of some path."""
    named = set(FILE.findall(BLOCK.sub("", text)))
    return {
        name
        for name in named
        if name.rpartition("/")[2] not in MADE and not any(path.endswith(f"/{name}") for path in paths())
    }


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_a_page_leads_to_a_file_or_a_heading(page: Path) -> None:
    assert broken(page, text_of(page)) == []


@pytest.mark.parametrize("page", OF_TODAY, ids=str)
def test_every_file_and_test_that_a_page_names_is_there(page: Path) -> None:
    assert unknown_files(text_of(page)) == set()
    defined = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in TEST.findall(text_of(page)) if f"def {name}(" not in defined] == []


def test_the_index_names_every_decision_once_in_order() -> None:
    index = INDEXED.findall(text_of(Path("docs/decisions/README.md")))
    assert [file for _, file in index] == sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
    assert [number for number, file in index if not file.startswith(number)] == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    good = (
        "[a](ARCHITECTURE.md#the-edge), [b](../README.md), [c](https://example.org/), `[d](no.md)`, [e](asyncapi.yaml)"
    )
    wrong = "[f](no.md), [g](ARCHITECTURE.md#no-heading), [h](#no-heading), [i](../README.md#no-heading)"
    found = broken(Path("docs/GUARANTEES.md"), f"{good}, {wrong}")
    assert found == ["no.md", "ARCHITECTURE.md#no-heading", "#no-heading", "../README.md#no-heading"]


def test_a_file_that_is_not_there_is_found() -> None:
    assert unknown_files("`docs/ARCHITECTURE.md`, `ARCHITECTURE.md`, `GET /openapi.json` and `web/no.py`") == {
        "web/no.py"
    }
