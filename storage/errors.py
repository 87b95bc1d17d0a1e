"""What can go wrong in a store, by who is at fault and what the caller can do next.

StorageError
+-- Refused              the caller's: this operation can never succeed as given
|   +-- NoSuchDiagnosis      not registered, or deleted
|   +-- KeyReused            the idempotency key belongs to another event
|   +-- Unstorable           a text or number no database row can hold
|   +-- NoSuchRevocation     never made, lifted, or expired
|   +-- NotDamaged           there is nothing to be dropped
|   `-- NotSupported         this engine does not do that; the message says what does
+-- Busy                 nobody's: certainly not stored, try again later (queue or disk full, locked)
|   `-- KeysExhausted        the database holds as many idempotency keys as it may
+-- Failed               the outcome is unknown: retry with the same idempotency key
+-- OutboxDamaged        the disk's, of one diagnosis: certainly not done; others go on, an operator must act
+-- CannotCopy           the target's: a copy could not be made; the database is as it was
+-- StoreBroken          the disk's: the process must end (I/O error, corruption, file moved away)
`-- CannotOpen           the operator's: the message says what to do
    +-- Untrusted            somebody else can replace what is in the data directory
    +-- InUse                another server holds this file
    +-- NotOurs              not a database of this program
    |   `-- NotADatabase         no database at all, or its header is overwritten
    +-- NewerVersion         written by a newer version of this program
    +-- ForeignLog           the log beside the database is not its own, and it needs none
    +-- Damaged              the file fails its integrity check, or a part of it is missing
    `-- NotThere             nobody's: the servers of the engine do not answer; starting again later can succeed
"""

from __future__ import annotations

from storage.damage import Damage, problem


class StorageError(Exception):
    """Any failure this room knows about."""


class Refused(StorageError):
    """The operation can never succeed as given."""


class NoSuchDiagnosis(Refused):
    """The diagnosis is not registered, or was deleted."""


class KeyReused(Refused):
    """The idempotency key was used within its lifetime for another event of this diagnosis."""


class Unstorable(Refused):
    """A text with lone surrogates, or an integer over 64 bits."""


class NoSuchRevocation(Refused):
    """There is no revocation with this number (any more)."""


class NotDamaged(Refused):
    """The events of the diagnosis are what was stored."""


class NotSupported(Refused):
    """This engine does not do that; the message says what does, if anything."""


class Busy(StorageError):
    """Certainly not stored; trying again later can succeed."""


class KeysExhausted(Busy):
    """There is no room for a key that is not stored yet; keys expire after 24 hours. Without a key it is stored."""


class Failed(StorageError):
    """The outcome is unknown; repeating with the same idempotency key resolves it."""


class OutboxDamaged(StorageError):
    """The events or the numbers of one diagnosis are not what was stored; nothing of it is read or appended."""

    def __init__(self, diagnosis_id: str, damage: Damage) -> None:
        super().__init__(problem(diagnosis_id, damage))
        self.diagnosis_id = diagnosis_id
        self.damage = damage


class CannotCopy(StorageError):
    """A backup could not be written, or not be read; the database is as it was."""


class StoreBroken(StorageError):
    """The store cannot be trusted any more: the process must end, loudly."""


class CannotOpen(StorageError):
    """The database cannot be opened; the message names the path and what to do."""


class Untrusted(CannotOpen):
    """Somebody else can put files in the place of ours, or has; the message gives the command that helps."""


class InUse(CannotOpen):
    """Another process holds the database."""


class NotOurs(CannotOpen):
    """The file is not a database of this program."""


class NotADatabase(NotOurs):
    """The file is no database, or its header is overwritten."""


class NewerVersion(CannotOpen):
    """The file was written by a newer version of this program."""


class ForeignLog(CannotOpen):
    """A log of another time or database lies beside one that is whole without it."""


class Damaged(CannotOpen):
    """The file fails its integrity check, or a part of it is missing."""


class NotThere(CannotOpen):
    """The servers that hold everything do not answer; they may later."""


def first_of(error: BaseException) -> BaseException:
    """The error itself, or the first one in the groups that nurseries raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
