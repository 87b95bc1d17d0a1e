"""The Dart client, which nobody here can run: a parser takes it, and what can be read from its text is held against the
rules that the other clients are tested by.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest
import tree_sitter
import tree_sitter_dart_orchard
import yaml

from tests.programs import ROOT

FILE: Final = ROOT / "examples" / "dart" / "diagnosis_follower.dart"
SOURCE: Final = FILE.read_text()
CODE: Final = " ".join(re.sub(r"//.*", "", SOURCE).split())
"""Without comments and line ends."""

JAVASCRIPT: Final = (ROOT / "clients" / "javascript" / "client.js").read_text()
TABLE: Final[list[dict[str, Any]]] = json.loads((ROOT / "clients" / "close-codes.json").read_text())
SCENARIOS: Final[dict[str, Any]] = yaml.safe_load((ROOT / "clients" / "scenarios.yaml").read_text())

AFTER_CLOSE: Final = (
    "if (_comeBack.contains(code)) return _Then.comeBack; "
    "if (code == 1008 && _tokenReasons.contains(reason)) return _Then.needsAuth; "
    "return _Then.ended;"
)
"""What `then` below does, in Dart."""

RESUMES: Final = (
    "if (position != null) 'after': '${position.seq}'",
    "if (position != null) 'epoch': position.epoch",
    "if (last <= _seq) return false;",
    "return last > _received!.seq;",
)
"""It comes back with its position, and drops what it has."""

COMES_BACK: Final = ("case _Then.comeBack:", "_jitter(500, _failures)", *RESUMES)
SILENCE: Final = ("max(5000, heartbeat * 1500)", "_drop(1006, 'nothing heard')")
BYE: Final = ("asked is int && asked >= 0 ? min(asked, _retryAfterMsMax)", *RESUMES)
ASKS_FOR_A_TOKEN: Final = (
    "text = await token();",
    "await _wait(_refused(wasOlder: wasAdmitted));",
    "wasOlder && _refusals == 0 ? 0 : _jitter(1000, _refusals)",
)
RENEWS: Final = ("case 'auth_expiring': unawaited(_authenticate(channel));", "_send({'type': 'auth', 'token': text})")
ENDS: Final = ("case _Then.ended: onLink?.call(Link.ended, code, reason); _end(Ended(code, reason));",)
GAP: Final = ("_read(Gap(max(first, _received!.seq + 1), last, data['reason'] as String), last);",)
RESET: Final = (
    "isReset ? data['floor'] as int : (data['head'] as int) - (data['queued'] as int) - (data['missed'] as int)",
    "if (isReset || (received != null && received.epoch != epoch))",
    "_items.clear(); _read(Reset(epoch, begins), begins);",
)
SAVES_THEN_ACKNOWLEDGES: Final = (
    "await positions.save(diagnosisId, reaches); _finished = number; _position = reaches; _acknowledge();",
    "final seq = min(position.seq, _seq); if (seq <= _acked) return;",
)
OF_THE_APP: Final = "fetches its state after a"
"""What the head of the file leaves to the app."""

READ: Final[dict[str, tuple[str, ...]]] = {
    "first follow": ("_position = _received = Position(epoch, begins);", *SAVES_THEN_ACKNOWLEDGES),
    "only what is new": ("if (position == null && start != null) 'start': start!",),
    "server killed": COMES_BACK,
    "orderly restart": BYE,
    "actor restarted": RESUMES,
    "network cut": COMES_BACK,
    "network slow": ("if (first != _seq + 1) throw const _Fault();",),
    "server not there yet": ("_lost(channel, 1006, 'no answer');", *COMES_BACK),
    "server full": ("_lost(channel, 1006, 'no answer');", *COMES_BACK),
    "half closed towards the client": (
        "onDone: () => _lost(channel, channel.closeCode, channel.closeReason)",
        *COMES_BACK,
    ),
    "half closed towards the server": (
        "onDone: () => _lost(channel, channel.closeCode, channel.closeReason)",
        *COMES_BACK,
    ),
    "half open": (*SILENCE, *COMES_BACK, "'device': device"),
    "nothing answers": ("await channel.ready.timeout(_openMax);", *COMES_BACK),
    "token renewed in band": RENEWS,
    "token renewed by coming back": (*ASKS_FOR_A_TOKEN, *RESUMES),
    "token revoked": ASKS_FOR_A_TOKEN,
    "token refused from the start": ASKS_FOR_A_TOKEN,
    "keys missing": COMES_BACK,
    "access denied": ENDS,
    "more than 100 missed": (*GAP, *COMES_BACK),
    "reset after a restore": RESET,
    "state of a new client": (OF_THE_APP,),
    "state after a gap and a reset": (*GAP, *RESET, OF_THE_APP),
    "taken over": ENDS,
    "quarantined": BYE,
    "slow consumer": ("while (_items.isNotEmpty && !_isLeft && !_steps.isPaused)", "if (_items.length >= _aheadMax)"),
    "cut while the consumer is behind": ("final _items = <_Entry>[];", *RESUMES),
    "consumer raises": SAVES_THEN_ACKNOWLEDGES,
    "acknowledgement lost": (*RESUMES, "_seq = _acked = begins;", *SAVES_THEN_ACKNOWLEDGES),
    "acknowledgement and position lost": SAVES_THEN_ACKNOWLEDGES,
    "client started again": ("_position = _received = await positions.load(diagnosisId);", *RESUMES),
    "purged": GAP,
    "diagnosis deleted": ENDS,
    "deleted and registered anew": RESET,
    "clock ahead": RENEWS,
    "clock behind": RENEWS,
    "everything at once": (*COMES_BACK, *BYE, *GAP, *SAVES_THEN_ACKNOWLEDGES),
}
"""By scenario: the code that keeps to it, as read in November 2026, twice. A scenario that is new has to be read."""


def faults_of(source: str) -> list[str]:
    """What a parser of Dart does not understand, by line."""
    language = tree_sitter.Language(tree_sitter_dart_orchard.language())
    found: list[str] = []

    def look(at: tree_sitter.Node) -> None:
        if at.is_error or at.is_missing:
            found.append(f"line {at.start_point[0] + 1}")
        for below in at.children:
            look(below)

    look(tree_sitter.Parser(language).parse(source.encode()).root_node)
    return found


def numbers(name: str) -> set[int]:
    """The numbers of a set in the file."""
    found = re.search(rf"{name} = \{{([\d, ]+)\}}", SOURCE)
    assert found is not None, name
    return set(map(int, found[1].split(",")))


def texts(name: str) -> set[str]:
    """The texts of a set in the file."""
    found = re.search(rf"{name} = \{{([^}}]+)\}}", SOURCE)
    assert found is not None, name
    return set(re.findall(r"'([^']+)'", found[1]))


def then(code: int, reason: str) -> str:
    """What the file does after a close."""
    if code in numbers("_comeBack"):
        return "come_back"
    return "needs_auth" if code == 1008 and reason in texts("_tokenReasons") else "ended"


def of_javascript(name: str) -> int:
    """A number of the JavaScript client."""
    found = re.search(rf"^const {name} = ([\d_]+);", JAVASCRIPT, re.MULTILINE)
    assert found is not None, name
    return int(found[1])


def test_it_is_dart_and_says_that_it_was_never_run() -> None:
    assert [one.name for one in FILE.parent.iterdir()] == [FILE.name]
    assert SOURCE.startswith("// NEVER RUN.")
    assert faults_of(SOURCE) == []
    assert faults_of(SOURCE.replace("sealed class Item {", "sealed class Item {{", 1)) != []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['code']} {row['reason']}".strip())
def test_it_does_after_every_close_what_the_table_says(row: dict[str, Any]) -> None:
    assert AFTER_CLOSE in CODE
    if row["code"] >= 1000:  # a status: the package shows none, as the head of the file says
        assert then(row["code"], row["reason"]) == row["then"]
    else:
        assert "does not show the HTTP status of a refused upgrade" in " ".join(SOURCE.replace("//", " ").split())


def test_its_waits_and_bounds_are_those_of_the_javascript_client() -> None:
    seconds = {name: int(value) for name, value in re.findall(r"(\w+Max) = Duration\(seconds: (\d+)\)", SOURCE)}
    assert {name: value * 1000 for name, value in seconds.items()} == {
        "_openMax": of_javascript("OPEN_MS_MAX"),
        "_closeMax": of_javascript("CLOSE_MS_MAX"),
        "_answerMax": of_javascript("ANSWER_MS_MAX"),
    }
    whole = {name: int(value) for name, value in re.findall(r"static const (\w+) = (\d+);", SOURCE)}
    assert whole == {
        "_retryAfterMsMax": of_javascript("RETRY_AFTER_MS_MAX"),
        "_aheadMax": of_javascript("AHEAD_MAX"),
        "_protocolFault": of_javascript("PROTOCOL_FAULT"),
    }
    first, most = re.findall(r"(?:BACKOFF|REFUSED) = \{ firstMs: ([\d_]+), maxMs: ([\d_]+) \}", JAVASCRIPT), 30_000
    assert [(int(one), int(bound)) for one, bound in first] == [(500, most), (1000, most)]
    assert "_jitter(500, _failures)" in CODE
    assert "_jitter(1000, _refusals)" in CODE
    assert f"_random.nextDouble() * min({most}, firstMs * pow(2, min(failures, 16)))" in CODE
    assert f"max({of_javascript('SILENT_MS_MIN')}, heartbeat * 1500)" in CODE
    assert f"const Duration(seconds: {of_javascript('LATE_MS') // 1000})" in CODE


def test_it_knows_the_kinds_of_events_that_the_javascript_client_knows() -> None:
    found = re.search(r"EVENTS = new Set\(\[([^\]]+)\]\)", JAVASCRIPT)
    assert found is not None
    assert texts("_events") == set(re.findall(r'"(\w+)"', found[1]))


def test_every_scenario_was_read_and_what_keeps_to_it_is_still_there() -> None:
    assert READ.keys() == SCENARIOS.keys(), "read the file for what is new, and say where it stands"
    whole = CODE + " ".join(SOURCE.replace("//", " ").split())
    missing = {name: [one for one in code if one not in whole] for name, code in READ.items()}
    assert {name: code for name, code in missing.items() if code} == {}


def test_every_rule_is_named_in_the_file() -> None:
    rules = set(re.findall(r"^(\d+)\. ", (ROOT / "clients" / "README.md").read_text(), re.MULTILINE))
    named = {number for text in re.findall(r"[Rr]ules? ([\d, and]+)", SOURCE) for number in re.findall(r"\d+", text)}
    # 14: it compares no `exp`, which nothing in a file can show; 18 is that of Ended.
    assert rules - named <= {"14"}, sorted(rules - named, key=int)
