"""What one `follow` does with frames, ends and steps, without a socket."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from avicenna_live import Backoff, Ended, Gap, Position, RecommendationUpdate, Reset, Status
from avicenna_live.core import STEPS_MAX, Core, Wishes
from avicenna_live.errors import ProtocolFault
from avicenna_live.items import Event, Item
from tests.frames import EPOCH, bye, connect, error, feedback, frame, gap, live

SNAPSHOT = "snapshot"


class World:
    """A core, and what it told."""

    def __init__(self, random: float = 1.0, **wishes: object) -> None:
        self.statuses: list[Status] = []
        self.core = Core(Wishes(42, **wishes), lambda: random, self.statuses.append)  # type: ignore[arg-type]

    def connect(self, *frames: str, token: str | None = "tkn") -> dict[str, str]:
        """One attempt that is answered with these frames; the parameters it asked for."""
        self.core.connecting()
        request = self.core.request(token)
        self.core.opened()
        self.receive(*frames)
        return {name: values[0] for name, values in parse_qs(urlsplit(request.target).query).items()}

    def receive(self, *frames: str) -> None:
        for text in frames:
            self.core.receive(text)

    def take(self) -> Item | str:
        """Finish the step in hand, and begin the next one."""
        self.core.finish()
        step = self.core.step
        assert step is not None
        self.core.take()
        return SNAPSHOT if step.item is None else step.item

    def seqs(self) -> list[int]:
        """The numbers of all events that have come."""
        taken = []
        while self.core.step is not None:
            item = self.take()
            assert isinstance(item, Event)
            taken.append(item.seq)
        return taken

    def acked(self) -> int | None:
        text = self.core.ack()
        return None if text is None else json.loads(text)["seq"]


def test_an_event_has_its_fields_typed() -> None:
    world = World()
    data = {"old_data": None, "new_data": {"a": 1}, "reason": None, "changed_fields": ["a"], "later": "unknown"}
    world.connect(connect(head=1, queued=1), frame("recommendation_update", data, seq=1, later="unknown"))

    event = world.take()

    assert isinstance(event, RecommendationUpdate)
    assert (event.type, event.diagnosis_id, event.seq, event.epoch) == ("recommendation_update", 42, 1, EPOCH)
    assert event.timestamp == datetime(2026, 11, 27, 10, 0, 0, 123456, tzinfo=UTC)
    assert event.data["new_data"] == {"a": 1}


def test_without_a_position_it_asks_for_the_start_and_begins_where_the_server_does() -> None:
    world = World(start="5")

    assert world.connect(connect(head=9, floor=2, queued=5)) == {"heartbeat": "20", "ack": "app", "start": "5"}
    assert world.core.position == Position(EPOCH, 4)
    world.receive(*map(feedback, range(5, 10)))
    assert world.seqs() == [5, 6, 7, 8, 9]


def test_who_has_neither_token_nor_device_asks_for_no_acknowledgements_and_sends_none() -> None:
    world = World()

    assert "ack" not in world.connect(connect(head=1, queued=1, ack=None), feedback(1), token=None)
    assert world.seqs() == [1]
    world.core.finish()
    assert world.acked() is None


def test_only_a_finished_step_is_acknowledged_and_resumed_after() -> None:
    world = World(device="d")
    world.connect(connect(head=2, queued=2), feedback(1), feedback(2), live(2))

    world.take()
    assert world.acked() is None
    world.take()
    assert world.acked() == 1
    assert world.acked() is None
    assert world.connect() == {"heartbeat": "20", "ack": "app", "device": "d", "after": "1", "epoch": EPOCH}


def test_what_was_read_ahead_is_kept_when_the_connection_is_lost_and_not_taken_twice() -> None:
    world = World()
    world.connect(connect(head=3, queued=3), feedback(1), feedback(2), feedback(3))
    world.take()
    world.core.closed(1006, "")

    assert world.connect(connect(resume="exact", head=3, queued=2))["after"] == "0"
    world.receive(feedback(1), feedback(2), feedback(3), feedback(4))

    assert world.seqs() == [2, 3, 4]


def test_an_acknowledgement_is_never_above_what_this_connection_has_written() -> None:
    world = World()
    world.connect(connect(head=3, queued=3), feedback(1), feedback(2), feedback(3))
    world.take()
    world.connect(connect(resume="exact", head=3, queued=3))
    assert world.seqs() == [2, 3]
    world.core.finish()

    assert world.acked() is None
    world.receive(feedback(1), feedback(2))
    assert world.acked() == 2
    world.receive(feedback(3))
    assert world.acked() == 3


def test_a_gap_comes_as_an_item_and_is_acknowledged_up_to_its_end_when_finished() -> None:
    world = World(after=1, epoch=EPOCH)
    assert world.connect(connect(resume="partial", head=9, floor=5, queued=4, missed=4), gap(2, 5))["after"] == "1"

    assert world.take() == Gap(2, 5, "evicted")
    assert world.acked() is None
    world.core.finish()
    assert world.acked() == 5
    assert world.core.position == Position(EPOCH, 5)


def test_a_gap_names_only_what_has_not_come_before() -> None:
    world = World()
    world.connect(connect(head=3, queued=3), feedback(1), feedback(2))
    world.take()

    world.connect(connect(resume="partial", head=9, floor=5, queued=4, missed=5), gap(1, 5), feedback(6))

    event = world.take()
    assert isinstance(event, Event)
    assert event.seq == 2
    assert world.take() == Gap(3, 5, "evicted")
    assert world.seqs() == [6]


def test_a_gap_of_what_has_come_is_none() -> None:
    world = World()
    world.connect(connect(head=2, queued=2), feedback(1), feedback(2))

    world.connect(connect(resume="partial", head=3, floor=2, queued=1, missed=2), gap(1, 2, "purged"), feedback(3))

    assert world.seqs() == [1, 2, 3]


def test_a_reset_comes_before_everything_else_and_takes_back_what_was_read_ahead() -> None:
    world = World(after=7, epoch="old")
    world.connect(connect(resume="exact", head=9, queued=2, epoch="old"), feedback(8), feedback(9))
    world.take()

    world.connect(connect(resume="reset", head=5, floor=3, queued=2, epoch="new"), feedback(4))
    # The step in hand is of the old numbering: the new one must not hear of it.
    assert world.core.unsaved == Position("old", 8)
    assert world.take() == Reset("new", 3)
    assert world.acked() is None
    assert world.core.position == Position("old", 8)
    assert world.seqs() == [4]
    world.core.finish()
    assert world.core.position == Position("new", 4)
    assert world.acked() == 4


def test_another_epoch_is_a_reset_whatever_else_is_said() -> None:
    world = World(after=7, epoch="old")
    world.connect(connect(resume="exact", head=9, queued=1, missed=2, epoch="new"), gap(7, 8), feedback(9))

    assert [world.take(), world.take()] == [Reset("new", 6), Gap(7, 8, "evicted")]
    assert world.seqs() == [9]


def test_a_connection_lost_after_a_reset_does_not_reset_again() -> None:
    world = World(after=7, epoch="old")
    world.connect(connect(resume="reset", head=5, floor=3, queued=2, epoch="new"), feedback(4))

    asked = world.connect(connect(resume="exact", head=5, floor=3, queued=2, epoch="new"), feedback(4), feedback(5))

    assert (asked["after"], asked["epoch"]) == ("3", "new")
    assert world.take() == Reset("new", 3)
    assert world.seqs() == [4, 5]


def test_the_state_is_loaded_first_where_there_is_no_position() -> None:
    world = World(snapshots=True)

    assert world.connect(connect(head=4, floor=1), feedback(5))["start"] == "new"
    assert world.take() == SNAPSHOT
    assert world.core.position is None
    assert world.core.unsaved == Position(EPOCH, 4)
    assert world.seqs() == [5]
    assert world.core.position == Position(EPOCH, 4)


def test_a_connection_lost_while_the_state_is_loaded_goes_on_where_it_began() -> None:
    world = World(snapshots=True)
    world.connect(connect(head=4, floor=1))
    world.take()

    assert world.connect(connect(resume="exact", head=6, queued=2), feedback(5), feedback(6))["after"] == "4"
    assert world.seqs() == [5, 6]


def test_the_state_is_loaded_after_a_gap_and_a_reset_and_its_step_finishes_theirs() -> None:
    world = World(snapshots=True, after=1, epoch=EPOCH)
    world.connect(connect(resume="partial", head=5, floor=5, missed=4), gap(2, 5))

    assert world.take() == Gap(2, 5, "evicted")
    assert world.take() == SNAPSHOT
    assert world.core.position == Position(EPOCH, 1)
    world.core.finish()
    assert world.core.position == Position(EPOCH, 5)

    world.connect(connect(resume="reset", head=0, epoch="new"))
    assert [world.take(), world.take()] == [Reset("new", 0), SNAPSHOT]


def test_a_start_that_is_a_reset_loads_the_state_once() -> None:
    world = World(snapshots=True)
    world.connect(connect(resume="reset", head=5, floor=3, queued=2), feedback(4), feedback(5))

    assert [world.take(), world.take()] == [Reset(EPOCH, 3), SNAPSHOT]
    assert world.seqs() == [4, 5]


def test_an_app_that_names_its_own_position_without_an_epoch_gets_the_current_one() -> None:
    world = World(after=3)

    assert world.connect(connect(resume="exact", head=4, queued=1), feedback(4))["after"] == "3"
    assert world.seqs() == [4]
    world.core.finish()
    assert world.core.position == Position(EPOCH, 4)


@pytest.mark.parametrize(
    "text",
    [
        feedback(3),
        gap(3, 4),
        b"{}",
        "no JSON",
        "[]",
        "{}",
        '{"type": 5}',
        '{"type": "feedback_update", "seq": 1, "data": {}}',
        '{"type": "feedback_update", "seq": "1", "timestamp": "2026-11-27T10:00:00Z", "data": {}}',
        '{"type": "feedback_update", "seq": 1, "timestamp": "2026-11-27T10:00:00Z", "data": null}',
        '{"type": "feedback_update", "seq": 1, "timestamp": "yesterday", "data": {}}',
        '{"type": "gap", "data": {"from": -1, "to": 5, "reason": "evicted"}}',
        '{"type": "bye", "data": []}',
        "[" * 100_000,
    ],
)
def test_what_is_none_of_the_protocol_is_a_fault_and_is_not_repeated(text: str) -> None:
    world = World()
    world.connect(connect(head=0))

    with pytest.raises(ProtocolFault) as caught:
        world.core.receive(text)

    assert "2026" not in str(caught.value)


def test_an_event_that_was_none_comes_again_on_the_next_connection() -> None:
    world = World()
    world.connect(connect(head=1, queued=1))
    with pytest.raises(ProtocolFault):
        world.receive('{"type": "feedback_update", "seq": 1, "timestamp": "yesterday", "data": {}}')
    world.core.given_up("", 1002)

    world.connect(connect(resume="exact", head=1, queued=1), feedback(1))

    assert world.seqs() == [1]


def test_an_event_of_a_kind_that_is_not_known_is_passed_over() -> None:
    world = World()
    world.connect(connect(head=3, queued=3), feedback(1), frame("later_update", {"x": 1}, seq=2), feedback(3))

    assert world.seqs() == [1, 3]
    world.core.finish()
    assert world.acked() == 3


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, RecursionError])
def test_what_the_report_raises_is_no_fault_of_the_protocol(kind: type[Exception]) -> None:
    def report(status: Status) -> None:
        if status.state == "live":
            raise kind("of the app")

    core = Core(Wishes(42), lambda: 1.0, report)
    core.connecting()
    core.opened()
    core.receive(connect())
    with pytest.raises(kind, match="of the app"):
        core.receive(live(0))


def test_an_event_before_the_connect_is_a_fault() -> None:
    world = World()
    world.core.connecting()

    with pytest.raises(ProtocolFault):
        world.core.receive(feedback(1))


def test_unknown_frames_and_fields_are_ignored() -> None:
    world = World()
    world.connect(connect(), frame("later", {"x": 1}), frame("heartbeat", {"seq": 0}), frame("acked", {"seq": 0}))

    assert world.core.step is None


def test_reading_ahead_stops_when_full() -> None:
    world = World()
    world.connect(connect(head=STEPS_MAX, queued=STEPS_MAX), *map(feedback, range(1, STEPS_MAX)))
    found = [world.core.full]
    world.receive(feedback(STEPS_MAX))
    found.append(world.core.full)
    world.take()

    assert [*found, world.core.full] == [False, True, False]


def test_the_statuses_of_a_connection_that_comes_back() -> None:
    world = World()
    world.connect(connect(), live(0), bye(1012, "restart", 1500))
    world.core.closed(1012, "")
    assert world.core.wait_seconds == 1.5
    world.core.connecting()
    world.core.given_up("connection refused")

    assert world.statuses == [
        Status("connecting"),
        Status("live"),
        Status("offline", "restart", 1012),
        Status("connecting"),
        Status("offline", "connection refused", None),
    ]


def test_waits_double_until_the_next_live_with_full_jitter() -> None:
    world = World(random=0.5, backoff=Backoff(1, 4))
    waits = []
    for _ in range(4):
        world.core.given_up("")
        waits.append(world.core.wait_seconds)
    world.connect(connect(), live(0))
    world.core.closed(1006, "")

    assert [*waits, world.core.wait_seconds] == [0.5, 1, 2, 2, 0.5]


@pytest.mark.parametrize(("wished", "seconds"), [(0, 0), (1500, 1.5), (10**9, 300), (None, 7), (True, 7), ("5", 7)])
def test_the_wait_that_a_bye_asks_for_counts_up_to_300_s(wished: object, seconds: float) -> None:
    world = World(backoff=Backoff(7, 7))
    world.connect(frame("bye", {"code": 1013, "reason": "quarantined", "retry_after_ms": wished}))
    world.core.closed(1013, "quarantined")

    assert world.core.wait_seconds == seconds


@pytest.mark.parametrize(("header", "seconds"), [("3", 3), ("9999", 300), ("", 7), (None, 7), ("Fri, 27 Nov 2026", 7)])
def test_the_wait_that_an_http_answer_asks_for_counts_in_seconds(header: str | None, seconds: float) -> None:
    world = World(backoff=Backoff(7, 7))
    world.core.refused(503, header)

    assert world.core.wait_seconds == seconds
    assert world.statuses[-1] == Status("offline", "HTTP status 503 instead of a WebSocket", 503)


def test_a_connection_that_breaks_behind_a_bye_ended_as_the_bye_says() -> None:
    world = World()
    world.connect(connect(), bye(4000, "replaced"))
    world.core.closed(1006, "")

    assert world.statuses[-1] == Status("ended", "replaced", 4000)


def test_an_end_for_good_says_why_and_what_had_come_stays() -> None:
    world = World()
    world.connect(error("invalid_field", "device: 1-64 characters"))
    world.core.closed(1008, "invalid field")

    failure = world.core.failure
    assert isinstance(failure, Ended)
    assert (failure.code, failure.reason, failure.detail) == (1008, "invalid field", "device: 1-64 characters")
    assert str(failure) == "the server ended the connection: 1008 invalid field: device: 1-64 characters"


def test_a_refused_text_waits_for_another_one() -> None:
    world = World()
    world.connect(error("invalid_token"))
    world.core.closed(1008, "invalid token")

    assert world.statuses[-1] == Status("needs_auth", "invalid token", 1008)
    assert world.core.wait_seconds is None
    assert world.core.failure is None


def test_a_function_is_asked_again_at_once_if_its_token_had_worked_else_with_growing_waits() -> None:
    world = World(renewable=True)
    world.connect(connect(), live(0))
    world.core.closed(1008, "token expired")
    waits = [world.core.wait_seconds]
    for _ in range(3):
        world.connect(error("invalid_token"))
        world.core.closed(1008, "invalid token")
        waits.append(world.core.wait_seconds)
    world.core.refused(401, None)

    assert [*waits, world.core.wait_seconds] == [0, 1, 2, 4, 8]
    assert {status.state for status in world.statuses} == {"connecting", "live", "needs_auth"}


def test_a_token_that_ends_is_replaced_in_band_if_there_is_a_function() -> None:
    world = World(renewable=True)
    world.connect(connect(), live(0), frame("auth_expiring", {"expires_at": "x", "seconds_left": 60}))

    due = world.core.auth_due
    assert json.loads(world.core.auth("next")) == {"type": "auth", "token": "next"}
    assert (due, world.core.auth_due) == (True, False)
    world.receive(error("invalid_token", "another subject"))
    assert world.statuses[-1] == Status("live", "another subject")
    world.core.auth("third")
    world.receive(frame("auth_ok", {"expires_at": "x"}))
    assert world.statuses[-1] == Status("live")


def test_a_token_that_ends_is_not_replaced_if_it_is_a_text() -> None:
    world = World()
    world.connect(connect(), live(0), frame("auth_expiring", {"expires_at": "x", "seconds_left": 60}))

    assert not world.core.auth_due


def test_the_request_shows_its_token_to_nobody() -> None:
    request = Core(Wishes(42), lambda: 0.0, lambda _: None).request("tkn-secret")

    assert request.headers == {"Authorization": "Bearer tkn-secret"}
    assert "secret" not in repr(request) + request.target


@pytest.mark.parametrize(("heartbeat", "seconds"), [(5, 7.5), (20, 30), (300, 450)])
def test_silence_is_one_and_a_half_heartbeats(heartbeat: int, seconds: float) -> None:
    assert World(heartbeat_seconds=heartbeat).core.silence_seconds_max == seconds
