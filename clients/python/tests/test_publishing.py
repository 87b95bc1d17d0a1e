"""What is sent, what becomes of answers, and when it is tried again: the core of the broadcasters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avicenna_live.errors import (
    BroadcastError,
    Forbidden,
    InvalidField,
    KeyReused,
    NoAnswer,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from avicenna_live.publishing import (
    BULK_BYTES_MAX,
    LINES_MAX,
    Answer,
    Patience,
    Receipt,
    Renew,
    Send,
    Sleep,
    publish,
    publish_all,
)
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def patience(self, seconds: float = 60.0) -> Patience:
        return Patience(seconds, lambda: self.now, lambda: 0.5)


def good(seq: int = 1, **fields: object) -> dict[str, Any]:
    subscribers = {"online": 1, "known": 2, "at_risk": 0}
    receipt = {"diagnosis_id": 42, "seq": seq, "epoch": "e", "clients_notified": 1, "subscribers": subscribers}
    return {"status": "broadcasted", "replayed": False, **receipt, **fields}


def answer(status: int, content: object = None, **headers: str) -> Answer:
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, found, json.dumps(content or {"code": "c", "detail": "d"}).encode())


def carry_out(
    steps: Any, clock: Clock, answers: list[Answer | NoAnswer], renewable: bool = True
) -> tuple[Any, list[Send]]:
    """The result of the steps when these are the answers, and what was sent."""
    sent: list[Send] = []
    reply: object = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as done:
            return done.value, sent
        match step:
            case Send():
                sent.append(step)
                reply = answers.pop(0)
            case Sleep():
                clock.now += step.seconds
            case Renew():
                reply = renewable


UPDATE = feedback_update(42, 7, 5, idempotency_key="key-of-the-test")


def test_a_receipt_says_what_the_server_says() -> None:
    clock = Clock()
    receipt, (request,) = carry_out(publish(UPDATE, clock.patience()), clock, [answer(200, good(3))])
    assert (receipt.seq, receipt.diagnosis_id, receipt.subscribers.known, receipt.replayed) == (3, 42, 2, False)
    assert request.path == "/ws/broadcast-feedback-update"
    assert request.headers == {"Idempotency-Key": "key-of-the-test"}
    assert json.loads(request.content) == {"diagnosis_id": 42, "feedback_id": 7, "rating": 5}


@pytest.mark.parametrize("passing", [NoAnswer(), answer(429), answer(500), answer(502), answer(503), answer(504)])
def test_what_fails_in_passing_is_sent_again_with_the_same_key(passing: Answer | NoAnswer) -> None:
    clock = Clock()
    receipt, sent = carry_out(publish(UPDATE, clock.patience()), clock, [passing, passing, answer(200, good())])
    assert receipt.seq == 1
    assert sent == [sent[0]] * 3
    assert clock.now > 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BroadcastError), (403, Forbidden), (404, NotFound), (409, KeyReused), (413, TooLarge), (422, InvalidField)],
)
def test_a_refusal_is_raised_at_once(status: int, kind: type[BroadcastError]) -> None:
    clock = Clock()
    problem = {"code": "some_code", "detail": "rating must be 1-5"}
    with pytest.raises(kind, match="rating must be 1-5") as caught:
        carry_out(publish(UPDATE, clock.patience()), clock, [answer(status, problem, x_request_id="r1")])
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.request_id) == ("some_code", "r1")
    assert clock.now == 0


@pytest.mark.parametrize(
    ("last", "kind"), [(NoAnswer(), NoAnswer), (answer(429), RateLimited), (answer(503), Unavailable)]
)
def test_patience_ends_with_the_last_error(last: Answer | NoAnswer, kind: type[BroadcastError]) -> None:
    clock = Clock()
    with pytest.raises(kind):
        carry_out(publish(UPDATE, clock.patience(5)), clock, [last] * 1000)
    assert clock.now <= 5


@pytest.mark.parametrize(("tries", "was_sent"), [((False, False), False), ((True, False), True), ((False, True), True)])
def test_an_update_that_no_try_has_sent_was_certainly_not_stored(tries: tuple[bool, bool], was_sent: bool) -> None:
    clock = Clock()
    answers: list[Answer | NoAnswer] = [NoAnswer(one) for one in tries]
    with pytest.raises(NoAnswer, match="not known" if was_sent else "nothing was sent") as caught:
        carry_out(publish(UPDATE, clock.patience(0.2)), clock, answers)
    assert caught.value.was_sent == was_sent
    assert not answers


def test_the_server_says_how_long_to_wait_at_least() -> None:
    clock = Clock()
    carry_out(publish(UPDATE, clock.patience()), clock, [answer(503, retry_after="7"), answer(200, good())])
    assert 7 <= clock.now < 8


def test_a_refused_token_is_renewed_once() -> None:
    clock = Clock()
    receipt, sent = carry_out(publish(UPDATE, clock.patience()), clock, [answer(401), answer(200, good())])
    assert (receipt.seq, len(sent)) == (1, 2)
    with pytest.raises(Unauthenticated):
        carry_out(publish(UPDATE, clock.patience()), clock, [answer(401), answer(401)])
    with pytest.raises(Unauthenticated):
        carry_out(publish(UPDATE, clock.patience()), clock, [answer(401)], renewable=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b'{"seq":1}', b"[" * 9999])
def test_an_answer_that_is_none_of_ours_is_no_receipt(content: bytes) -> None:
    clock = Clock()
    for status in (200, 403):
        with pytest.raises(BroadcastError, match="no avicenna-live server"):
            carry_out(publish(UPDATE, clock.patience()), clock, [Answer(status, {}, content)])


def lines(*outcomes: dict[str, Any]) -> Answer:
    return Answer(200, {}, b"".join(json.dumps(one).encode() + b"\n" for one in outcomes))


def test_each_line_of_a_batch_has_its_outcome_and_only_the_passing_ones_are_sent_again() -> None:
    clock = Clock()
    updates = [feedback_update(42, number, 5, idempotency_key=f"k{number}") for number in range(3)]
    refused = {"line": 2, "status": 422, "code": "invalid_field", "detail": "rating must be 1-5"}
    full = {"line": 3, "status": 429, "code": "mailbox_full", "detail": "later"}
    first = lines({"line": 1, **good(1), "status": 200}, refused, full)
    second = lines({"line": 1, **good(2), "status": 200})
    (one, two, three), sent = carry_out(publish_all(updates, clock.patience()), clock, [first, second])
    assert (one.seq, type(two), three.seq) == (1, InvalidField, 2)
    keys = [[json.loads(line)["idempotency_key"] for line in request.content.splitlines()] for request in sent]
    assert keys == [["k0", "k1", "k2"], ["k2"]]
    assert json.loads(sent[0].content.splitlines()[0])["type"] == "feedback_update"


def test_a_batch_that_is_refused_whole_is_refused_for_each() -> None:
    clock = Clock()
    found, _ = carry_out(publish_all([UPDATE, UPDATE], clock.patience()), clock, [answer(403)])
    assert [type(one) for one in found] == [Forbidden, Forbidden]
    assert carry_out(publish_all([], clock.patience()), clock, []) == ([], [])


@given(st.lists(st.integers(0, 60_000), max_size=120))
def test_requests_of_a_batch_keep_the_limits_and_the_order(sizes: list[int]) -> None:
    clock = Clock()
    updates = [
        recommendation_update(1, None, {"text": "x" * size}, idempotency_key=str(at)) for at, size in enumerate(sizes)
    ]
    steps = publish_all(updates, clock.patience())
    keys: list[str] = []
    reply: Answer | None = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as done:
            found = done.value
            break
        assert isinstance(step, Send)
        rows = step.content.splitlines()
        assert len(rows) <= LINES_MAX
        assert len(step.content) <= BULK_BYTES_MAX
        keys += [json.loads(row)["idempotency_key"] for row in rows]
        reply = lines(*({**good(), "status": 200} for _ in rows))
    assert keys == [update.idempotency_key for update in updates]
    assert [type(one) for one in found] == [Receipt] * len(updates)


def test_a_body_of_several_lines_is_one_line_of_a_batch() -> None:
    update = Update("feedback", ' {\n  "diagnosis_id": 1,\r\n  "feedback_id": 2,\n  "rating": 3\n}\n', "k")
    request = next(publish_all([update, update], Patience(0, lambda: 0.0, lambda: 0.0)))
    assert isinstance(request, Send)
    fields = {"diagnosis_id": 1, "feedback_id": 2, "rating": 3}
    line = {"type": "feedback_update", "idempotency_key": "k", **fields}
    assert [json.loads(one) for one in request.content.splitlines()] == [line, line]


def test_two_thousand_updates_take_two_requests() -> None:
    clock = Clock()
    answers: list[Answer | NoAnswer] = [lines(*({**good(), "status": 200} for _ in range(LINES_MAX)))] * 2
    found, sent = carry_out(publish_all([UPDATE] * 2 * LINES_MAX, clock.patience()), clock, answers)
    assert (len(found), len(sent)) == (2 * LINES_MAX, 2)


def test_effectiveness_has_two_names() -> None:
    assert effectiveness_update(1, 2, 0.5, idempotency_key="k") == effectiveness_update(
        1, 2, effectiveness=0.5, idempotency_key="k"
    )
    with pytest.raises(TypeError):
        effectiveness_update(1, 2)
    with pytest.raises(TypeError):
        effectiveness_update(1, 2, 0.5, effectiveness=0.5)


@pytest.mark.parametrize("key", ["", "k" * 129, "k é", "k\r\nX: y", "k\x7f", " k", "k ", 5])
def test_a_key_that_is_none_is_refused_when_the_update_is_made(key: object) -> None:
    with pytest.raises(ValueError, match="idempotency_key must be 1-128 printable ASCII characters"):
        feedback_update(1, 2, 3, idempotency_key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["k", "k" * 128, 'a key "of" our own~'])
def test_a_key_of_ones_own_is_used(key: str) -> None:
    assert feedback_update(1, 2, 3, idempotency_key=key).idempotency_key == key


def test_what_is_no_update_is_refused_before_anything_is_sent() -> None:
    patience = Patience(0, lambda: 0.0, lambda: 0.0)
    with pytest.raises(TypeError, match="an Update is published, not int"):
        next(publish(5, patience))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an Update is published, not str"):
        next(publish_all([feedback_update(1, 2, 3), "x"], patience))  # type: ignore[list-item]


def test_updates_show_nothing_and_have_keys_of_their_own() -> None:
    update = feedback_update("a-1", "f", 5, comment="a-secret-of-a-patient")
    assert "secret" not in repr(update)
    assert update.idempotency_key != feedback_update("a-1", "f", 5).idempotency_key
    assert isinstance(update, Update)
    with pytest.raises(ValueError, match="JSON"):
        recommendation_update(1, None, {"a": float("nan")})
    with pytest.raises(ValueError, match="surrogate"):
        feedback_update(1, 2, 3, comment="\ud800")
