"""What a store tells of: acts that were committed, as values, in the order of their commits. Pure.

Whoever listens (`Hears`) carries out what follows from an act: connections end, copies in memory are brought up to
date. A change can travel to another process, so it holds values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from storage.news import News
from storage.records import Diagnosis, Revocation, Window

DIGEST_DIGITS: Final = 26
"""Hexadecimal digits of the digest of a name. Reason: 104 bits tell any two names apart."""


@dataclass(frozen=True, slots=True)
class DiagnosisRegistered:
    """A diagnosis was registered, or its owner and viewers were replaced."""

    number: int
    diagnosis: Diagnosis
    """As it is registered now."""


@dataclass(frozen=True, slots=True)
class DiagnosisDeleted:
    """A diagnosis was deleted with its events, cursors and keys."""

    number: int
    diagnosis: Diagnosis
    """What it was."""


@dataclass(frozen=True, slots=True)
class OutboxPurged:
    """The retained events of a diagnosis were dropped by an operator."""

    number: int
    diagnosis_id: str
    window: Window
    """What it retains now."""


@dataclass(frozen=True, slots=True)
class EventsEvicted:
    """Some diagnoses lost events for their age."""

    number: int
    windows: Mapping[str, Window]
    """What each of them retains now, by id."""


@dataclass(frozen=True, slots=True)
class TokensRevoked:
    """Tokens are refused from now on."""

    number: int
    revocation: Revocation


@dataclass(frozen=True, slots=True)
class RevocationsLifted:
    """Revocations are gone: an operator lifted one, or some have outlived every token."""

    number: int
    revocations: tuple[Revocation, ...]


@dataclass(frozen=True, slots=True)
class SubjectErased:
    """A person was removed. The change does not name it, so that no copy of the change keeps the name."""

    number: int
    digest: str
    """`digest_of` the name."""
    stand_in: str
    """What takes the place of the name in rows that must stay."""


@dataclass(frozen=True, slots=True)
class EpochsRenewed:
    """The numbering of diagnoses began anew, though nobody registered them again: numbers of the former epoch are void.

    A restore is why, or a damage that has cost numbers.
    """

    number: int
    diagnosis_id: str | None
    """`None`: of every diagnosis."""


Change = (
    DiagnosisRegistered
    | DiagnosisDeleted
    | OutboxPurged
    | EventsEvicted
    | TokensRevoked
    | RevocationsLifted
    | SubjectErased
    | EpochsRenewed
)
"""An act that was committed. Each has the number of the one before it, plus 1."""


class Hears(Protocol):
    """Listens to a store."""

    def changed(self, change: Change) -> None:
        """An act was committed, whoever asked for it.

        Called in the order of the commits, with none left out, and before whoever asked is answered. Also called if the
        caller was cancelled or gave up waiting meanwhile. What the store remembers (`DiagnosisStore.known`) shows the
        change already, and there is no checkpoint in between. It must not raise or wait.
        """

    def grew(self, diagnosis_id: str, news: News) -> None:
        """Another process has stored something in the log of a followed diagnosis. It must not raise or wait.

        News may be late or missing: `EventStore.read_after` is the truth. A store itself looks whether something was
        missed, within 60 s, and says so.
        """

    def missed(self) -> None:
        """Acts may have been committed of which nobody has told: whatever follows from acts is to be looked at anew.

        Only a store in another process misses any, if that process was gone. It must not raise or wait.
        """


class Told:
    """The changes of one store: numbered, and told to whoever listens."""

    def __init__(self) -> None:
        self._tell: Callable[[Change], None] | None = None
        self._count = 0

    def begin(self, tell: Callable[[Change], None]) -> None:
        """Call `tell` with every change from now on."""
        assert self._tell is None, "a store tells one listener"
        self._tell = tell

    @property
    def next(self) -> int:
        """The number of the next change."""
        return self._count + 1

    def add(self, change: Change) -> None:
        """A change was committed."""
        assert change.number == self.next, "changes are told in order, each once"
        self._count = change.number
        if self._tell is not None:
            self._tell(change)


def digest_of(name: str) -> str:
    """Tells a name from others without being it."""
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]
