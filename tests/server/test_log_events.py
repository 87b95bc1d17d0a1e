"""Every line of the log is an event with a name, and its fields are what docs/LOG.md says."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import ROOT
from tests.server.harness import Server
from web.server.log_events import BY_CALL, LOG_EVENTS, log_page
from web.server.logs import Formatter

ROOMS = ("actors", "storage", "web")
LEVELS = {"info", "warning", "error", "critical"}


def trees() -> Iterator[ast.Module]:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            yield ast.parse(file.read_text(), str(file))


def constants() -> dict[str, str]:
    """Texts that have names, by name."""
    found = {}
    for tree in trees():
        for node in tree.body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text))):
                    found[name] = text
    return found


def calls() -> Iterator[tuple[Any, int, Any]]:
    """Logger, level and text of every call of a logger, and of every line about a connection."""
    named = constants()
    for tree in trees():
        loggers = {
            node.targets[0].id: node.value.args[0].value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "logging.getLogger"
            if isinstance(node.value.args[0], ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):  # what a connection is called when it ends
                for one in node.values:
                    if isinstance(one, ast.Constant) and str(one.value).endswith(" ended: %s"):
                        yield "avicenna.connections", logging.INFO, one.value
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            is_of_connections = "avicenna.connections" in loggers.values()
            if is_of_connections and ast.unparse(called) == "_say" and isinstance(node.args[0], ast.Constant):
                yield "avicenna.connections", logging.INFO, node.args[0].value
            if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
                continue
            if called.value.id in loggers and called.attr in {*LEVELS, "log", "debug", "exception"}:
                assert called.attr in LEVELS, ast.unparse(node)
                text = node.args[0]
                if isinstance(text, ast.Name) and text.id == "text":
                    continue  # `_say` of the log of connections
                said = named[text.id] if isinstance(text, ast.Name) else ast.literal_eval(text)
                yield loggers[called.value.id], logging.getLevelNamesMapping()[called.attr.upper()], said


def test_every_call_of_a_logger_has_its_event_and_every_event_its_call() -> None:
    dropped = ("avicenna.log", logging.WARNING, "%d log lines were dropped: nobody read the log")
    assert {*calls(), dropped} == set(BY_CALL)


def test_the_page_of_the_log_is_that_of_the_table() -> None:
    assert (ROOT / "docs" / "LOG.md").read_text() == log_page(), "make log"


@pytest.mark.parametrize(
    "one", [one for one in LOG_EVENTS if not one.is_whole], ids=lambda one: f"{one.logger}-{one.name}"
)
def test_the_arguments_of_a_text_are_its_fields(one: Any) -> None:
    values = tuple(range(1, 1 + len(one.fields)))
    level = logging.getLevelNamesMapping()[one.level.upper()]
    record = logging.LogRecord(f"avicenna.{one.logger}", level, __file__, 1, one.text, values, None)
    line = json.loads(Formatter(json=True).format(record))
    assert line["event"] == one.name
    assert tuple(line[name] for name in one.fields) == values


@pytest.mark.guarantee(14)
def test_a_field_is_redacted_as_the_text_is() -> None:
    token = f"{'ey' + 'A' * 8}.{'b' * 10}.{'c' * 40}"
    record = logging.LogRecord(
        "avicenna.server", logging.CRITICAL, __file__, 1, "cannot start: %s", (OSError(f"no {token}\nhere"),), None
    )
    line = json.loads(Formatter(json=True).format(record))
    assert line["error"] == r"no [token]\x0ahere"
    assert line["message"] == r"cannot start: no [token]\x0ahere"


def test_what_a_library_logs_has_the_name_of_its_logger() -> None:
    record = logging.LogRecord("hypercorn.error", logging.WARNING, __file__, 1, "careful: %s", ("now",), None)
    line = json.loads(Formatter(json=True).format(record))
    assert (line["event"], line["logger"], line["message"]) == ("library", "hypercorn.error", "careful: now")


def test_of_libraries_only_warnings_are_logged_even_if_all_of_ours_is(tmp_path: Path) -> None:
    script = (
        "import logging, warnings\n"
        "from pathlib import Path\n"
        "from web.server.logs import set_up_logging\n"
        "from web.server.settings import Settings\n"
        f"set_up_logging(Settings(data=Path({str(tmp_path)!r}), log_level='debug', log_format='json'))\n"
        "for name in ('aiosqlite', 'quart.app', 'avicenna.new'):\n"
        "    for level in (logging.DEBUG, logging.INFO, logging.WARNING):\n"
        "        logging.getLogger(name).log(level, 'said')\n"
        "warnings.warn('old')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("aiosqlite", "warning"),
        ("quart.app", "warning"),
        ("avicenna.new", "debug"),
        ("avicenna.new", "info"),
        ("avicenna.new", "warning"),
        ("py.warnings", "warning"),
    ]


def fields_of(records: list[logging.LogRecord]) -> list[dict[str, Any]]:
    """The lines of requests, as JSON has them."""
    formatter = Formatter(json=True)
    return [json.loads(formatter.format(one)) for one in records if one.name == "avicenna.access"]


@pytest.mark.both_ways
async def test_a_request_has_its_diagnosis_and_its_code_as_fields(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.register()
    await server.publish(1)
    await server.publish(1, diagnosis_id=43, sub="op")
    await server.http.get("/diagnoses/42/position", headers=server.bearer("eve"))
    await server.http.get("/nowhere")
    lines = [line for line in fields_of(caplog.records) if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"], line["diagnosis_id"], line["code"]) for line in lines] == [
        ("PUT", "/diagnoses/42", 201, "42", None),
        ("POST", "/ws/broadcast-feedback-update", 200, "42", None),
        ("POST", "/ws/broadcast-feedback-update", 403, "43", "forbidden"),
        ("GET", "/diagnoses/42/position", 403, "42", "forbidden"),
        ("GET", "/nowhere", 404, None, "not_found"),
    ]
