"""`docs/LIMITS.md` lists the bounds of the code as they are, and each says what it bounds."""

from __future__ import annotations

from tests.documents.limits import PARTS, ROOT, Bound, bounds, complaints, listing


def test_the_page_of_limits_is_what_the_code_says() -> None:
    assert complaints() == []


def test_no_room_of_the_server_is_left_out() -> None:
    rooms = {directory for directories in PARTS.values() for directory in directories}
    of_web = {f"web/{path.name}" for path in (ROOT / "web").iterdir() if (path / "__init__.py").exists()}
    assert rooms == of_web - {"web/commands", "web/demo"} | {"actors", "storage"}


def test_a_bound_is_found_by_its_name_and_by_what_is_beyond_it() -> None:
    names = {one.name for one in bounds(ROOT / "web" / "publishing")}
    assert {"WINDOW", "LINES_MAX"} <= names
    assert "| `OUTBOX_EVENTS_MAX` | 100 | Events retained per diagnosis." in listing()


def test_values_are_shown_with_their_units() -> None:
    shown = {
        ("BODY_BYTES_MAX", 65536): "64 KiB",
        ("BODY_BYTES_MAX", 1500): "1,500 bytes",
        ("WAIT_SECONDS_MAX", 0.5): "0.5 s",
        ("WAIT_SECONDS_MAX", 2592000): "2,592,000 s",
        ("INTEGER_MAX", 2**53 - 1): "2^53 - 1",
        ("LINES_MAX", 1000): "1,000",
    }
    assert {(name, value): Bound("", name, value, "").shown for name, value in shown} == shown
