"""The patterns of the documents are of ECMA-262, as JSON Schema has them.

`tests/server/test_line_feeds.py` shows that the server refuses what they refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import asyncapi, openapi
from tests.documents.test_official_tools import findings

GOOD = {
    "^[A-Za-z0-9_-]{1,64}$": "42",
    "^[A-Za-z0-9_.-]{1,64}$": "phone",
    "^[0-9]{1,15}$": "0",
    "^[0-9]{0,15}$": "0",
    "^[!-~]{1,64}$": "3f2a9c",
    "^(oldest|new|[0-9]{1,15})$": "new",
    "^([!-~]{1,64}[.][0-9]{1,15})?$": "3f2a9c.7",
    "^[!-~]([ -~]{0,126}[!-~])?$": "key 1",
    "^[ -~]{1,128}$": "key 1",
    r"^[^\x00-\x1f\x7f]*$": "amira",
    "^[0-9a-f]{64}$": "0f" * 32,
    "Z$": "2026-01-01T00:00:00.000Z",
}
"""A text that each pattern of the documents matches."""

ESCAPES = frozenset("xu./-[](){}*+?^$|\\")
"""What may follow a backslash: an escape that ECMA-262 and Python read alike. `\\d`, `\\w`, `\\s` they do not."""


def patterns(schema: Any) -> Iterator[str]:
    """Every pattern below a schema."""
    if isinstance(schema, list):
        for one in schema:
            yield from patterns(one)
    if isinstance(schema, dict):
        if isinstance(found := schema.get("pattern"), str):
            yield found
        for one in schema.values():
            yield from patterns(one)


ALL = sorted({*patterns(openapi()), *patterns(asyncapi())})


@pytest.mark.parametrize("pattern", ALL)
def test_a_pattern_is_read_alike_by_ecma_262_and_by_python(pattern: str) -> None:
    assert not re.search(r"\(\?(?![:=!])", pattern), "a group of a kind that only Python has"
    assert set(re.findall(r"\\(.)", pattern)) <= ESCAPES
    assert pattern.endswith("$"), "it says where the text ends"
    assert pattern.count("$") == 1
    assert re.search(pattern.replace("$", r"\Z"), GOOD[pattern])
    assert not re.search(pattern.replace("$", r"\Z"), GOOD[pattern] + "\n")


def test_ecma_262_itself_matches_the_same_texts(tmp_path: Path) -> None:
    file = tmp_path / "patterns.json"
    file.write_text(json.dumps([(one, GOOD[one] + end, not end) for one in ALL for end in ("", "\n")]))
    assert findings("patterns", "@asyncapi/parser", file) == []
    file.write_text(json.dumps([(r"\A[a-z]*\Z", "a", True), ("^a$", "a\n", True)]))
    assert len(findings("patterns", "@asyncapi/parser", file)) == 2
