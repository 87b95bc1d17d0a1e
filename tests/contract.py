"""The documents as judges: does an answer, or a frame, look as `/openapi.json` and `docs/asyncapi.yaml` say?"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema import Draft202012Validator

from web.server.openapi import document

Schema = dict[str, Any]

ROOT = Path(__file__).parents[1]


@cache
def openapi() -> Schema:
    return json.loads(json.dumps(document()))  # type: ignore[no-any-return]


@cache
def asyncapi() -> Schema:
    return yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())  # type: ignore[no-any-return]


@cache
def _paths() -> list[tuple[re.Pattern[str], str]]:
    paths = sorted(openapi()["paths"], key=lambda path: path.count("{"))
    return [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path) for path in paths]


def operation_of(method: str, path: str) -> Schema | None:
    """The operation a request asks for; `None`: there is none."""
    for pattern, template in _paths():
        if pattern.fullmatch(path):
            found: Schema | None = openapi()["paths"][template].get(method.lower())
            return found
    return None


def complaint_of_headers(method: str, path: str, status: int, headers: Mapping[str, str]) -> str | None:
    """What is wrong with the headers of an answer, `None` if those are there that are documented, and as they are."""
    operation = operation_of(method, path)
    if operation is None or str(status) not in operation["responses"]:
        return None
    for name, header in operation["responses"][str(status)]["headers"].items():
        documented = openapi()["components"]["headers"][header["$ref"].rpartition("/")[2]]
        if name not in headers and documented.get("required"):
            return f"{method} {path} answered {status} without {name}"
        is_text = name in headers and documented["schema"]["type"] == "string"
        if is_text and (wrong := mismatch(Draft202012Validator(documented["schema"]), headers[name])):
            return f"{method} {path} answered {status} with a wrong {name}: {wrong}"
    return None


def complaint(method: str, path: str, status: int, media_type: str, body: bytes) -> str | None:
    """What is wrong with an answer, `None` if it is as documented, or there is no such operation."""
    operation = operation_of(method, path)
    if operation is None:
        return None
    documented = operation["responses"].get(str(status))
    if documented is None:
        return f"{method} {path} answered {status}, which is not documented: {body[:200]!r}"
    if "content" not in documented:
        return f"{method} {path} answered {status} with a body: {body[:200]!r}" if body or media_type else None
    content = documented["content"].get(media_type)
    if content is None:
        return f"{method} {path} answered {status} with {media_type}, which is not documented"
    if media_type == "application/x-ndjson":
        return next(filter(None, map(_line_complaint, body.splitlines())), None)
    if not media_type.endswith("json"):
        return None
    return mismatch(_strict(json.dumps(content["schema"])), json.loads(body))


def _line_complaint(line: bytes) -> str | None:
    """What is wrong with a line of the answer to a bulk request."""
    result = json.loads(line)
    if result["status"] == 200:
        return mismatch(_strict(json.dumps({"$ref": "#/components/schemas/StoredLine"})), result)
    if not isinstance(result.pop("line", None), int):
        return "a line without its number"
    return mismatch(_strict(json.dumps({"$ref": "#/components/schemas/Problem"})), result)


def mismatch(validator: Draft202012Validator, value: object) -> str | None:
    """Where a value breaks a schema, `None` if nowhere."""
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


@cache
def _strict(schema: str) -> Draft202012Validator:
    """A validator that takes no field which is not documented; clients must, since later versions add some."""
    whole = {**json.loads(schema), "components": copy.deepcopy(openapi()["components"])}
    _close(whole)
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)


@cache
def strict_frame(name: str, channel: str = "diagnosis") -> Draft202012Validator:
    """A validator for the payload of a message of a WebSocket that takes no undocumented field."""
    components = copy.deepcopy(asyncapi()["components"])
    _close(components["schemas"])
    message = asyncapi()["channels"][channel]["messages"][name]
    payload = components["messages"][message["$ref"].rpartition("/")[2]]["payload"]
    return Draft202012Validator({"components": components, **payload})


def frame_complaint(frame: Schema, channel: str = "diagnosis") -> str | None:
    """What is wrong with a frame of the server, `None` if it is as documented."""
    name = frame.get("type")
    if name not in asyncapi()["channels"][channel]["messages"]:
        return f"a frame of type {name} is not documented"
    return mismatch(strict_frame(name, channel), frame)


def _close(schema: object) -> None:
    if isinstance(schema, list):
        for one in schema:
            _close(one)
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for one in list(schema.values()):
            _close(one)
