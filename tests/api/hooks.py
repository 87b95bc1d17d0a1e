"""What schemathesis has to be told about this server's bodies."""

from __future__ import annotations

import json

import schemathesis
from hypothesis import strategies as st

from web.contract.operations import NDJSON

_ids = st.one_of(st.integers(0, 10**15 - 1), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
_lines = st.fixed_dictionaries(
    {"type": st.just("feedback_update"), "diagnosis_id": _ids, "feedback_id": st.integers(), "rating": st.integers()},
    optional={"comment": st.text(), "idempotency_key": st.text(max_size=140)},
)
_bodies = st.lists(st.one_of(_lines.map(json.dumps), st.text(alphabet=st.characters(codec="utf-8"))), max_size=20).map(
    lambda lines: "\n".join(lines).encode()
)

schemathesis.openapi.media_type(NDJSON, _bodies)
