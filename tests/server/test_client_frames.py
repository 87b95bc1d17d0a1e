"""Whatever text a client sends is a frame, or gets an `error` frame; the connection stays (PROTOCOL section 4)."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.harness import Server
from web.contract import wire
from web.contract.records import Ack, Auth, Ping

FAR_TOO_DEEP = "invalid_field" if sys.version_info >= (3, 14) else "bad_frame"
"""Before 3.14 Python cannot read it; since then it can, and it is found to be too deep."""

ODD: list[tuple[str, str]] = [
    ('{"type":"ping","data":1,}', "bad_frame"),
    ('{"type":"ping"} x', "bad_frame"),
    ('{"type":"ack","seq":-1} x', "bad_frame"),
    ('{"type":"ack","seq":"1"', "bad_frame"),
    ('{"type":"nothing"} x', "bad_frame"),
    ('{"type":"ping","data":{"a":NaN}}', "bad_frame"),
    ('{"type":"ping","data":{"a":"\\ud800"}}', "bad_frame"),
    ('{"type":"ack","seq":-1,"\\ud800":1}', "bad_frame"),
    ('{"type":"ping","type":"ping"}', "bad_frame"),
    ('{"type":"ping","type":"nothing"}', "bad_frame"),
    ('{"type":"ping","type":"ack","seq":1}', "bad_frame"),
    ('{"type":"ack","seq":1,"seq":2}', "bad_frame"),
    ('{"type":"ping","data":{"a":1,"a":2}}', "bad_frame"),
    ('{"type":"auth","token":"a","token":"b"}', "bad_frame"),
    ('{"type":"ping","data":' + '{"a":' * 1300 + "1" + "}" * 1301, FAR_TOO_DEEP),
    ("[" * 8000, "bad_frame"),
    ("[]", "bad_frame"),
    ("null", "bad_frame"),
    ("", "bad_frame"),
    ("\ufeff{}", "bad_frame"),
    ("{}", "unknown_type"),
    ('{"type":1}', "unknown_type"),
    ('{"type":["ping"]}', "unknown_type"),
    ('{"type":{"type":"ping"}}', "unknown_type"),
    ('{"type":"connect"}', "unknown_type"),
    ('{"type":"ping","data":{"a":1e400}}', "invalid_field"),
    ('{"type":"ping","data":{"a":[{"b":-1e400}]}}', "invalid_field"),
    ('{"type":"ping","data":{"a":' + "9" * 400 + "}}", "invalid_field"),
    ('{"type":"ping","data":{"a":' + "9" * 5000 + "}}", "invalid_field"),
    ('{"type":"ping","data":' + '{"a":' * 64 + "{}" + "}" * 65, "invalid_field"),
    ('{"type":"ping","data":[]}', "invalid_field"),
    ('{"type":"ping","seq":1}', "invalid_field"),
    ('{"type":"ack"}', "invalid_field"),
    ('{"type":"ack","seq":-1}', "invalid_field"),
    ('{"type":"ack","seq":1.5}', "invalid_field"),
    ('{"type":"ack","seq":1e400}', "invalid_field"),
    ('{"type":"ack","seq":0e99999999999999999999}', "invalid_field"),
    ('{"type":"ack","seq":9007199254740993.0}', "invalid_field"),
    ('{"type":"ack","seq":' + "9" * 5000 + "}", "invalid_field"),
    ('{"type":"ack","seq":true}', "invalid_field"),
    ('{"type":"ack","seq":null}', "invalid_field"),
    ('{"type":"ack","seq":"1"}', "invalid_field"),
    ('{"type":"auth","token":1.0}', "invalid_field"),
    ('{"type":"ack","seq":1,"at `$.seq":1}', "invalid_field"),
]


def _objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as text, in which a field may be named twice."""
    fields = st.tuples(_names.map(json.dumps), values).map(":".join)
    return st.lists(fields, max_size=4).map(lambda found: f"{{{','.join(found)}}}")


_names = st.sampled_from(["type", "data", "seq", "token", "a", "\ud800"]) | st.text(max_size=3)
_numbers = st.sampled_from(["1e400", "-1e999", "9" * 400, "9" * 5000, "1e99999999999999999999", "5.0", "-0.0", "NaN"])
_values = st.recursive(
    st.sampled_from(["ping", "ack", "auth", "\ud800"]).map(json.dumps)
    | st.text(max_size=5).map(json.dumps)
    | st.integers(-(2**70), 2**70).map(str)
    | st.floats().map(json.dumps)
    | st.sampled_from(["true", "false", "null"])
    | _numbers,
    lambda inner: st.lists(inner, max_size=3).map(lambda found: f"[{','.join(found)}]") | _objects(inner),
    max_leaves=6,
)


_frames = st.builds(
    lambda kind, rest, end: f'{{"type":"{kind}"{"".join("," + one for one in rest)}}}{end}',
    st.sampled_from(["ping", "ack", "auth", "connect"]),
    st.lists(st.tuples(_names.map(json.dumps), _values).map(":".join), max_size=3),
    st.sampled_from(["", " ", "x", ",", "}", "\0"]),
)


@given(st.text() | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u') | _values | _objects(_values) | _frames)
@example("\ud800")
def test_any_text_is_a_frame_or_a_frame_error(text: str) -> None:
    outcome = outcome_of(text)
    if isinstance(outcome, Ping):
        assert json.loads(wire.frame("pong", "42", 0.0, outcome.data))["data"] == json.loads(text).get("data")
    assert isinstance(outcome, Ping | Ack | Auth) or outcome in ("bad_frame", "unknown_type", "invalid_field")


def outcome_of(text: str) -> Ping | Ack | Auth | str:
    """The frame, or the code of the error."""
    try:
        return wire.decode_client_frame(text)
    except wire.FrameError as error:
        return error.code


@pytest.mark.parametrize(("text", "code"), ODD, ids=[text[:40] for text, _ in ODD])
def test_an_odd_frame_is_told_what_is_wrong_with_it(text: str, code: str) -> None:
    with pytest.raises(wire.FrameError) as caught:
        wire.decode_client_frame(text)
    assert caught.value.code == code


async def test_odd_frames_get_error_frames_on_a_connection_that_stays(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        for text, code in ODD:
            await client.connection.send_message(text)
            error = await client.next()
            assert (error["type"], error["data"]["code"]) == ("error", code), text[:60]
        await client.say(type="ping", data={"n": 1})
        assert (await client.next())["data"] == {"n": 1}


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "\0", "\u2028", "x" * 7000, "eyJ" + "." * 2000])
async def test_a_text_that_is_no_token_is_told_so_on_a_connection_that_stays(server: Server, token: str) -> None:
    await server.register()
    async with server.live() as client:
        await client.say(type="auth", token=token)
        error = await client.next()
        assert (error["type"], error["data"]["code"]) == ("error", "invalid_token")
        await client.say(type="ping")
        assert (await client.next())["type"] == "pong"


@pytest.mark.parametrize("seq", ["1.0", "1e0", "0.1e1", "10.0e-1"])
async def test_an_ack_may_be_written_with_a_fraction_of_zero(server: Server, seq: str) -> None:
    await server.register()
    async with server.live(device="tab", ack="app") as client:
        assert (await server.publish()).status_code == 200
        assert (await client.next())["seq"] == 1
        await client.connection.send_message(f'{{"type":"ack","seq":{seq}}}')
        acked: dict[str, Any] = await client.next()
        assert (acked["type"], acked["data"]) == ("acked", {"seq": 1})


async def test_a_pong_echoes_what_its_ping_carried(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        data = '{"a":[1,1.5,-0.0,1e300,123456789012345678901234567890],"b":"\\u0000\\u2028","c":{"d":null}}'
        await client.connection.send_message(f'{{"type":"ping","data":{data}}}')
        assert (await client.next())["data"] == json.loads(data)
