"""`docs/asyncapi.yaml` and `/openapi.json` pass the tools that users will read them with: those of npm, on Node.

The same tools are shown to find a fault of each kind, so that a silent one is not taken for praise.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract import ROOT, openapi
from tests.programs import NODE_PACKAGES, node_package, program

JUDGE = Path(__file__).with_name("judge.mjs")
ASYNCAPI = (ROOT / "docs" / "asyncapi.yaml").read_text()

Document = dict[str, Any]


def findings(kind: str, package: str, file: Path) -> list[str]:
    """What a tool finds wrong with a file, one text each; see `judge.mjs` for the kinds."""
    node = program("node")
    node_package(package)
    command = [node, "--input-type=module", "-", kind, str(file)]
    done = subprocess.run(
        command,
        cwd=NODE_PACKAGES.parent,
        input=JUDGE.read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def lint(file: Path) -> tuple[int, str]:
    """What Redocly says about an OpenAPI document, with its strictest rules: 0, or what is wrong."""
    node = program("node")
    cli = node_package("@redocly/cli") / "bin" / "cli.js"
    command = [node, str(cli), "lint", "--extends", "recommended-strict", "--format", "summary", str(file)]
    silent = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    done = subprocess.run(
        command, cwd=file.parent, env=os.environ | silent, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def written(directory: Path, document: Document) -> Path:
    """An OpenAPI document as a file."""
    file = directory / "openapi.json"
    file.write_text(json.dumps(document))
    return file


def test_asyncapi_yaml_passes_the_official_parser() -> None:
    assert findings("asyncapi", "@asyncapi/parser", ROOT / "docs" / "asyncapi.yaml") == []


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ('      "1000": {meaning', "      1000: {meaning", "must be a string scalar"),
        ('messages/gap"}', 'messages/hole"}', "hole"),
        ("    action: send\n", "", "action"),
        ("info:", "info: [", ""),
    ],
    ids=["a key that is a number", "a reference to nothing", "a field that is missing", "no YAML"],
)
def test_the_official_parser_finds_what_is_wrong(tmp_path: Path, right: str, wrong: str, found: str) -> None:
    file = tmp_path / "asyncapi.yaml"
    assert right in ASYNCAPI
    file.write_text(ASYNCAPI.replace(right, wrong, 1))
    complaints = findings("asyncapi", "@asyncapi/parser", file)
    assert any(found in complaint for complaint in complaints), complaints


def test_openapi_json_is_a_document_of_the_openapi_initiative(tmp_path: Path) -> None:
    assert findings("openapi", "@hyperjump/json-schema", written(tmp_path, openapi())) == []


def test_the_openapi_initiatives_schemas_find_what_is_wrong(tmp_path: Path) -> None:
    document = openapi()
    for wrong in (
        {**document, "servers": [{}]},
        {**document, "surprise": 1},
        {**document, "components": {"schemas": {"Thing": {"type": "nothing"}}}},
    ):
        assert findings("openapi", "@hyperjump/json-schema", written(tmp_path, wrong)) != []


def test_openapi_json_passes_redocly(tmp_path: Path) -> None:
    code, said = lint(written(tmp_path, openapi()))
    assert code == 0, said


def test_redocly_finds_what_is_wrong(tmp_path: Path) -> None:
    document = openapi()
    components = document["components"]
    unused = {**components["schemas"], "Unused": {"type": "string"}}
    for wrong in (
        {**document, "servers": []},
        {**document, "components": {**components, "schemas": unused}},
        {**document, "components": {**components, "headers": {}}},
    ):
        code, said = lint(written(tmp_path, wrong))
        assert code != 0, said
