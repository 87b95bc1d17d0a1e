"""The demo: its samples are broadcasts a server accepts, and its text can be pasted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from web import wire
from web.commands.serve import DEMO_ID, demo_text, sample
from web.records import EffectivenessUpdate, FeedbackUpdate, RecommendationUpdate, Update

KIND_OF_ROUTE: dict[str, type[Update]] = {
    "broadcast-recommendation-update": RecommendationUpdate,
    "broadcast-effectiveness-update": EffectivenessUpdate,
    "broadcast-feedback-update": FeedbackUpdate,
}


@pytest.mark.parametrize("number", [*range(6), 118, 121, 1_000_000])
def test_every_sample_is_a_valid_broadcast(number: int) -> None:
    route, fields = sample(number)
    body = json.dumps({"diagnosis_id": DEMO_ID, **fields}).encode()
    assert wire.decode_update(KIND_OF_ROUTE[route], body).data()


def test_the_three_kinds_take_turns() -> None:
    assert {sample(number)[0] for number in range(3)} == set(KIND_OF_ROUTE)


def test_the_text_names_the_server_and_the_key_to_use() -> None:
    text = demo_text("http://127.0.0.1:8000", Path("somewhere"))
    assert "tail 42 --url http://127.0.0.1:8000 --data somewhere\n" in text
    assert "curl -s http://127.0.0.1:8000/ws/status\n" in text
