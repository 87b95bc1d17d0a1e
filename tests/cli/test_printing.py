"""What people and programs read."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import COMMAND
from web.commands.printing import say_json
from web.commands.publish import receipt_line
from web.commands.status import status_text
from web.commands.tables import table
from web.commands.tail import connect_line, event_line, gap_line
from web.commands.text import printable


def frame(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "diagnosis_id": 42, "seq": 7, "timestamp": "2026-01-02T03:04:05.678Z", "data": data}


def test_an_event_is_one_line_with_time_number_and_content() -> None:
    line = event_line(
        frame("recommendation_update", changed_fields=["herb"], new_data={"herb": "زعفران"}, reason="better evidence")
    )
    assert line == (
        '2026-01-02T03:04:05.678Z  #7  recommendation_update  changed: herb  {"herb":"زعفران"}  (better evidence)'
    )


def test_fields_that_are_not_there_are_not_printed() -> None:
    line = event_line(frame("effectiveness_update", recommendation_id=3, new_effectiveness=0.8, confidence=None))
    assert line.endswith("recommendation 3: 0.8")
    line = event_line(frame("feedback_update", feedback_id="f", rating=5, effectiveness=None, comment="good"))
    assert line.endswith("feedback f: rating 5, comment good")


def test_nothing_an_event_holds_can_move_the_cursor_of_a_terminal() -> None:
    line = event_line(frame("feedback_update", feedback_id="f", rating=5, comment="a\x1b[2J\nb\u202e\x9bc"))
    assert "\\x1b[2J\\nb\\u202e\\x9bc" in line
    assert printable("می\u200cخواهم") == "می\u200cخواهم"


def test_a_gap_names_exactly_what_is_gone() -> None:
    assert gap_line({"from": 3, "to": 5, "count": 3, "reason": "evicted"}) == (
        "gap  #3 to #5: 3 no longer retained (evicted)"
    )
    assert gap_line({"from": 3, "to": 3, "count": 1, "reason": "purged"}).startswith("gap  #3: 1 ")


def test_a_connection_says_how_it_resumed() -> None:
    data = {"resume": "partial", "missed": 4, "queued": 100, "head": 104}
    assert connect_line("42", data) == "connected to diagnosis 42, where you stopped, 4 missed; 100 queued, head #104"


def test_a_receipt_says_the_number_and_who_was_there() -> None:
    receipt = {
        "diagnosis_id": 42,
        "seq": 7,
        "clients_notified": 2,
        "subscribers": {"online": 1, "known": 3, "at_risk": 1},
        "replayed": True,
    }
    assert receipt_line(receipt) == (
        "diagnosis 42: #7 stored (published before with this key); 2 connected, 1 of 3 subscribers online, 1 far behind"
    )


def test_the_status_lists_totals_and_then_busy_diagnoses() -> None:
    status = {
        "total_diagnoses": 2,
        "total_connections": 1,
        "connections_by_diagnosis": {"42": 1},
        "queued_messages_by_diagnosis": {"a": 3},
        "node": {"actors": 1},
    }
    assert status_text(status).splitlines() == [
        "WHAT               VALUE",
        "total diagnoses    2",
        "total connections  1",
        "node actors        1",
        "",
        "DIAGNOSIS  CONNECTIONS  QUEUED",
        "42         1            0",
        "a          0            3",
    ]


def test_the_status_names_what_is_damaged() -> None:
    status = {"total_diagnoses": 2, "damage_by_diagnosis": {"b": "event 3 fails its checksum", "a": "x"}}
    assert status_text(status).splitlines()[3:] == [
        "DIAGNOSIS  DAMAGE",
        "a          x",
        "b          event 3 fails its checksum",
    ]


def test_a_status_of_totals_only_has_no_empty_table() -> None:
    assert "DIAGNOSIS" not in status_text({"total_diagnoses": 0, "total_connections": 0})


def test_a_table_without_rows_is_its_head() -> None:
    assert table(("A", "B"), []) == "A  B"


def test_json_is_one_line_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"herb": "زعفران\n"})
    written = capsys.readouterr().out
    assert written.isascii()
    assert written.count("\n") == 1


def test_a_status_names_the_clock_only_where_it_is_not_believed() -> None:
    assert "clock" not in status_text({"total_diagnoses": 0, "clock_held_since": None})
    shown = status_text({"total_diagnoses": 0, "clock_held_since": "2026-01-02T03:04:05.678Z"})
    assert "clock held since  2026-01-02T03:04:05.678Z" in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_command_whose_output_cannot_be_written_says_so_in_one_line(tmp_path: Path) -> None:
    command = [str(COMMAND), "token", "--sub", "amira", "--data", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "avicenna-live: cannot write the output: No space left on device"
    assert "Traceback" not in ended.stderr
