"""`docs/PROTOCOL.md` can be read, and says everything: each operation, frame, code and reason has its place there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actors.transport import Ending
from tests.contract import asyncapi
from tests.documents.protocol_page import CHARACTERS_MAX, PAGE, Section, examples, sections
from web.contract import errors
from web.contract.errors import STATUS_OF_CODE, STATUSES_OF_THE_EDGE, Refusal, close_of
from web.contract.operations import OPERATIONS, Operation
from web.contract.records import KINDS
from web.server.openapi import ANY_OPERATION, OF_ACCESS, OF_CHANGES, OF_HOSTS

ROOT = PAGE.parents[1]
TEXT = PAGE.read_text()
SECTIONS = sections(TEXT)

TITLES = {
    "1": "The promise, in one sentence",
    "2": "Terms",
    "3": "WebSocket `GET /ws/{diagnosis_id}`",
    "4": "Frames and closes",
    "5": "Acknowledgement",
    "6": "Liveness and slow clients",
    "7": "Broadcasts",
    "8": "Status, registry, operators",
    "9": "Tokens",
    "10": "Running it",
}
"""Code, tests and documents name these by their numbers: the numbers stay, and what they are about."""

CLIENT_FRAMES = ("ping", "ack", "auth")

_REFERENCE = re.compile(r"PROTOCOL(?:\.md)?(?:\]\([^)]*\))?,? (?:sections? )?([0-9]+(?:\.[0-9]+)?)")
_WITHIN = re.compile(r"\bsections? ([0-9]+(?:\.[0-9]+)?)(?:(?: and | to |, )([0-9]+\.[0-9]+))?")


def section(number: str) -> Section:
    """The section with this number."""
    return next(one for one in SECTIONS if one.number == number)


def unnamed(path: str) -> str:
    """A path whatever its parameters are called, without its query."""
    return re.sub(r"{\w+}", "{}", path.split("?", maxsplit=1)[0])


def named(operation: Operation) -> str:
    """An operation as a heading names it."""
    return f"{operation.method.upper()} {unnamed(operation.path)}"


def test_no_line_is_longer_than_can_be_read() -> None:
    assert [number for number, line in enumerate(TEXT.splitlines(), 1) if len(line) > CHARACTERS_MAX] == []


def test_the_sections_keep_their_numbers_and_follow_each_other() -> None:
    assert {one.number: one.title for one in SECTIONS if "." not in one.number} == TITLES
    for top in TITLES:
        below = [one.number for one in SECTIONS if one.number.startswith(f"{top}.")]
        assert below == [f"{top}.{number}" for number in range(1, len(below) + 1)]


def test_every_section_that_is_named_anywhere_is_there() -> None:
    numbers = {one.number for one in SECTIONS}
    within = {number for found in _WITHIN.findall(TEXT) for number in found if number}
    assert within <= numbers
    for file in sources():
        found = set(_REFERENCE.findall(file.read_text()))
        assert found <= numbers, f"{file.relative_to(ROOT)} names {sorted(found - numbers)}"


def sources() -> list[Path]:
    """Every file of ours that may name a section."""
    rooms = ("actors", "storage", "web", "tests", "clients", "docs", "benchmarks")
    kinds = {".py", ".md", ".yaml", ".js", ".ts", ".mjs"}
    found = [one for room in rooms for one in (ROOT / room).rglob("*") if one.suffix in kinds and one.is_file()]
    return [one for one in found if "node_modules" not in one.parts] + list(ROOT.glob("*.md"))


@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
def test_every_operation_has_a_section_with_its_codes(operation: Operation) -> None:
    (found,) = [one for one in SECTIONS if named(operation) in map(unnamed, one.names)]
    assert pairs(found.paragraph("Codes")) == {(STATUS_OF_CODE[code], code) for code in operation.problems}
    assert "**Who**" in found.text


def pairs(text: str) -> set[tuple[int, str]]:
    """Every status with the code behind it."""
    return {(int(status), code) for status, code in re.findall(r"([0-9]{3})\s+`(\w+)`", text)}


def test_every_problem_code_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([0-9]{3}) \| ", section("7.12").text, re.MULTILINE)
    assert {code: int(status) for code, status in rows} == STATUS_OF_CODE


def test_the_codes_that_operations_share_are_said_once() -> None:
    shared = {*ANY_OPERATION, *OF_CHANGES, *OF_HOSTS, *OF_ACCESS["token"]}
    assert pairs(section("7.12").text) == {(STATUS_OF_CODE[code], code) for code in shared}


def test_every_status_of_the_edge_is_said() -> None:
    said = {status for status, _ in pairs(section("7.13").text)}
    assert said == {*STATUSES_OF_THE_EDGE, 400, 503}


def test_every_frame_has_a_section_with_its_fields() -> None:
    messages: dict[str, Any] = asyncapi()["channels"]["diagnosis"]["messages"]
    for name in messages:
        (found,) = [one for one in SECTIONS if one.title in (f"`{name}`", f"`{name}` (client)")]
        assert found.number.startswith("4.")
        assert found.title.endswith("(client)") is (name in CLIENT_FRAMES)
        if name in CLIENT_FRAMES or name == "pong":
            continue
        fields = {field for row in found.first_rows() for field in row}
        assert fields == data_of(name)["properties"].keys(), name


def data_of(name: str) -> dict[str, Any]:
    """The schema of the `data` of a frame of the server."""
    reference = asyncapi()["components"]["messages"][name]["payload"]["allOf"][1]["properties"]["data"]["$ref"]
    found: dict[str, Any] = asyncapi()["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def test_every_frame_is_in_an_example() -> None:
    lines = [line for one in examples(TEXT) for part in one.parts for line in part.lines]
    said = {found[1] for _, text in lines if (found := re.search(r'"type": "(\w+)"', text)) is not None}
    assert {name for channel in asyncapi()["channels"].values() for name in channel["messages"]} <= said


def test_every_frame_that_the_server_sends_is_documented() -> None:
    texts = "".join(file.read_text() for file in (ROOT / "web").rglob("*.py"))
    sent = set(re.findall(r'\b(?:say|frame)\("(\w+)"', texts))
    documented = {name for channel in asyncapi()["channels"].values() for name in channel["messages"]}
    assert sent >= {"connect", "gap", "live", "bye"}
    assert sent - documented == set()


def test_every_frame_of_a_client_that_publishes_is_in_a_table_with_its_fields() -> None:
    text = section("7.15").text
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    ours = asyncapi()["channels"]["publish"]["messages"].keys() - {*KINDS, "ping", "auth"}
    assert ours <= rows.keys()
    for name in ("receipt", "refused"):
        fields = asyncapi()["components"]["schemas"][f"{name.title()}Frame"]["required"]
        assert {"type", "timestamp", *re.findall(r"`(\w+)`", rows[name])} >= set(fields)
    assert set(re.findall(r"`(\w+)`", rows["connect"])) >= set(
        asyncapi()["components"]["schemas"]["Publishing"]["required"]
    )


def test_every_code_of_an_error_frame_is_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?!str)", section("4.13").text, re.MULTILINE)
    assert sorted(rows) == sorted(data_of("error")["properties"]["code"]["enum"])


def test_every_close_code_and_reason_is_in_its_table() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \| (?:`([a-z ]+)`)? ?\|", section("4.22").text, re.MULTILINE)
    said = {(int(code), reason) for codes, reason in rows for code in codes.split(", ")}
    documented = asyncapi()["channels"]["diagnosis"]["x-close-codes"]
    assert {str(code) for code, _ in said} == documented.keys() | {"1006"}
    assert {reason for code, reason in said if code == 1008} == set(documented["1008"]["reasons"])
    assert {int(one) for one in errors.CloseCode} <= {code for code, _ in said}
    ours = {(int(code), reason) for code, reason in map(close_of, Ending)}
    assert ours | {(one.close_code, one.reason) for one in refusals()} | {(1011, "internal error")} <= said


def refusals() -> list[Refusal]:
    """Every refusal of a WebSocket that has a name."""
    return [one for one in vars(errors).values() if isinstance(one, Refusal)]


def test_every_refusal_before_connect_is_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([0-9]{4}) \| `([a-z ]+)` \|", section("3.4").text, re.MULTILINE)
    said = {(code, int(close), reason) for code, close, reason in rows}
    assert {(one.code, int(one.close_code), one.reason) for one in refusals()} <= said
    made = (errors.too_many(""), errors.invalid_parameter(""))
    assert {(one.code, int(one.close_code), one.reason) for one in made} <= said


def test_the_kinds_of_events_are_published_as_they_are_delivered() -> None:
    for kind in KINDS:
        (found,) = [one for one in SECTIONS if one.title == f"`{kind}`"]
        assert f"section 7.{list(KINDS).index(kind) + 1}" in found.text
