"""What an act says, and what every node makes of it: registrations, revocations, and the change that is told. Pure.

An act is committed with a number, without a hole, and repeats what was stored with it. So a node that applies acts in
order knows what the streams hold, and reads nothing more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Final

import msgspec

from storage.changes import (
    Change,
    DiagnosisDeleted,
    DiagnosisRegistered,
    EpochsRenewed,
    EventsEvicted,
    OutboxPurged,
    RevocationsLifted,
    SubjectErased,
    TokensRevoked,
)
from storage.jetstream.entries import epoch_of, registration_of
from storage.records import AuditRow, Diagnosis, Epoch, NewAuditRow, Revocation, Window


class Registered(msgspec.Struct, frozen=True, tag="registered"):
    """A diagnosis is registered so."""

    diagnosis: Diagnosis


class Deleted(msgspec.Struct, frozen=True, tag="deleted"):
    """A diagnosis is not registered any more."""

    diagnosis_id: str


class Revoked(msgspec.Struct, frozen=True, tag="revoked"):
    """Tokens are refused."""

    revocation: Revocation


class Lifted(msgspec.Struct, frozen=True, tag="lifted"):
    """A revocation is gone."""

    number: int
    sub: str | None
    token_id: str | None


Made = Registered | Deleted | Revoked | Lifted
"""What was stored right before an act, in this order."""


class Purged(msgspec.Struct, frozen=True, tag="purged"):
    """An operator has dropped the events of a diagnosis."""

    diagnosis_id: str
    window: Window


class Evicted(msgspec.Struct, frozen=True, tag="evicted"):
    """Events were dropped for their age."""

    windows: dict[str, Window]


class Erased(msgspec.Struct, frozen=True, tag="erased"):
    """A person was removed."""

    digest: str
    stand_in: str


class Renewed(msgspec.Struct, frozen=True, tag="renewed"):
    """Another generation has begun: all epochs are others."""

    generation: str


class Row(msgspec.Struct, frozen=True):
    """The audit row of an act."""

    at: float
    who: str
    what: str
    target: str
    before: str | None
    after: str | None
    diagnosis_id: str | None

    def numbered(self, number: int) -> AuditRow:
        """The row as it is shown."""
        return AuditRow(number, self.at, self.who, self.what, self.target, self.before, self.after, self.diagnosis_id)


class ActSaid(msgspec.Struct, frozen=True):
    """An act as it is stored."""

    id: str
    """Tells whoever does not know what became of the act."""
    at: float
    row: Row | None = None
    made: list[Made] = []
    also: Purged | Evicted | Erased | Renewed | None = None
    """What it does beside what it has made."""
    is_silent: bool = False
    """Nothing is told of what it has made."""
    is_stripped: bool = False
    """An erasure has removed what it made: a node that has not applied it yet reads everything anew."""


def registered(diagnosis: Diagnosis) -> Registered:
    """As it is stored."""
    return Registered(replace(diagnosis, epoch=Epoch(registration_of(diagnosis.epoch))))


def row_at(at: float, row: NewAuditRow) -> Row:
    """The row of an act that is committed now."""
    return Row(at, **asdict(row))


def encoded(value: msgspec.Struct) -> bytes:
    """As it is stored."""
    return msgspec.json.encode(value)


def decoded(data: bytes) -> ActSaid:
    """As it was stored.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: it is not what this version writes.
    """
    return msgspec.json.decode(data, type=ActSaid)


NOT_THERE: Final = 0
"""The position of what is not stored."""


class Known:
    """What a node has in memory of what acts have made, and up to which act."""

    def __init__(self) -> None:
        self.applied = 0
        """The number of the last act that is in here."""
        self.number_pos = NOT_THERE
        """Where that number is stored."""
        self.generation = ""
        """As in `entries.epoch_of`."""
        self._registered: dict[str, Diagnosis] = {}
        self._ids: list[str] = []
        self._poses: dict[str, int] = {}
        """Where the registration of each diagnosis lies, or that it was deleted."""
        self._revocations: dict[int, Revocation] = {}
        self._revocation_by: dict[tuple[str | None, str | None], Revocation] = {}
        """By subject and token."""
        self._revocation_poses: dict[tuple[str | None, str | None], int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def diagnosis(self, diagnosis_id: str) -> Diagnosis | None:
        """A registered diagnosis."""
        return self._registered.get(diagnosis_id)

    def pos_of(self, diagnosis_id: str) -> int:
        """Where its registration lies, or that it was deleted."""
        return self._poses.get(diagnosis_id, NOT_THERE)

    def page(self, owner: str | None, after: str) -> Iterator[Diagnosis]:
        """Registered diagnoses by id."""
        for diagnosis_id in self._ids[bisect_right(self._ids, after) if after else 0 :]:
            diagnosis = self._registered[diagnosis_id]
            if owner in (None, diagnosis.owner):
                yield diagnosis

    def revocations(self, after: int = 0) -> Sequence[Revocation]:
        """Those with a higher number, lowest first."""
        return [self._revocations[number] for number in sorted(self._revocations) if number > after]

    def revocation(self, number: int) -> Revocation | None:
        """The one with this number."""
        return self._revocations.get(number)

    def revocation_of(self, sub: str | None, token_id: str | None) -> tuple[Revocation | None, int]:
        """The revocation of a subject or a token, and where it lies, or that it was lifted."""
        return self._revocation_by.get((sub, token_id)), self._revocation_poses.get((sub, token_id), NOT_THERE)

    def take(self, made: Made, pos: int) -> None:
        """Know what lies at this position, unless something newer is known."""
        match made:
            case Registered(diagnosis=diagnosis):
                if self._is_newer(diagnosis.diagnosis_id, pos):
                    if diagnosis.diagnosis_id not in self._registered:
                        insort(self._ids, diagnosis.diagnosis_id)
                    self._registered[diagnosis.diagnosis_id] = self._shown(diagnosis)
            case Deleted(diagnosis_id=diagnosis_id):
                if self._is_newer(diagnosis_id, pos) and self._registered.pop(diagnosis_id, None) is not None:
                    del self._ids[bisect_left(self._ids, diagnosis_id)]
            case Revoked(revocation=revocation):
                if self._is_newer_revocation(revocation.sub, revocation.token_id, pos):
                    self._revocations[revocation.number] = revocation
                    self._revocation_by[revocation.sub, revocation.token_id] = revocation
            case Lifted(sub=sub, token_id=token_id):
                self._is_newer_revocation(sub, token_id, pos)

    def _shown(self, diagnosis: Diagnosis) -> Diagnosis:
        """With the epoch of this generation."""
        return replace(diagnosis, epoch=Epoch(epoch_of(registration_of(diagnosis.epoch), self.generation)))

    def renew(self, generation: str) -> None:
        """Another generation has begun."""
        self.generation = generation
        self._registered = {one: self._shown(diagnosis) for one, diagnosis in self._registered.items()}

    def _is_newer(self, diagnosis_id: str, pos: int) -> bool:
        if pos <= self._poses.get(diagnosis_id, NOT_THERE):
            return False
        self._poses[diagnosis_id] = pos
        return True

    def _is_newer_revocation(self, sub: str | None, token_id: str | None, pos: int) -> bool:
        if pos <= self._revocation_poses.get((sub, token_id), NOT_THERE):
            return False
        self._revocation_poses[sub, token_id] = pos
        if (before := self._revocation_by.pop((sub, token_id), None)) is not None:
            del self._revocations[before.number]
        return True

    def apply(self, number: int, act: ActSaid, pos: int, next_change: int) -> Change | None:
        """Know what the next act has made; what is to be told of it, under this number.

        Args:
            pos: where the act lies; what it made lies right before it.
        """
        assert number == self.applied + 1, "acts are applied in order, each once"
        change = None if act.is_silent else self._change(act, next_change)
        for at, made in enumerate(act.made, start=pos - len(act.made)):
            self.take(made, at)
        if isinstance(act.also, Renewed):
            self.renew(act.also.generation)
        self.applied, self.number_pos = number, pos + 1
        return change

    def _change(self, act: ActSaid, number: int) -> Change | None:
        """What an act tells; to be asked before it is applied."""
        match act.also:
            case Purged(diagnosis_id=diagnosis_id, window=window):
                return OutboxPurged(number, diagnosis_id, window)
            case Evicted(windows=windows):
                return EventsEvicted(number, windows)
            case Erased(digest=digest, stand_in=stand_in):
                return SubjectErased(number, digest, stand_in)
            case Renewed():
                return EpochsRenewed(number, None)
        match act.made:
            case [Registered(diagnosis=diagnosis)]:
                return DiagnosisRegistered(number, self._shown(diagnosis))
            case [Deleted(diagnosis_id=diagnosis_id)]:
                deleted = self._registered.get(diagnosis_id)
                return None if deleted is None else DiagnosisDeleted(number, deleted)
            case [Revoked(revocation=revocation)]:
                return TokensRevoked(number, revocation)
            case [Lifted(), *_]:
                gone = [self._revocations.get(one.number) for one in act.made if isinstance(one, Lifted)]
                return RevocationsLifted(number, tuple(one for one in gone if one is not None))
        return None


def made_of(data: bytes) -> Made:
    """What the message of a registration or a revocation says."""
    made: Made = msgspec.json.decode(data, type=Made)
    return made
