"""Many updates in one request: what each line is told, and what the whole request may be."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from random import Random
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import MailboxFull
from actors.registry import Registry
from storage.errors import Failed
from storage.pending import Pending
from storage.records import NewEvent
from storage.sqlite.store import SqliteStore
from storage.store import PendingAppend
from tests.logbook import PAYLOAD_MARKER
from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from web.contract import wire
from web.contract.errors import Problem
from web.contract.records import diagnosis_id_of
from web.http.bodies import BULK_BYTES_MAX
from web.http.line import Line, Patience
from web.http.serving import Edge
from web.identity import access
from web.publishing import bulk
from web.publishing.bulk import PauseBudget, lines_of
from web.server import composition
from web.server.settings import Settings

SPELLINGS = (
    "42",
    "42.0",
    "4.2e1",
    '"42"',
    "0.0",
    "-1",
    "true",
    "null",
    "123456789012345678.0",
    "12345678901234567890",
    '"\\u0034\\u0032"',
    '"a b"',
    "[]",
    "1e999",
    "1" * 400,
    '"' + "x" * 2000 + '"',
    "42." + "0" * 2000,
)
"""Of ids of diagnoses, good and bad."""


def feedback(number: int, diagnosis_id: object = 42, **fields: object) -> dict[str, object]:
    return {
        "type": "feedback_update",
        "diagnosis_id": diagnosis_id,
        "feedback_id": number,
        "rating": 5,
        "comment": PAYLOAD_MARKER,
    } | fields


def text_of(*lines: object) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


async def send(server: Server, content: bytes, sub: str = "amira", scope: str = "", **headers: str) -> httpx.Response:
    given = server.bearer(sub, scope) | {"Content-Type": "application/x-ndjson"} | headers
    return await server.http.post("/ws/broadcast", content=content, headers=given)


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n") or not answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_every_line_becomes_an_event_in_order_and_is_answered_with_its_number(server: Server) -> None:
    await server.register()
    lines = [
        {"type": "recommendation_update", "diagnosis_id": "42", "new_data": {"herb": "mint"}},
        {"type": "effectiveness_update", "diagnosis_id": 42, "recommendation_id": 7, "effectiveness": 0.5},
        *(feedback(number) for number in range(3, 41)),
    ]
    async with server.live() as client:
        found = results(await send(server, text_of(*lines)))
        events = await client.events(40)
    assert [(one["line"], one["status"], one["seq"]) for one in found] == [(n, 200, n) for n in range(1, 41)]
    assert found[0].keys() == {
        "line",
        "status",
        "diagnosis_id",
        "seq",
        "epoch",
        "clients_notified",
        "subscribers",
        "replayed",
    }
    assert [event["type"] for event in events[:3]] == [
        "recommendation_update",
        "effectiveness_update",
        "feedback_update",
    ]
    assert [event["data"]["feedback_id"] for event in events[2:]] == list(range(3, 41))


async def test_each_line_stands_alone(server: Server) -> None:
    await server.register()
    await server.register("theirs", "bo")
    lines: list[tuple[object, int, str]] = [
        (feedback(1), 200, ""),
        (b"{\n", 400, "bad_json"),
        (b"\n", 400, "bad_json"),
        (b'{"type":"\xff"}\n', 400, "bad_json"),
        (b'{"type":"feedback_update","diagnosis_id":42,"feedback_id":1,"rating":1,"rating":5}\n', 400, "bad_json"),
        (b"[" * 60_000 + b"\n", 400, "bad_json"),
        (b"3\n", 422, "invalid_field"),
        (feedback(2, rating=6), 422, "invalid_field"),
        (feedback(2, type="surprise_update"), 422, "invalid_field"),
        ({"diagnosis_id": 42, "feedback_id": 2, "rating": 5}, 422, "invalid_field"),
        (feedback(2, idempotency_key=""), 422, "invalid_field"),
        (feedback(2, new_data={}), 422, "invalid_field"),
        (feedback(2, "theirs"), 403, "forbidden"),
        (feedback(2, "unknown"), 403, "forbidden"),
        (feedback(2, comment="x" * 65_536), 413, "too_large"),
        (feedback(2), 200, ""),
    ]
    found = results(await send(server, text_of(*(line for line, _, _ in lines))))
    assert [(one["line"], one["status"], one.get("code", "")) for one in found] == [
        (number, status, code) for number, (_, status, code) in enumerate(lines, start=1)
    ]
    assert (found[0]["seq"], found[-1]["seq"]) == (1, 2)
    by_line = {one["line"]: one.get("detail", "") for one in found}
    assert by_line[8] == "rating must be 1-5"
    assert by_line[9].startswith("type must be one of recommendation_update, ")
    assert by_line[10].startswith("type is required")
    assert by_line[12].startswith("new_data is not known here")


async def test_a_broadcaster_is_told_per_line_what_does_not_exist(server: Server) -> None:
    await server.register()
    found = results(await send(server, text_of(feedback(1), feedback(1, 43)), "analytics", "broadcast"))
    assert [one["status"] for one in found] == [200, 404]


@pytest.mark.guarantee(9)
async def test_a_key_belongs_to_its_line(server: Server) -> None:
    await server.register()
    lines = text_of(
        feedback(1, idempotency_key="visit-1"),
        feedback(1, idempotency_key="visit-1"),
        feedback(2, idempotency_key="visit-1"),
        feedback(2, idempotency_key=None),
    )
    first = results(await send(server, lines))
    again = results(await send(server, lines))
    assert [(one["status"], one.get("seq"), one.get("replayed")) for one in first] == [
        (200, 1, False),
        (200, 1, True),
        (409, None, None),
        (200, 2, False),
    ]
    assert [(one["status"], one.get("seq")) for one in again] == [(200, 1), (200, 1), (409, None), (200, 3)]
    assert (await server.publish(1, feedback_id=1, comment=PAYLOAD_MARKER)).json()["seq"] == 4
    refused = await send(server, lines, **{"Idempotency-Key": "whole-request"})
    assert_problem(refused, 422, "invalid_field", "each line")


async def test_a_line_and_a_single_broadcast_with_one_key_are_one_event(server: Server) -> None:
    await server.register()
    single = {"diagnosis_id": 42, "feedback_id": 9, "rating": 5}
    await server.post("feedback", single, **{"Idempotency-Key": "visit-9"})
    line = {"type": "feedback_update", **single, "idempotency_key": "visit-9"}
    (found,) = results(await send(server, text_of(line)))
    assert (found["seq"], found["replayed"]) == (1, True)


@pytest.mark.parametrize(
    ("body", "lines"),
    [(b"", 0), (b"1", 1), (b"1\n", 1), (b"1\n2", 2), (b"\n", 1), (b"1\n\n2\n", 3), (b"1\r\n2\r\n", 2)],
)
def test_a_last_newline_begins_no_line_and_an_empty_line_is_one(body: bytes, lines: int) -> None:
    assert len(list(lines_of(body))) == lines


async def test_1000_lines_are_taken_and_one_more_stores_nothing(server: Server) -> None:
    await server.register()
    refused = await send(server, text_of(*(feedback(number) for number in range(1001))))
    assert_problem(refused, 413, "too_large", "1000 lines")
    found = results(await send(server, text_of(*(feedback(number) for number in range(1000)))))
    assert [one["seq"] for one in found] == list(range(1, 1001))


async def test_4_mib_are_taken_and_one_byte_more_stores_nothing(server: Server) -> None:
    await server.register()
    line = text_of(feedback(1, comment="x" * 60_000))
    padded = line * (BULK_BYTES_MAX // len(line))
    padded += b" " * (BULK_BYTES_MAX - len(padded))
    refused = await send(server, padded + b" ")
    assert_problem(refused, 413, "too_large", str(BULK_BYTES_MAX))
    found = results(await send(server, padded))
    assert [one["status"] for one in found] == [200] * (len(found) - 1) + [400]
    assert found[0]["seq"] == 1


async def test_a_body_without_a_length_or_of_another_type_is_refused(server: Server) -> None:
    await server.register()

    async def chunks() -> Any:
        yield text_of(feedback(1))

    headers = server.bearer("amira") | {"Content-Type": "application/x-ndjson"}
    chunked = await server.http.post("/ws/broadcast", content=chunks(), headers=headers)
    assert_problem(chunked, 411, "length_required")
    json_typed = await send(server, text_of(feedback(1)), **{"Content-Type": "application/json"})
    assert_problem(json_typed, 415, "unsupported_media_type", "application/x-ndjson")
    latin = await send(server, text_of(feedback(1)), **{"Content-Type": "application/x-ndjson; charset=latin-1"})
    assert_problem(latin, 415, "unsupported_media_type")
    assert_problem(await server.http.post("/ws/broadcast", content=b""), 401, "unauthenticated")
    assert (await server.publish()).json()["seq"] == 1


async def test_an_empty_body_has_no_results(server: Server) -> None:
    assert results(await send(server, b"")) == []


async def test_a_bulk_request_that_meets_a_full_mailbox_waits_and_keeps_its_order(settings: Settings) -> None:
    small = Settings(port=0, data=settings.data, mailbox_messages_max=3)
    async with running_server(small) as server:
        await server.register()
        async with server.live() as client:
            found = results(await send(server, text_of(*(feedback(number) for number in range(90)))))
            events = await client.events(90)
    assert [one["seq"] for one in found] == list(range(1, 91))
    assert [event["data"]["feedback_id"] for event in events] == list(range(90))


async def test_bulk_requests_of_many_producers_at_once_are_all_stored(server: Server) -> None:
    seqs: list[int] = []

    async def produce(number: int) -> None:
        lines = text_of(*(feedback(line, f"d{line % 4}") for line in range(100)))
        seqs.extend(one["seq"] for one in results(await send(server, lines)))

    for number in range(4):
        await server.register(f"d{number}")
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(produce, number)
    assert sorted(seqs) == sorted(list(range(1, 201)) * 4)


async def test_who_may_broadcast_to_nothing_is_refused_before_the_body_is_read(server: Server) -> None:
    await server.register()
    refused = await send(server, b"[" * BULK_BYTES_MAX, "mallory", "monitor register")
    assert_problem(refused, 403, "forbidden", "may not broadcast")
    for sub, scope in (("amira", ""), ("mallory", "broadcast"), ("mallory", "operate")):
        (found,) = results(await send(server, text_of(feedback(1)), sub, scope))
        assert found["status"] == 200


async def test_the_right_to_a_diagnosis_is_judged_before_its_line_is_decoded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    decode = wire.decode_line

    def noted(line: bytes) -> object:
        decoded.append(line)
        return decode(line)

    monkeypatch.setattr(wire, "decode_line", noted)
    await server.register()
    await server.register("theirs", "bo")
    lines = [
        feedback(1),
        feedback(1, "theirs"),
        {**feedback(1, "theirs"), "rating": 6},
        {**feedback(1, "theirs"), "new_data": {"diagnosis_id": 42}},
        b'{"diagnosis_id":42,"diagnosis_id":"theirs","type":"feedback_update"}\n',
        b'{"diagnosis_id":"theirs","diagnosis\\u005fid":42,"type":"feedback_update"}\n',
    ]
    found = results(await send(server, text_of(*lines)))
    assert [(one["status"], one.get("code")) for one in found] == [
        (200, None),
        (403, "forbidden"),
        (403, "forbidden"),
        (403, "forbidden"),
        (400, "bad_json"),
        (400, "bad_json"),
    ]
    assert found[4]["detail"] == "the line has an object that names a field twice"
    assert decoded == [text_of(lines[0]).rstrip()]


async def test_of_a_refused_line_only_code_and_detail_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem that was raised holds its traceback, and that all that the line was decoded into."""
    kept: list[Any] = []
    result = bulk._result

    def noted(services: Any, who: Any, told: Any) -> Any:
        kept.append(told)
        return result(services, who, told)

    monkeypatch.setattr(bulk, "_result", noted)
    async with running_server(settings) as server:
        await server.register()
        lines = [feedback(1, rating=6), feedback(1, "theirs"), b"{\n", feedback(1, comment="x" * 65_536)]
        found = results(await send(server, text_of(*lines)))
    assert [one["status"] for one in found] == [422, 403, 400, 413]
    assert [(one.code, one.__traceback__, one.__context__) for one in kept] == [
        ("invalid_field", None, None),
        ("forbidden", None, None),
        ("bad_json", None, None),
        ("too_large", None, None),
    ]


@given(
    st.fixed_dictionaries(
        {"diagnosis_id": st.sampled_from(SPELLINGS)},
        optional={
            "type": st.sampled_from(['"feedback_update"', '"surprise"', "3"]),
            "feedback_id": st.sampled_from(["1", "1.0", '"a"', "null"]),
            "rating": st.sampled_from(["5", "5.0", "9"]),
            "comment": st.sampled_from(['"\\"diagnosis_id\\":43"', '"\\ud800"', "{}"]),
            "diagnosis\\u005fid": st.sampled_from(SPELLINGS),
            "old_data": st.sampled_from(['{"diagnosis_id":43}', "[" * 2000]),
        },
    ),
    st.randoms(use_true_random=False),
)
def test_the_diagnosis_that_is_judged_is_the_one_that_is_decoded(fields: dict[str, str], random: Random) -> None:
    names = list(fields)
    random.shuffle(names)
    line = ("{" + ",".join(f'"{name}":{fields[name]}' for name in names) + "}").encode()
    try:
        decoded = diagnosis_id_of(wire.decode_line(line).diagnosis_id)
    except Problem:
        with contextlib.suppress(Problem):
            wire.target_of(line)
    else:
        assert wire.target_of(line) == decoded


class Late:
    """The receipts of one diagnosis, which come when the test says so. All else goes its way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
        self._receipts: list[tuple[Pending[Any], Pending[Any]]] = []
        put = Registry.put

        def noted(registry: Registry, diagnosis_id: str, message: Any) -> Pending[Any]:
            receipt = put(registry, diagnosis_id, message)
            if diagnosis_id != late:
                return receipt
            shown: Pending[Any] = Pending()
            self._receipts.append((receipt, shown))
            return shown

        monkeypatch.setattr(Registry, "put", noted)

    async def come(self) -> None:
        """Let them come."""
        while self._receipts:
            receipt, shown = self._receipts.pop(0)
            shown.answer(await receipt.wait())


class Sender:
    """A client that sends one bulk request and reads its answer by the byte."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def until(self, text: bytes) -> None:
        """Read until this has come."""
        with trio.fail_after(5):
            while text not in self.received:
                self.received += (some := await self.stream.receive_some())
                assert some, self.received


def head_of(server: Server, content: bytes) -> bytes:
    return (
        f"POST /ws/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        f"Content-Type: application/x-ndjson\r\nAuthorization: {server.bearer('amira')['Authorization']}\r\n\r\n"
    ).encode()


@contextlib.asynccontextmanager
async def sending(server: Server, content: bytes) -> AsyncIterator[Sender]:
    async with await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2])) as stream:
        await stream.send_all(head_of(server, content) + content)
        yield Sender(stream)


async def test_a_result_leaves_when_its_commit_and_those_before_it_have_returned(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register(42)
    await server.register(43)
    late = Late(monkeypatch, "43")
    async with sending(server, text_of(feedback(1), feedback(2), feedback(3, 43), feedback(4))) as client:
        await client.until(b'{"line":2,')
        assert b"transfer-encoding: chunked" in client.received.lower()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert b'"line":3' not in client.received
        await late.come()
        await client.until(b"\r\n0\r\n\r\n")
    found = [json.loads(line) for line in client.received.splitlines() if line.startswith(b"{")]
    assert [(one["line"], one["seq"]) for one in found] == [(1, 1), (2, 2), (3, 1), (4, 3)]


async def test_a_client_that_has_ended_its_side_gets_all_results(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register(42)
    await server.register(43)
    late = Late(monkeypatch, "43")
    async with sending(server, text_of(feedback(1), feedback(2, 43), feedback(3))) as client:
        await client.until(b'{"line":1,')
        await client.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await late.come()
        await client.until(b"\r\n0\r\n\r\n")
    assert b'{"line":3,' in client.received


async def test_what_a_client_sent_that_leaves_before_its_results_is_stored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register(42)
    await server.register(43)
    late = Late(monkeypatch, "43")
    async with server.live() as follower:
        async with sending(server, text_of(feedback(0, 43), *(feedback(number) for number in range(1, 501)))) as client:
            await client.until(b"200")
        assert [event["data"]["feedback_id"] for event in await follower.events(500)] == list(range(1, 501))
    await late.come()
    assert (await server.publish()).json()["seq"] == 501


async def test_a_request_pauses_no_longer_than_it_may() -> None:
    pauses = PauseBudget(0.03)
    assert [await pauses.paused() for _ in range(4)] == [True, True, True, False]


@pytest.mark.sqlite_only("looks at what the committer was handed")
async def test_the_lines_of_a_diagnosis_are_stored_together_wherever_they_stand(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended: list[tuple[str, int]] = []
    append = SqliteStore.append_nowait

    def noted(
        store: SqliteStore, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        appended.append((diagnosis_id, len(events)))
        return append(store, diagnosis_id, events, spans)

    monkeypatch.setattr(SqliteStore, "append_nowait", noted)
    names = ["a", "b", "c", "d"]
    for name in names:
        await server.register(name)
    found = results(await send(server, text_of(*(feedback(number, names[number % 4]) for number in range(60)))))
    assert [(one["diagnosis_id"], one["seq"]) for one in found] == [(names[n % 4], n // 4 + 1) for n in range(60)]
    assert sorted(appended) == [(name, 15) for name in names]


async def test_a_full_mailbox_holds_up_the_lines_for_it_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PAUSE_SECONDS_MAX", 0.05)
    put = Registry.put

    def full_for_one(registry: Registry, diagnosis_id: str, message: Any) -> Pending[Any]:
        if diagnosis_id == "43":
            raise MailboxFull("3 publishes wait already")
        return put(registry, diagnosis_id, message)

    monkeypatch.setattr(Registry, "put", full_for_one)
    async with running_server(settings) as server:
        await server.register(42)
        await server.register(43)
        found = results(await send(server, text_of(*(feedback(number, 43 - number % 2) for number in range(20)))))
    assert [one["status"] for one in found] == [429, 200] * 10
    assert [one["seq"] for one in found if one["status"] == 200] == list(range(1, 11))


async def test_a_client_that_reads_no_results_costs_little_holds_up_nobody_and_is_cut_off(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, rendered_before = 0, 0
    is_cut_off = trio.Event()
    result, begin_line, stalled = bulk._result, Line.__init__, Edge.stalled

    def noted(*asked: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return result(*asked)

    def of_small_buffer(line: Line, keeper: Any, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin_line(line, keeper, sock)

    def cut_off(edge: Edge) -> None:
        nonlocal rendered_before
        rendered_before = rendered
        stalled(edge)
        is_cut_off.set()

    monkeypatch.setattr(bulk, "_result", noted)
    monkeypatch.setattr(Line, "__init__", of_small_buffer)
    monkeypatch.setattr(Edge, "stalled", cut_off)
    monkeypatch.setattr(composition, "Patience", partial(Patience, stall_seconds=1.0))
    async with running_server(settings) as server:
        await server.register()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            content = text_of(*(feedback(number, comment="") for number in range(1000)))
            async with server.live() as follower:
                await stream.send_all(head_of(server, content) + content)
                assert [one["seq"] for one in await follower.events(1000)] == list(range(1, 1001))
            assert (await server.publish()).json()["seq"] == 1001
            with trio.fail_after(30):
                await is_cut_off.wait()
            assert 0 < rendered_before < 500, "what the sockets hold, and one part"
            assert (await server.publish()).json()["seq"] == 1002


async def test_once_the_store_has_not_answered_no_further_line_asks_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register(42, "amira")
    await server.register(43, "bo")
    asked = []

    async def silent(*rest: object) -> None:
        asked.append(rest)
        raise Failed("the disk has not answered for 5 s")

    monkeypatch.setattr(access, "allowed_now", silent)
    lines = [feedback(1), *(feedback(number, 43) for number in (2, 3, 4)), feedback(5)]
    found = results(await send(server, text_of(*lines)))
    assert [one["status"] for one in found] == [200, 503, 503, 503, 503]
    assert {one["code"] for one in found[1:]} == {"storage_unavailable"}
    assert len(asked) == 1
