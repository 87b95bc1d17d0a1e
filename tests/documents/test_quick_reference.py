"""`docs/QUICK_REFERENCE.md` and `docs/TROUBLESHOOTING.md` have every code, frame, kind, scope and command."""

from __future__ import annotations

import argparse
import re
from typing import Any

from tests.contract import asyncapi
from tests.documents.limits import PARTS, bounds
from tests.programs import ROOT
from web.commands import line
from web.contract.errors import STATUS_OF_CODE
from web.contract.records import KINDS
from web.demo import command as demo
from web.identity.rights import SCOPES

PAGE = (ROOT / "docs" / "QUICK_REFERENCE.md").read_text()
TROUBLE = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()


def section(title: str, page: str = PAGE) -> str:
    """What stands below a heading."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##? |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the tables below a heading, without their heads."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if set(row[0]) != {"-"} and "---" not in below
    ]


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def test_every_problem_code_stands_behind_its_status() -> None:
    said = {code: int(row[0]) for row in rows("Statuses") for code in quoted(row[1])}
    assert said == STATUS_OF_CODE


def test_every_frame_is_named() -> None:
    messages: dict[str, Any] = asyncapi()["channels"]["diagnosis"]["messages"]
    of_clients = {"ping", "ack", "auth"}
    said = {name for row in rows("Follow") for name in quoted(row[0])}
    assert messages.keys() - of_clients <= said
    assert of_clients <= quoted(section("Follow"))


def test_every_close_is_named_with_its_reasons() -> None:
    documented: dict[str, Any] = asyncapi()["channels"]["diagnosis"]["x-close-codes"]
    said = {code for row in rows("After a close") for code in re.findall(r"\d{4}", row[0])}
    assert said == documented.keys() - {"1000", "1001"} | {"1006"}
    reasons = {reason for row in rows("After a close") if row[0] == "1008" for reason in quoted(row[1])}
    assert reasons == set(documented["1008"]["reasons"])


def test_every_reason_of_1008_has_its_row_in_troubleshooting() -> None:
    table = section("1008: the server refuses", TROUBLE)
    said = re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE)
    assert sorted(said) == sorted(asyncapi()["channels"]["diagnosis"]["x-close-codes"]["1008"]["reasons"])


def test_every_other_close_and_status_has_its_place_in_troubleshooting() -> None:
    for code in ("1006", "1011", "1012", "1013", "4000"):
        assert re.search(rf"^### {code}: ", TROUBLE, re.MULTILINE), code
    for code in ("forbidden", "origin_not_allowed", "key_reused", "mailbox_full", "rate_limited", "draining"):
        assert f"`{code}`" in section("A request is refused", TROUBLE), code


def test_every_kind_of_update_is_named_with_its_fields() -> None:
    said = {f"{row[0]}_update": quoted(row[1]) for row in rows("Publish")}
    # `effectiveness` of an effectiveness update is another spelling of `new_effectiveness`.
    fields = {kind: set(record.__struct_fields__) for kind, record in KINDS.items()}
    assert said.keys() == fields.keys()
    assert {kind: fields[kind] - said[kind] for kind in fields if fields[kind] - said[kind]} == {
        "effectiveness_update": {"effectiveness"}
    }
    assert all(said[kind] <= fields[kind] for kind in fields)


def test_every_scope_is_named() -> None:
    assert {name for row in rows("Rights") for name in quoted(row[0])} == set(SCOPES)


def test_every_command_is_named() -> None:
    said = {name for row in rows("Commands") for name in quoted(row[0])}
    assert said == commands()


def commands() -> set[str]:
    """The commands of `avicenna-live`, by the first word."""
    (found,) = [one for one in line.parser(demo)._actions if isinstance(one, argparse._SubParsersAction)]
    return set(found.choices)


def test_the_limits_are_those_of_the_code() -> None:
    shown: dict[str, set[str]] = {}
    for directories in PARTS.values():
        for directory in directories:
            for one in bounds(ROOT / directory):
                shown.setdefault(one.name, set()).add(one.shown)
    for what, value, _ in rows("Limits"):
        (name,) = quoted(what)
        assert value in shown[name], what
