"""Requests of the tables: a plain one, and edits of its lines. Text stands for bytes as Latin-1 has them."""

from __future__ import annotations

from typing import Final

from tests.differential.people import TOKENS

FEEDBACK: Final = '{"diagnosis_id": 42, "feedback_id": 9, "rating": 5, "comment": "slept well"}'
LINES: Final = (
    '{"type": "feedback_update", "diagnosis_id": 42, "feedback_id": 1, "rating": 4}\n'
    '{"type": "feedback_update", "diagnosis_id": 42, "feedback_id": 2, "rating": 9}\n'
)
PUBLISH: Final = "POST /ws/broadcast-feedback-update HTTP/1.1"
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


def raw(text: str) -> bytes:
    """The bytes of a text, with the tokens that it names."""
    for name, token in TOKENS.items():
        text = text.replace(name, token)
    return text.encode("latin-1")


def request(line: str, *edits: str, body: str | None = None, fields: tuple[str, ...] = ("Host: live.test",)) -> bytes:
    """A request of this line, with these fields, and with its length if it has a body.

    Args:
        edits: `Name: value` takes the place of the field of that name, or is added at the end; `+` before it: it is
            added in any case; `-Name`: no such field.
    """
    lines = [*fields, *(() if body is None else (f"Content-Length: {len(body.encode('latin-1'))}",))]
    for edit in edits:
        name = edit.lstrip("+-").partition(":")[0].strip().lower()
        places = [at for at, one in enumerate(lines) if one.partition(":")[0].lower() == name]
        if edit.startswith("-"):
            assert places, f"there is no {name} to leave out"
            del lines[places[0]]
        elif edit.startswith("+") or not places:
            lines.append(edit.removeprefix("+"))
        else:
            lines[places[0]] = edit
    return raw("\r\n".join((line, *lines, "", body or "")))


def publish(*edits: str, line: str = PUBLISH, body: str = FEEDBACK) -> bytes:
    """A plain publish."""
    fields = ("Host: live.test", "Authorization: Bearer @service@", "Content-Type: application/json")
    return request(line, *edits, body=body, fields=fields)


def bulk(*edits: str, body: str = LINES) -> bytes:
    """A plain publish of several lines."""
    return publish("Content-Type: application/x-ndjson", *edits, line="POST /ws/broadcast HTTP/1.1", body=body)


def get(path: str, *edits: str, who: str = "@operator@") -> bytes:
    """A plain look."""
    fields = ("Host: live.test", f"Authorization: Bearer {who}")
    return request(f"GET {path} HTTP/1.1", *edits, fields=fields)


def act(method: str, path: str, *edits: str, body: str | None = None, who: str = "@operator@") -> bytes:
    """A plain act of an operator."""
    type_ = () if body is None else ("Content-Type: application/json",)
    fields = ("Host: live.test", f"Authorization: Bearer {who}", *type_)
    return request(f"{method} {path} HTTP/1.1", *edits, body=body, fields=fields)


def upgrade(*edits: str, path: str = "/ws/42", line: str | None = None, who: str = "@patient@") -> bytes:
    """A plain handshake of a WebSocket."""
    fields = (
        "Host: live.test",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {who}",
    )
    return request(line or f"GET {path} HTTP/1.1", *edits, fields=fields)


def chunked(*chunks: str, end: str = "0\r\n\r\n") -> str:
    """A body in chunks."""
    return "".join(f"{len(chunk):x}\r\n{chunk}\r\n" for chunk in chunks) + end


def with_chunks(*edits: str, body: str) -> bytes:
    """A publish whose body comes in chunks, as it is."""
    return publish("-Content-Length", "Transfer-Encoding: chunked", *edits, body="") + raw(body)
