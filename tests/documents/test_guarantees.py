"""`docs/GUARANTEES.md` names the tests and the planted bugs of each promise, and each promise has some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents.guarantees import HEADING, PAGE, Mark, UnreadableMark, complaints, listing, marks
from tests.mutants.planted import PLANTED, Planted

TABLE = "| number | promise |\n|---|---|\n| G1 | Nothing is lost. |\n| G2 | Nothing is repeated. |\n\n"
FOUND = [Mark(1, "tests/test_a.py", "test_nothing_is_lost"), Mark(2, "tests/test_a.py", "test_nothing_is_repeated")]
BUGS = (Planted("something is lost", (1, 2), "a.py", "x", "y"),)


def page(found: list[Mark], bugs: tuple[Planted, ...] = BUGS) -> str:
    return TABLE + HEADING + listing(found, bugs)


def test_each_promise_has_its_tests_and_planted_bugs_and_the_page_names_exactly_these() -> None:
    assert complaints(PAGE.read_text(), marks(), PLANTED) == []


def test_a_page_that_names_the_tests_and_bugs_of_each_promise_is_right() -> None:
    assert complaints(page(FOUND), FOUND, BUGS) == []


def test_a_promise_that_loses_its_mark_is_noticed() -> None:
    assert "no test is marked for the promise G2" in complaints(page(FOUND), FOUND[:1], BUGS)
    assert complaints(page(FOUND[:1]), FOUND[:1], BUGS) == ["no test is marked for the promise G2"]


def test_a_mark_for_no_promise_is_noticed() -> None:
    found = [*FOUND, Mark(3, "tests/test_a.py", "test_something")]
    assert complaints(page(found), found, BUGS) == ["tests/test_a.py: test_something: G3 is no promise"]


def test_a_promise_without_a_planted_bug_is_noticed() -> None:
    bugs = (Planted("something is lost", (1,), "a.py", "x", "y"),)
    assert complaints(page(FOUND, bugs), FOUND, bugs) == ["no bug is planted against the promise G2"]


def test_a_bug_that_is_planted_against_no_promise_is_noticed() -> None:
    bugs = (*BUGS, Planted("something else", (3,), "a.py", "x", "y"))
    assert complaints(page(FOUND, bugs), FOUND, bugs) == ["a bug is planted against G3, which is no promise"]


@pytest.mark.parametrize(
    "wrong",
    [
        page(FOUND).replace("test_nothing_is_lost", "test_that_was_renamed"),
        page([*FOUND, Mark(1, "tests/test_a.py", "test_without_a_mark")]),
        page([FOUND[0], Mark(2, "tests/test_b.py", FOUND[1].test)]),
        page(FOUND) + "\n### G3\n",
        page(FOUND, (Planted("something is repeated", (1, 2), "a.py", "x", "y"),)),
        TABLE,
    ],
    ids=["renamed", "no mark", "another file", "added by hand", "another bug", "no names at all"],
)
def test_names_that_are_not_those_of_the_marks_are_noticed(wrong: str) -> None:
    assert complaints(wrong, FOUND, BUGS) == [
        "the names below are not those of the marks and of the planted bugs: make guarantees"
    ]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_marks_are_read_from_the_text_of_the_tests(tmp_path: Path, kind: str) -> None:
    (tmp_path / "test_a.py").write_text(
        f"@pytest.mark.guarantee(1)\n@pytest.mark.guarantee(2)\n{kind} test_both() -> None: ...\n"
        f"@pytest.mark.parametrize('a', [1])\n@pytest.mark.guarantee(10)\n{kind} test_ten(a: int) -> None: ...\n"
    )
    assert marks(tmp_path, tmp_path) == [
        Mark(1, "test_a.py", "test_both"),
        Mark(2, "test_a.py", "test_both"),
        Mark(10, "test_a.py", "test_ten"),
    ]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("test_a.py", "pytestmark = pytest.mark.guarantee(1)\n"),
        ("test_a.py", "@pytest.mark.guarantee(1)\ndef helps() -> None: ...\n"),
        ("test_a.py", "@pytest.mark.guarantee(NUMBER)\ndef test_it() -> None: ...\n"),
        ("test_a.py", "@pytest.mark.guarantee(1)\ndef test_it() -> None: ...\ndef test_it() -> None: ...\n"),
        ("test_a.py", "@pytest.mark.guarantee(1)\nclass TestIt: ...\n"),
        ("harness.py", "@pytest.mark.guarantee(1)\ndef test_it() -> None: ...\n"),
    ],
    ids=["of a file", "above no test", "number unknown", "shadowed", "of a class", "not collected"],
)
def test_a_mark_that_shows_nothing_is_refused(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UnreadableMark, match=f"{file}:1"):
        marks(tmp_path, tmp_path)
