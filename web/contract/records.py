"""What travels as JSON, as typed records: request bodies and client frames. Pure; decoded in `web.contract.wire`.

The rules a field must keep stand beside it: they check it, and they are what a refused client is told.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Final, TypeGuard

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from web.contract.errors import Problem
from web.contract.number import WrittenNumber, as_written

DIAGNOSIS_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
DIAGNOSIS_ID_RULE: Final = "must be 1-64 characters of A-Z a-z 0-9 _ -"
DEVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
DEVICE_RULE: Final = "must be 1-64 characters of A-Z a-z 0-9 _ . -"
NUMERIC_ID: Final = re.compile(r"0|[1-9][0-9]{0,14}")

NUMBER: Final = re.compile(r"[0-9]{1,15}")
"""A number in a URL."""
NUMBER_RULE: Final = "must be an integer >= 0 of at most 15 digits"

FRACTION_RULE: Final = "must be 0-1"
DEPTH_MAX: Final = 64
"""Levels of objects and lists within an object. Reason: every client must be able to decode it. Beyond: 422."""
INTEGER_MAX: Final = 2**53 - 1
"""Largest integer, of either sign, that JavaScript holds. Beyond: an id becomes the string of its digits."""
ID_DIGITS_MAX: Final = 64
"""Digits of an integer id. Beyond: 422."""
_INFINITE: Final = 2**1024 - 2**970
"""The first integer that is rounded to a double beyond the largest."""
SUB_CHARACTERS_MAX: Final = 256
"""Characters of the name of a person: `sub`, owner, viewer. Beyond: 422, or an invalid token."""

VIEWERS_MAX: Final = 1000
"""Viewers of one diagnosis. Reason: they are read with each registration. Beyond: 422."""

Fraction = Annotated[float, Meta(ge=0, le=1)]
Rating = Annotated[int, Meta(ge=1, le=5)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Reference = int | str
JsonObject = dict[str, Any]
Sub = Annotated[str, Meta(min_length=1, max_length=SUB_CHARACTERS_MAX, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
"""The name of a subject, or of a token (`jti`)."""

SUB_RULE: Final = f"a string of 1-{SUB_CHARACTERS_MAX} characters without control characters"
COUNT_RULE: Final = f"must be an integer from 0 to {INTEGER_MAX}"
REFERENCE_RULE: Final = f"must be a string, or an integer of at most {ID_DIGITS_MAX} digits"
OBJECT_RULE: Final = "must be an object"
TEXT_RULE: Final = "must be a string"

KEY: Final = re.compile(r"[ -~]{1,128}")
"""An idempotency key, wherever it travels."""
KEY_RULE: Final = "must be 1-128 printable ASCII characters"


def is_name(value: object) -> TypeGuard[str]:
    """Whether a claim can name a subject or a token: what a `Sub` can be, so that whatever it names can be revoked.

    Half of a surrogate pair is refused, too: no body of a request can hold one.
    """
    try:
        msgspec.convert(value, Sub).encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def diagnosis_id_of(value: int | str) -> str:
    """The one spelling of a diagnosis id: the integer 42 and the string "42" are the same.

    Raises:
        Problem: it breaks the rule of PROTOCOL section 2.
    """
    text = str(value)
    if not DIAGNOSIS_ID.fullmatch(text) or (isinstance(value, int) and value < 0):
        raise Problem("invalid_field", f"diagnosis_id {DIAGNOSIS_ID_RULE}")
    return text


def diagnosis_id_as_json(diagnosis_id: str) -> int | str:
    """How a diagnosis id is sent: as an integer where it looks like one of up to 15 digits."""
    return int(diagnosis_id) if NUMERIC_ID.fullmatch(diagnosis_id) else diagnosis_id


class Update(Struct, forbid_unknown_fields=True, kw_only=True):
    """A broadcast: a diagnosis id and the fields of one kind of event."""

    KIND: ClassVar[str]
    RULES: ClassVar[dict[str, str]]
    """What each field must be, for the client that got it wrong."""

    diagnosis_id: Reference

    def data(self) -> dict[str, object]:
        """The `data` of the event, as PROTOCOL section 4 gives it."""
        raise NotImplementedError


class Target(Struct):
    """Which diagnosis a broadcast is for; its other fields are skipped."""

    diagnosis_id: Reference


class RawTarget(Struct):
    """The same, as it is spelled."""

    diagnosis_id: msgspec.Raw


class Place:
    """Where a field stands, whatever it holds."""


class PlacedTarget(Struct):
    """The same, by its place."""

    diagnosis_id: Place


class RecommendationUpdate(Update, kw_only=True):
    """The recommendations of a diagnosis changed."""

    KIND = "recommendation_update"
    RULES = {
        "diagnosis_id": DIAGNOSIS_ID_RULE,
        "new_data": OBJECT_RULE,
        "old_data": OBJECT_RULE + " or null",
        "reason": TEXT_RULE + " or null",
    }

    new_data: JsonObject
    old_data: JsonObject | None = None
    reason: str | None = None

    def data(self) -> dict[str, object]:
        for name, value in (("new_data", self.new_data), ("old_data", self.old_data)):
            if (fault := fault_of(value)) is not None:
                raise Problem("invalid_field", f"{name} {fault}")
        old = self.old_data or {}
        missing = object()
        changed = sorted(key for key, value in self.new_data.items() if not _same(old.get(key, missing), value))
        return {
            "old_data": self.old_data,
            "new_data": self.new_data,
            "reason": self.reason,
            "changed_fields": changed,
        }


class EffectivenessUpdate(Update, kw_only=True):
    """The measured effectiveness of a recommendation changed."""

    KIND = "effectiveness_update"
    RULES = {
        "diagnosis_id": DIAGNOSIS_ID_RULE,
        "recommendation_id": REFERENCE_RULE,
        "new_effectiveness": FRACTION_RULE,
        "effectiveness": FRACTION_RULE,
        "confidence": FRACTION_RULE + " or null",
        "sample_size": COUNT_RULE + ", or null",
        "old_effectiveness": FRACTION_RULE,
        "herb": TEXT_RULE,
    }

    recommendation_id: Reference
    new_effectiveness: Fraction | UnsetType = UNSET
    effectiveness: Fraction | UnsetType = UNSET
    """Another name for `new_effectiveness`, which the system before this one used."""
    confidence: Fraction | None = None
    sample_size: Count | None = None
    old_effectiveness: Fraction | None = None
    herb: str | None = None

    def data(self) -> dict[str, object]:
        if isinstance(self.new_effectiveness, UnsetType) == isinstance(self.effectiveness, UnsetType):
            raise Problem("invalid_field", "exactly one of new_effectiveness and effectiveness is required")
        new = self.effectiveness if isinstance(self.new_effectiveness, UnsetType) else self.new_effectiveness
        data: dict[str, object] = {
            "recommendation_id": readable_id("recommendation_id", self.recommendation_id),
            "new_effectiveness": new,
            "confidence": self.confidence,
            "sample_size": self.sample_size,
        }
        return data | _given(old_effectiveness=self.old_effectiveness, herb=self.herb)


class FeedbackUpdate(Update, kw_only=True):
    """Feedback on a recommendation arrived."""

    KIND = "feedback_update"
    RULES = {
        "diagnosis_id": DIAGNOSIS_ID_RULE,
        "feedback_id": REFERENCE_RULE,
        "rating": "must be 1-5",
        "effectiveness": FRACTION_RULE + " or null",
        "recommendation_id": REFERENCE_RULE,
        "comment": TEXT_RULE,
    }

    feedback_id: Reference
    rating: Rating
    effectiveness: Fraction | None = None
    recommendation_id: Reference | None = None
    comment: str | None = None

    def data(self) -> dict[str, object]:
        data: dict[str, object] = {
            "feedback_id": readable_id("feedback_id", self.feedback_id),
            "rating": self.rating,
            "effectiveness": self.effectiveness,
        }
        related = self.recommendation_id
        if related is not None:
            related = readable_id("recommendation_id", related)
        return data | _given(recommendation_id=related, comment=self.comment)


KINDS: Final[dict[str, type[Update]]] = {
    kind.KIND: kind for kind in (RecommendationUpdate, EffectivenessUpdate, FeedbackUpdate)
}
"""The record of each kind of event."""


class RecommendationLine(RecommendationUpdate, tag_field="type", tag=RecommendationUpdate.KIND, kw_only=True):
    """A recommendation update as a line of a bulk request."""

    idempotency_key: str | None = None


class EffectivenessLine(EffectivenessUpdate, tag_field="type", tag=EffectivenessUpdate.KIND, kw_only=True):
    """An effectiveness update as a line of a bulk request."""

    idempotency_key: str | None = None


class FeedbackLine(FeedbackUpdate, tag_field="type", tag=FeedbackUpdate.KIND, kw_only=True):
    """A feedback update as a line of a bulk request."""

    idempotency_key: str | None = None


Line = RecommendationLine | EffectivenessLine | FeedbackLine
"""One line of a bulk request: a broadcast, its `type`, and a key of its own."""

PUBLISH_ID_CHARACTERS_MAX: Final = 64
"""Characters of the `id` of a frame that publishes. Beyond: the connection ends."""

PublishId = Annotated[str, Meta(min_length=1, max_length=PUBLISH_ID_CHARACTERS_MAX)]
PUBLISH_ID_RULE: Final = f"must be a string of 1-{PUBLISH_ID_CHARACTERS_MAX} characters"


class RecommendationFrame(RecommendationLine, tag_field="type", tag=RecommendationUpdate.KIND, kw_only=True):
    """A recommendation update as a frame of a WebSocket."""

    id: PublishId


class EffectivenessFrame(EffectivenessLine, tag_field="type", tag=EffectivenessUpdate.KIND, kw_only=True):
    """An effectiveness update as a frame of a WebSocket."""

    id: PublishId


class FeedbackFrame(FeedbackLine, tag_field="type", tag=FeedbackUpdate.KIND, kw_only=True):
    """A feedback update as a frame of a WebSocket."""

    id: PublishId


PublishFrame = RecommendationFrame | EffectivenessFrame | FeedbackFrame
"""A line as a frame of a WebSocket: with the id under which it is answered."""


class Identified(Struct):
    """A frame that is answered under an id; its other fields are skipped."""

    id: PublishId


class PlacedId(Struct):
    """The same, by its place."""

    id: Place


LINE_RULES: Final = {
    "type": f"must be one of {', '.join(KINDS)}",
    "idempotency_key": f"{KEY_RULE} or null",
}
"""What the fields of a line must be, beside those of its kind."""

PUBLISH_RULES: Final = LINE_RULES | {"id": PUBLISH_ID_RULE}
"""What the fields of a frame that publishes must be, beside those of its kind."""


class Registration(Struct, forbid_unknown_fields=True):
    """Who owns and who may follow a diagnosis."""

    RULES: ClassVar[dict[str, str]] = {
        "owner": f"must be {SUB_RULE}",
        "viewers": f"must be a list of at most {VIEWERS_MAX}, each {SUB_RULE}",
    }

    owner: Sub
    viewers: Annotated[list[Sub], Meta(max_length=VIEWERS_MAX)] = []


class Revoking(Struct, forbid_unknown_fields=True):
    """Which tokens an operator refuses from now on: a subject's, or a single one."""

    RULES: ClassVar[dict[str, str]] = {
        "sub": f"must be {SUB_RULE}",
        "jti": f"must be {SUB_RULE}",
    }

    sub: Sub | None = None
    jti: Sub | None = None

    def __post_init__(self) -> None:
        if (self.sub is None) == (self.jti is None):
            raise Problem("invalid_field", "exactly one of sub and jti is required")


class Ping(Struct, tag_field="type", tag="ping", forbid_unknown_fields=True):
    """A client asks for a `pong` that carries `data` back."""

    data: JsonObject | None = None


class Ack(Struct, tag_field="type", tag="ack", forbid_unknown_fields=True):
    """A client has applied everything up to `seq`."""

    seq: Count


class Auth(Struct, tag_field="type", tag="auth", forbid_unknown_fields=True):
    """A client sends a newer token of the same subject."""

    token: str


CLIENT_FRAME_RULES: Final = {
    "ping": {"type": "is ping", "data": OBJECT_RULE},
    "ack": {"type": "is ack", "seq": COUNT_RULE},
    "auth": {"type": "is auth", "token": TEXT_RULE},
}
"""What the fields of a client frame must be, by its type."""

SENDER_FRAME_RULES: Final = {kind: CLIENT_FRAME_RULES[kind] for kind in ("ping", "auth")}
"""The same, of a client that publishes and has nothing to acknowledge."""


def large_integer(value: int) -> bool:
    """Whether JavaScript would round this integer."""
    return not -INTEGER_MAX <= value <= INTEGER_MAX


def readable_id(name: str, value: int | str) -> int | str:
    """The id as every client can read it: an integer JavaScript cannot hold is the string of its digits.

    Raises:
        Problem: it has too many digits.
    """
    if isinstance(value, str) or not large_integer(value):
        return value
    if abs(value) >= 10**ID_DIGITS_MAX:
        raise Problem("invalid_field", f"{name} {REFERENCE_RULE}")
    return str(value)


def fault_of(value: object) -> str | None:
    """Why some client could not read an object that is passed on as it is; `None`: all can.

    Looked at level by level, all values of one together: one by one they would cost more than all else about a body.
    """
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        kinds = set(map(type, level))
        if _holds_infinite(level, kinds):
            return "must hold no number beyond a double (1.7976931348623157e308)"
        if not kinds & {dict, list}:
            return None
        outer, level = level, []
        for one in outer:
            if isinstance(one, dict):
                level += one.values()
            elif isinstance(one, list):
                level += one
    return f"must be at most {DEPTH_MAX} levels deep"


def _holds_infinite(values: list[object], kinds: set[type]) -> bool:
    """Whether a number among the values, which are of these kinds, is beyond every double."""
    if int in kinds:
        integers = [one for one in values if isinstance(one, int)]
        if max(integers) >= _INFINITE or min(integers) <= -_INFINITE:
            return True
    written = [float(one.text) for one in values if isinstance(one, WrittenNumber)] if WrittenNumber in kinds else []
    plain = [one for one in values if isinstance(one, float)] if float in kinds else []
    return not (all(map(math.isfinite, written)) and all(map(math.isfinite, plain)))


def _given(**optional: object) -> dict[str, object]:
    return {name: value for name, value in optional.items() if value is not None}


def _same(old: object, new: object) -> bool:
    """JSON equality: unlike Python's, it tells true from 1. Values that are written alike, as most are, compare at
    once."""
    return old == new and (_written(old) == _written(new) or _alike(old, new))


def _written(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=as_written)


def _alike(old: Any, new: Any) -> bool:
    """Whether two values that Python calls equal are so in JSON."""
    if isinstance(old, dict):
        return all(_alike(value, new[name]) for name, value in old.items())
    if isinstance(old, list):
        return all(map(_alike, old, new))
    return isinstance(old, bool) == isinstance(new, bool)
