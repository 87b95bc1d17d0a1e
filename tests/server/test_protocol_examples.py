"""`docs/PROTOCOL.md`: a real server answers each example as the page shows it."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.documents.protocol_page import PAGE, Example, examples
from tests.server.conversations import Conversation, difference
from tests.server.harness import running_server
from web.server.settings import Settings

EXAMPLES = list(examples(PAGE.read_text()))


def test_no_section_has_two_examples() -> None:
    assert max(Counter(one.section for one in EXAMPLES).values()) == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.section for one in EXAMPLES])
async def test_an_example_is_what_the_server_says(example: Example, tmp_path: Path, way: str) -> None:
    settings = Settings(port=0, data=tmp_path / "data", **example.settings)  # type: ignore[arg-type]  # all are numbers
    async with running_server(settings) as server, AsyncExitStack() as stack:
        conversation = Conversation(server, stack)
        await conversation.prepare(example)
        for part in example.parts:
            for shown, said in await conversation.have(part):
                assert difference(shown, said, are_several=way == "workers") is None


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("200", "201"),
        ("", "data: {}"),
        ("close 1008 revoked", "close 1008 rate limited"),
        ("id: 5c0f3a9be1d27846.2", "id: 5c0f3a9be1d27846.3"),
        ("Retry-After: 1", "Retry-After: 2"),
        ('data: {"seq": 1}', "id: 5c0f3a9be1d27846.2"),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": [{"b": 1}]}', '{"a": [{"b": 2}]}'),
        ('{"a": [1]}', '{"a": [1, 1]}'),
        ('{"at": "2026-01-31T12:00:00.000Z"}', '{"at": null}'),
        ('{"at": "2026-01-31T12:00:00.000Z"}', '{"at": "noon"}'),
    ],
)
def test_a_line_that_the_server_does_not_say_is_noticed(shown: str, said: str) -> None:
    assert difference(shown, said) is not None


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("id: 5c0f3a9be1d27846.2", "id: 0123456789abcdef.2"),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}'),
        ('{"at": "2026-01-31T12:00:00.000Z", "bytes": 1}', '{"at": "2027-02-01T13:00:01.123Z", "bytes": 2}'),
    ],
)
def test_what_differs_from_run_to_run_is_no_difference(shown: str, said: str) -> None:
    assert difference(shown, said) is None
