"""What `top` makes of the stream for consoles, and how it comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.cli.strangers import served_by
from tests.cli.test_top_view import FIGURES
from web.commands.answers import ConsoleMessage
from web.commands.client import Client, Credentials
from web.commands.failures import CommandFailed, Unreachable
from web.commands.top_feed import ConsoleFeed, Picture, Strange
from web.console.overview import COLUMNS


def facts(diagnosis_id: str, **values: Any) -> list[Any]:
    """A row, as the server says it."""
    known: dict[str, Any] = {
        "diagnosis_id": diagnosis_id,
        "state": "running",
        "subscribers": 0,
        "retained": 0,
        "head": 0,
        "unacknowledged": 0,
        "lag": 0,
        "mailbox": 0,
        "incarnation": 1,
        "restarts": 0,
        "crashed_at": None,
        "crash": None,
        "damage": None,
    }
    return [(known | values)[name] for name in COLUMNS]


def message(kind: str, **data: Any) -> ConsoleMessage:
    return {"type": kind, "data": data}


def rows(*those: list[Any], gone: Sequence[str] = ()) -> ConsoleMessage:
    return message("rows", rows=list(those), gone=list(gone))


def turn(number: int = 1, **node: Any) -> ConsoleMessage:
    return message("turn", turn=number, node=node)


BEGUN = (
    message("snapshot", columns=list(COLUMNS), diagnoses=2),
    rows(facts("42", head=7, lag=2, unacknowledged=3), facts("ward-1", damage="event 3 fails")),
    turn(**FIGURES),
)


@pytest.fixture
def picture() -> Picture:
    made = Picture()
    assert [made.take(one, 100.0) for one in BEGUN] == [False, False, True]
    return made


def test_a_row_says_what_the_stream_does(picture: Picture) -> None:
    first, second = picture.rows
    assert (first.diagnosis_id, first.head, first.lag, first.queued, first.events_per_second) == (42, 7, 2, 3, 0.0)
    assert (second.diagnosis_id, second.trouble) == ("ward-1", "event 3 fails")
    picture.take(rows(facts("42", crash="KeyError", crashed_at="t")), 101.0)
    picture.take(turn(), 101.0)
    assert picture.rows[0].trouble == "t KeyError"


def test_rates_are_between_two_turns(picture: Picture) -> None:
    picture.take(rows(facts("42", head=9)), 101.0)
    picture.take(rows(facts("42", head=11)), 101.5)
    picture.take(turn(events=FIGURES["events"] + 4, deliveries=FIGURES["deliveries"] + 40), 102.0)
    assert picture.rows[0].events_per_second == 2.0
    assert (picture.events_per_second, picture.deliveries_per_second) == (2.0, 20.0)
    picture.take(turn(), 103.0)
    assert (picture.rows[0].events_per_second, picture.events_per_second) == (0.0, 0.0)


def test_rows_are_the_same_object_until_one_changes(picture: Picture) -> None:
    before = picture.rows
    picture.take(turn(events=10), 101.0)
    assert picture.rows is before
    picture.take(rows(gone=["ward-1"]), 102.0)
    assert picture.rows is before, "a turn is not over"
    picture.take(turn(), 102.0)
    assert [one.diagnosis_id for one in picture.rows] == [42]


def test_a_new_snapshot_makes_what_was_known_void_and_no_rate(picture: Picture) -> None:
    for one in (BEGUN[0], rows(facts("42", head=90_000)), turn(**(FIGURES | {"events": 1, "deliveries": 0}))):
        picture.take(one, 101.0)
    assert [(one.diagnosis_id, one.events_per_second) for one in picture.rows] == [(42, 0.0)]
    assert (picture.events_per_second, picture.deliveries_per_second) == (0.0, 0.0)


def test_messages_and_columns_of_a_newer_server_are_passed_over(picture: Picture) -> None:
    assert not picture.take(message("weather", rain=True), 101.0)
    picture.take(message("snapshot", columns=[*COLUMNS, "mood"], diagnoses=1), 101.0)
    picture.take(rows([*facts("42"), "good"]), 101.0)
    assert picture.take(turn(**FIGURES, mood="good"), 101.0)
    assert len(picture.rows) == 1


@pytest.mark.parametrize(
    "strange",
    [
        message("snapshot"),
        message("rows"),
        rows([1, 2]),
        rows(facts("42", head="7")),
        rows(facts("42", state=None)),
        message("rows", rows=7, gone=[]),
        message("turn", node=None),
        message("turn", node={"events": "many"}),
    ],
    ids=repr,
)
def test_what_is_no_message_of_this_stream_is_refused(strange: ConsoleMessage, picture: Picture) -> None:
    with pytest.raises(Strange):
        picture.take(strange, 101.0)


class Script:
    """A server that answers the requests for the stream as written, one after another."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, Sequence[Any]]] = []
        self.tokens: list[str | None] = []


@pytest.fixture
def script() -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.tokens.append(self.headers["Authorization"])
            status, messages = found.answers.pop(0)
            self.send_response(status)
            self.end_headers()
            if status == 200:
                for one in messages:
                    self.wfile.write(b": a comment\n\nretry: 1\ndata: " + json.dumps(one).encode() + b"\n\n")
            else:
                self.wfile.write(json.dumps(messages[0]).encode())

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with served_by(Handler) as url:
        found = Script(url)
        yield found


def feed_of(script: Script, credentials: Credentials | None = None) -> ConsoleFeed:
    return ConsoleFeed(Client(script.url, credentials or Credentials("a.b.c")), jitter=lambda: 0.0)


def test_it_comes_back_where_the_stream_ends_and_says_so_meanwhile(script: Script) -> None:
    bye = message("bye", code=1012, reason="server restarting", retry_after_ms=0)
    script.answers = [
        (200, (*BEGUN, turn(events=10), bye)),
        (503, [{"code": "draining", "detail": "the server is stopping"}]),
        (200, (*BEGUN[:2], turn(**(FIGURES | {"version": "2"})))),
        (200, BEGUN),
    ]
    feed = feed_of(script)
    assert feed.latest().figures["events"] == 9
    feed.next_turn()
    assert (feed.latest().figures["events"], feed.latest().failure) == (10, "")
    with pytest.raises(CommandFailed, match="has ended the stream: server restarting"):
        feed.next_turn()
    failures = set()
    shown = threading.Event()
    make = feed._make

    def note(failure: str) -> None:
        make(failure)
        failures.add(failure)
        if feed.latest().figures["version"] == "1" and len(script.answers) == 0:
            shown.set()

    feed._make = note  # type: ignore[method-assign]
    feed._turns = feed._followed()
    feed.start()
    assert shown.wait(20)
    assert {"draining: the server is stopping", ""} <= failures
    assert any("has ended the stream" in one for one in failures)


def test_a_stream_whose_token_expires_is_begun_anew_with_another(script: Script) -> None:
    expiring = message("auth_expiring", expires_at="t", seconds_left=60)
    script.answers = [(200, (*BEGUN, expiring, turn(events=99))), (200, BEGUN)]
    feed = feed_of(script, Credentials(key=b"k" * 32, scopes=("operate",)))
    feed.next_turn()
    assert (feed.latest().figures["events"], feed.latest().failure) == (9, "")
    first, second = script.tokens
    assert None not in (first, second)
    assert first != second


def test_a_token_that_stays_the_same_is_used_to_its_end(script: Script) -> None:
    expiring = message("auth_expiring", expires_at="t", seconds_left=60)
    bye = message("bye", code=1008, reason="token expired", retry_after_ms=None)
    script.answers = [(200, (*BEGUN, expiring, turn(events=99), bye))]
    feed = feed_of(script, Credentials("a.b.c", newer_token=lambda: "a.b.c"))
    feed.next_turn()
    assert feed.latest().figures["events"] == 99
    with pytest.raises(CommandFailed, match="token expired") as ended:
        feed.next_turn()
    assert (ended.value.code, ended.value.exit_code) == ("token_expired", 4)


def test_a_stranger_is_no_server(script: Script) -> None:
    script.answers = [(200, ["hello"])]
    with pytest.raises(CommandFailed, match="is it an avicenna-live server"):
        feed_of(script)
    script.answers = [(200, [])]
    with pytest.raises(CommandFailed, match="has ended the stream"):
        feed_of(script)
    with pytest.raises(Unreachable):
        ConsoleFeed(Client("unix:/absent.sock", Credentials("a.b.c")))
