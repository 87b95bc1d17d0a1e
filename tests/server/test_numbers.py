"""Numbers that not every client can hold, and integers as Dart prints them (PROTOCOL section 7)."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import Event, Seq
from tests.server.harness import Frame, Server, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_streams import streamed
from web.contract import wire
from web.contract.errors import Problem
from web.contract.number import WrittenNumber
from web.contract.records import KINDS, EffectivenessUpdate, FeedbackUpdate, RecommendationUpdate, Update
from web.server.settings import Settings

SAFE = 2**53 - 1
BODIES: dict[str, dict[str, str]] = {
    "feedback": {"diagnosis_id": "42", "feedback_id": "1", "rating": "5"},
    "effectiveness": {"diagnosis_id": "42", "recommendation_id": "7", "new_effectiveness": "0.5"},
    "recommendation": {"diagnosis_id": "42", "new_data": '{"n":1}'},
}


def body_of(kind: str, **fields: str) -> bytes:
    """A body with these fields as they are written in JSON."""
    return ("{" + ",".join(f'"{name}":{text}' for name, text in (BODIES[kind] | fields).items()) + "}").encode()


EXACT = [
    "9007199254740993.0",
    "12345678901234567890.0",
    "123456789.123456789123",
    "0.1000000000000000055511151231257827021181583404541015625",
    "1e-400",
    "2e-324",
    "-1e-999999999",
    "1e-99999999999999999999",
    "0e99999999999999999999",
    "0." + "0" * 60_000 + "1",
    "1" + "0" * 60_000 + "e-59990",
    "1e-" + "9" * 60_000,
    "1.50",
    "1E5",
    "1.2E+02",
    "-0.0",
]
"""Finite doubles, once they are rounded to one."""


async def post(server: Server, kind: str, key: str = "", **fields: str) -> Any:
    """Publish it."""
    headers = server.bearer("amira") | {"Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    return await server.http.post(f"/ws/broadcast-{kind}-update", content=body_of(kind, **fields), headers=headers)


async def newest(server: Server) -> Frame:
    """The newest event, as a subscriber that comes now gets it."""
    async with server.connect(start=1) as client:
        return (await client.until_live())[-2]


def data_of(kind: type[Update], **fields: str) -> dict[str, Any]:
    """The data of the event a body makes."""
    name = kind.KIND.removesuffix("_update")
    update = wire.decode_update(kind, body_of(name, **fields))
    data: dict[str, Any] = json.loads(wire.new_event(update, None).body)
    return data


# Ids


@pytest.mark.parametrize(
    ("kind", "field"),
    [("feedback", "feedback_id"), ("feedback", "recommendation_id"), ("effectiveness", "recommendation_id")],
)
@pytest.mark.parametrize(
    ("written", "delivered"),
    [
        (str(SAFE), SAFE),
        (str(-SAFE), -SAFE),
        (str(SAFE + 1), str(SAFE + 1)),
        (str(-SAFE - 1), str(-SAFE - 1)),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.0", "9007199254740993"),
        ("9.007199254740993e15", "9007199254740993"),
        ("9" * 64, "9" * 64),
        ("-" + "9" * 64, "-" + "9" * 64),
        ('"9007199254740993"', "9007199254740993"),
        ("1e21", "1" + "0" * 21),
        ("-0", 0),
        ("-0.0", 0),
    ],
)
async def test_an_id_that_javascript_cannot_hold_is_the_string_of_its_digits(
    server: Server, kind: str, field: str, written: str, delivered: int | str
) -> None:
    await server.register()
    answer = await post(server, kind, **{field: written})
    assert answer.status_code == 200, answer.text
    assert (await newest(server))["data"][field] == delivered


@pytest.mark.parametrize(
    ("kind", "field"),
    [("feedback", "feedback_id"), ("feedback", "recommendation_id"), ("effectiveness", "recommendation_id")],
)
@pytest.mark.parametrize("written", ["9" * 65, "-" + "9" * 65, "9" * 400, "9" * 4300, "9" * 4301, "9" * 60_000, "1e64"])
async def test_an_id_of_more_than_64_digits_is_refused_by_name(
    server: Server, kind: str, field: str, written: str
) -> None:
    await server.register()
    answer = await post(server, kind, **{field: written})
    assert_problem(answer, 422, "invalid_field", f"{field} must be a string, or an integer of at most 64 digits")
    assert "999" not in answer.text


async def test_a_large_id_and_the_string_of_its_digits_are_the_same_event_for_a_key(server: Server) -> None:
    await server.register()
    first = await post(server, "feedback", key="k", feedback_id="9007199254740993")
    for again in ('"9007199254740993"', "9007199254740993.0"):
        answer = await post(server, "feedback", key="k", feedback_id=again)
        assert answer.json() | {"replayed": False, "clients_notified": 0} == first.json() | {"clients_notified": 0}
        assert answer.json()["replayed"]
    other = await post(server, "feedback", key="k", feedback_id="9007199254740992")
    assert_problem(other, 409, "key_reused")


async def test_a_line_of_a_bulk_request_keeps_the_same_rules(server: Server) -> None:
    await server.register()
    lines = [
        body_of("feedback", type='"feedback_update"', feedback_id="9007199254740993", rating="5.0"),
        body_of("feedback", type='"feedback_update"', feedback_id="9" * 65),
        body_of("recommendation", type='"recommendation_update"', new_data='{"a":[1e400]}'),
        body_of("effectiveness", type='"effectiveness_update"', sample_size="1.2e2", diagnosis_id="42.0"),
    ]
    headers = server.bearer("amira") | {"Content-Type": "application/x-ndjson"}
    answer = await server.http.post("/ws/broadcast", content=b"\n".join(lines), headers=headers)
    results = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["status"] for one in results] == [200, 422, 422, 200]
    assert results[1]["detail"].startswith("feedback_id ")
    assert results[2]["detail"].startswith("new_data ")
    assert (await newest(server))["data"]["sample_size"] == 120


async def test_events_that_were_stored_with_large_ids_are_delivered_with_strings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "9007199254740993"
    with monkeypatch.context() as before:
        before.setattr("web.contract.records.readable_id", lambda name, value: value)  # as ids were stored at first
        async with running_server(settings) as server:
            await server.register()
            await post(server, "feedback", feedback_id=large, recommendation_id=f"-{large}")
            await post(server, "feedback", feedback_id=str(SAFE), comment=json.dumps(f'"feedback_id":{large}'))
            await post(server, "recommendation", new_data=f'{{"feedback_id":{large}}}')
            await post(server, "effectiveness", recommendation_id="9" * 70)
            assert (await newest(server))["data"]["recommendation_id"] == "9" * 70
    async with running_server(settings) as server:
        async with server.connect(device="new") as client:
            frames = (await client.until_live())[1:-1]
        answer = await server.http.get("/actors/42/outbox", headers=server.bearer("op", "operate"))
        assert answer.json()["items"] == frames
    assert frames[0]["data"]["feedback_id"] == large
    assert frames[0]["data"]["recommendation_id"] == f"-{large}"
    assert frames[1]["data"]["feedback_id"] == SAFE
    assert frames[1]["data"]["comment"] == f'"feedback_id":{large}'
    assert frames[2]["data"]["new_data"] == {"feedback_id": int(large)}
    assert frames[3]["data"]["recommendation_id"] == "9" * 70


@given(st.integers(-(10**70), 10**70), st.integers(-(10**70), 10**70))
def test_every_stored_id_is_rendered_so_that_javascript_can_hold_it(one: int, other: int) -> None:
    body = json.dumps({"feedback_id": one, "rating": 5, "recommendation_id": other}, separators=(",", ":"))
    event = Event(Seq(1), 0.0, "feedback_update", body.encode())
    data = json.loads(wire.render_event("42", event))["data"]
    for name, value in (("feedback_id", one), ("recommendation_id", other)):
        assert data[name] == (value if abs(value) <= SAFE else str(value))


# Whole numbers with a fraction of zero


@pytest.mark.parametrize(
    ("kind", "field", "written", "meant"),
    [
        ("feedback", "rating", "5.0", 5),
        ("feedback", "rating", "0.5e1", 5),
        ("feedback", "rating", "50e-1", 5),
        ("feedback", "feedback_id", "120.0", 120),
        ("feedback", "feedback_id", "1.2e2", 120),
        ("feedback", "feedback_id", "1.2E+2", 120),
        ("feedback", "recommendation_id", "-3.000", -3),
        ("effectiveness", "recommendation_id", "7.0", 7),
        ("effectiveness", "sample_size", "120.0", 120),
        ("effectiveness", "sample_size", "0.0", 0),
    ],
)
async def test_an_integer_may_be_written_with_a_fraction_of_zero(
    server: Server, kind: str, field: str, written: str, meant: int
) -> None:
    await server.register()
    first = await post(server, kind, key="k", **{field: written, "diagnosis_id": "42.0"})
    assert first.status_code == 200, first.text
    again = await post(server, kind, key="k", **{field: str(meant)})
    assert (again.json()["seq"], again.json()["replayed"]) == (1, True), "the same event, however it was written"
    found = (await newest(server))["data"][field]
    assert (found, type(found)) == (meant, int)


@pytest.mark.parametrize(
    ("kind", "field", "written"),
    [
        ("feedback", "rating", "5.5"),
        ("feedback", "rating", "5.0000000000000000000001"),
        ("feedback", "rating", "6.0"),
        ("feedback", "rating", "true"),
        ("feedback", "rating", '"5"'),
        ("feedback", "rating", "1e400"),
        ("feedback", "feedback_id", "1.5"),
        ("feedback", "feedback_id", "9007199254740993.5"),
        ("feedback", "feedback_id", "1e-400"),
        ("feedback", "feedback_id", "1e99999999999999999999"),
        ("feedback", "diagnosis_id", "42.5"),
        ("feedback", "diagnosis_id", "-42.0"),
        ("feedback", "diagnosis_id", "1e300"),
        ("effectiveness", "sample_size", "-1.0"),
        ("effectiveness", "sample_size", "120.5"),
        ("effectiveness", "sample_size", "1e300"),
        ("effectiveness", "confidence", "1e400"),
        ("effectiveness", "confidence", "9" * 5000),
    ],
)
async def test_another_fraction_is_refused_by_name(server: Server, kind: str, field: str, written: str) -> None:
    await server.register()
    answer = await post(server, kind, **{field: written})
    assert_problem(answer, 422, "invalid_field", f"{field} must be")


async def test_a_body_with_a_wrong_field_is_still_read_to_its_end(server: Server) -> None:
    await server.register()
    headers = server.bearer("amira") | {"Content-Type": "application/json"}
    for body in (
        body_of("feedback", rating="5.0") + b"x",
        body_of("feedback", rating="5.0", comment='"\\ud800"'),
        body_of("feedback", rating="5.0", comment="NaN"),
        body_of("feedback", rating="5.0").replace(b"}", b',"rating":5}'),
        body_of("recommendation", diagnosis_id="42.0", new_data='{"a":1,"a":2}'),
        body_of("feedback", rating="6", comment='"\\ud800"'),
    ):
        answer = await server.http.post("/ws/broadcast-feedback-update", content=body, headers=headers)
        assert_problem(answer, 400, "bad_json")


@given(st.text() | st.binary() | st.sampled_from(['{"diagnosis_id":42.0', "{}", "[1e400]", '{"rating":"\\ud800"}']))
def test_any_body_is_an_update_or_a_problem(text: str | bytes) -> None:
    body = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    assert {outcome_of(kind, body) for kind in KINDS.values()} <= {"an update", "bad_json", "invalid_field"}


def outcome_of(kind: type[Update], body: bytes) -> str:
    """The code of the problem, if it is one."""
    try:
        wire.new_event(wire.decode_update(kind, body), "key")
    except Problem as problem:
        return problem.code
    return "an update"


# Data that is passed on


@pytest.mark.parametrize("field", ["new_data", "old_data"])
@pytest.mark.parametrize(
    "written",
    [
        "1e400",
        "-1e400",
        "1.7976931348623159e308",
        "9" * 309,
        "-" + "9" * 310,
        "9" * 4301,
        "[[1e400]]",
        '{"b":{"c":1e309}}',
    ],
)
async def test_a_number_that_is_no_finite_double_is_refused_by_name(server: Server, field: str, written: str) -> None:
    await server.register()
    answer = await post(server, "recommendation", **{field: f'{{"a":{written}}}'})
    assert_problem(answer, 422, "invalid_field", f"{field} must hold no number beyond a double")


@pytest.mark.parametrize("diagnosis_id", ["42", "42.0"], ids=["a usual body", "a body that is read anew"])
def test_other_numbers_pass_unchanged(diagnosis_id: str) -> None:
    written = (
        '{"a":9007199254740993,"b":18446744073709551616,"c":-123456789012345678901234567890,"d":1E5,"e":1.0,"f":-0.0,'
        f'"g":1e-400,"h":0.1,"i":1.7976931348623157e308,"j":{"9" * 308},"k":-{"9" * 308},"l":-{2**1024 - 2**971}}}'
    )
    data = data_of(RecommendationUpdate, diagnosis_id=diagnosis_id, new_data=written, old_data=written)
    for found in (data["new_data"], data["old_data"]):
        expected = json.loads(written)
        assert found == expected
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()
        }
    assert data["changed_fields"] == []


def test_a_number_counts_as_unchanged_however_it_is_written() -> None:
    data = data_of(
        RecommendationUpdate,
        old_data='{"a":1,"b":100000,"c":[{"d":2.0}],"e":1,"f":9007199254740993}',
        new_data='{"a":1.0,"b":1E5,"c":[{"d":2}],"e":true,"f":9007199254740992.0}',
    )
    assert data["changed_fields"] == ["e", "f"]


@given(st.sampled_from([FeedbackUpdate, EffectivenessUpdate]), st.integers(-(10**20), 10**20))
def test_an_id_is_the_same_with_and_without_a_fraction(kind: type[Update], number: int) -> None:
    field = "feedback_id" if kind is FeedbackUpdate else "recommendation_id"
    assert data_of(kind, **{field: f"{number}.0"}) == data_of(kind, **{field: str(number)})


@pytest.mark.parametrize("written", EXACT, ids=[one[:30] for one in EXACT])
@pytest.mark.parametrize("diagnosis_id", ["42", "42.0"], ids=["a usual body", "a body that is read anew"])
def test_a_finite_number_is_stored_as_it_is_written_and_is_unchanged(diagnosis_id: str, written: str) -> None:
    nested = f'{{"a":{written},"b":[{{"c":{written}}}]}}'
    update = wire.decode_update(
        RecommendationUpdate, body_of("recommendation", diagnosis_id=diagnosis_id, new_data=nested, old_data=nested)
    )
    stored = wire.new_event(update, "key").body
    assert stored == f'{{"old_data":{nested},"new_data":{nested},"reason":null,"changed_fields":[]}}'.encode()


async def test_every_client_gets_a_number_as_it_was_written(server: Server) -> None:
    await server.register()
    new_data = "{" + ",".join(f'"n{number}":{one}' for number, one in enumerate(EXACT) if len(one) < 100) + "}"
    async with server.live() as client:
        answer = await post(server, "recommendation", new_data=new_data)
        assert answer.status_code == 200, answer.text
        assert f'"new_data":{new_data},' in await client.connection.get_message()
        ping = '{"type":"ping","data":' + new_data + "}"
        await client.connection.send_message(ping)
        assert f'"data":{new_data}}}' in await client.connection.get_message()
    outbox = await server.http.get("/actors/42/outbox", headers=server.bearer("op", "operate"))
    assert f'"new_data":{new_data},' in outbox.text
    async with streamed(server, device="browser") as stream:
        await stream.block()  # `connect`
        assert f'"new_data":{new_data},' in "".join(await stream.block())
    line = body_of("recommendation", type='"recommendation_update"', new_data=new_data)
    headers = server.bearer("amira") | {"Content-Type": "application/x-ndjson"}
    assert json.loads((await server.http.post("/ws/broadcast", content=line, headers=headers)).text)["status"] == 200
    assert (
        f'"new_data":{new_data},'
        in (await server.http.get("/actors/42/outbox?after=1", headers=server.bearer("op", "operate"))).text
    )


SAME = [
    ("1", "1.0", "10e-1", "0.1E+1", "1.000"),
    ("100", "1e2", "100.00", "1000e-1"),
    ("0", "-0", "0.0", "-0.0", "0e5", "0e-999999999"),
    ("9007199254740993", "9007199254740993.0", "9.007199254740993e15"),
    ("-5", "-5.0"),
    ("1.5", "1.50", "15e-1"),
    ("1e-400", "10e-401", "0.1e-399"),
    ("1e-999999999", "10e-1000000000"),
    ("1" + "0" * 300, "1e300"),
]
"""Numbers of one value."""


@pytest.mark.parametrize("same", SAME, ids=[one[0][:20] for one in SAME])
async def test_numbers_of_one_value_are_the_same_event_for_a_key(server: Server, same: tuple[str, ...]) -> None:
    await server.register()
    for number, one in enumerate(same):
        answer = await post(server, "recommendation", key="k", new_data=f'{{"a":[{one}],"b":{one}}}')
        assert (answer.status_code, answer.json().get("replayed")) == (200, number > 0), one
        assert (
            data_of(RecommendationUpdate, old_data=f'{{"a":{same[0]}}}', new_data=f'{{"a":{one}}}')["changed_fields"]
            == []
        )
    assert (
        f'"a":[{same[0].removeprefix("-") if same[0] == "-0" else same[0]}]'
        in (await server.http.get("/actors/42/outbox", headers=server.bearer("op", "operate"))).text
    ), "delivered is what was sent first"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("1.0", "true"),
        ("0.0", "false"),
        ("0", "null"),
        ("1", '"1"'),
        ("1.5", '"1.5"'),
        ("9007199254740993", "9007199254740992.0"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("0.1", "0.10000000000000001"),
        ("1e-400", "0.0"),
        ("1e-400", "1e-401"),
        ("1e-999999999", "1e-999999998"),
        ("1e-99999999999999999999", "1e-99999999999999999998"),
        ("1.5", "-1.5"),
        ("1", "1." + "0" * 1000 + "1"),
    ],
)
async def test_other_values_are_other_events_for_a_key(server: Server, one: str, other: str) -> None:
    await server.register()
    assert (await post(server, "recommendation", key="k", new_data=f'{{"a":{one}}}')).status_code == 200
    again = await post(server, "recommendation", key="k", new_data=f'{{"a":{other}}}')
    assert_problem(again, 409, "key_reused")
    changed = data_of(RecommendationUpdate, old_data=f'{{"a":{one}}}', new_data=f'{{"a":{other}}}')["changed_fields"]
    assert changed == ["a"]


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [("new_effectiveness", "1", "1.0"), ("new_effectiveness", "0.0", "-0.0"), ("confidence", "0.50", "5e-1")],
)
async def test_a_fraction_is_the_same_event_however_it_is_written(
    server: Server, field: str, one: str, other: str
) -> None:
    await server.register()
    for replayed, written in ((False, one), (True, other)):
        answer = await post(server, "effectiveness", key="k", **{field: written})
        assert (answer.status_code, answer.json().get("replayed")) == (200, replayed)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=5), st.integers(0, 5))
def test_zeros_at_the_end_change_no_value(value: Decimal, zeros: int) -> None:
    longer = f"{value}{'0' * zeros}"
    assert WrittenNumber(str(value)) == WrittenNumber(longer)
    assert (WrittenNumber(longer) == int(value)) == (value == int(value))
    assert wire.encode(WrittenNumber(longer)) == longer.encode()


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,9})([.][0-9]{1,9})?([eE][+-]?[0-9]{1,2})?", fullmatch=True))
def test_any_number_has_the_value_the_standard_library_reads(text: str) -> None:
    exact = Decimal(text)
    found = WrittenNumber(text).canonical()
    assert found == exact
    assert isinstance(found, int) == (exact == exact.to_integral_value())
    assert WrittenNumber(text) == WrittenNumber(str(exact))


@pytest.mark.parametrize(
    "written",
    ["1e999999999", "-1e99999999999999999999", "1e" + "9" * 60_000, "9" * 60_000 + ".5", "1" + "0" * 400 + ".0"],
)
async def test_a_number_beyond_every_double_is_refused_at_once(server: Server, written: str) -> None:
    await server.register()
    for diagnosis_id in ("42", "42.0"):
        answer = await post(
            server, "recommendation", diagnosis_id=diagnosis_id, new_data=f'{{"a":{written}}}', old_data='{"a":1}'
        )
        assert_problem(answer, 422, "invalid_field", "new_data must hold no number beyond a double")
    # Compared before it is refused, it must not become the integer it names.
    assert WrittenNumber(written) != 1
    assert WrittenNumber(written) == WrittenNumber(written)


@pytest.mark.parametrize(
    ("kind", "field", "written", "rule"),
    [
        ("effectiveness", "sample_size", str(SAFE + 1), f"sample_size must be an integer from 0 to {SAFE}"),
        ("effectiveness", "sample_size", "-1", f"sample_size must be an integer from 0 to {SAFE}"),
    ],
)
async def test_a_refusal_names_the_limit_that_was_met(
    server: Server, kind: str, field: str, written: str, rule: str
) -> None:
    await server.register()
    assert_problem(await post(server, kind, **{field: written}), 422, "invalid_field", rule)


@pytest.mark.parametrize("seq", [str(SAFE + 1), "-1", "9" * 400, "9007199254740993.0"])
def test_an_ack_that_is_no_number_of_an_event_is_told_which_are(seq: str) -> None:
    with pytest.raises(wire.FrameError, match=f"^seq must be an integer from 0 to {SAFE}$"):
        wire.decode_client_frame(f'{{"type":"ack","seq":{seq}}}')
