"""What can go wrong in a store, by who is at fault and what the caller can do next.

StorageError
+-- Refused              the caller's: this operation can never succeed as given
|   +-- NoSuchDiagnosis      not registered, or deleted
|   `-- KeyReused            the idempotency key belongs to another event
+-- Busy                 nobody's: certainly not stored, try again later (queue or disk full, locked)
+-- Failed               the outcome is unknown: retry with the same idempotency key
+-- StoreBroken          the disk's: the process must end (I/O error, corruption, file moved away)
`-- CannotOpen           the operator's: the message says what to do
    +-- InUse                another server holds this file
    +-- NotOurs              not a database of this program
    +-- NewerVersion         written by a newer version of this program
    `-- Damaged              the file fails its integrity check
"""

from __future__ import annotations


class StorageError(Exception):
    """Any failure this room knows about."""


class Refused(StorageError):
    """The operation can never succeed as given."""


class NoSuchDiagnosis(Refused):
    """The diagnosis is not registered, or was deleted."""


class KeyReused(Refused):
    """The idempotency key was used within its lifetime for another event of this diagnosis."""


class Busy(StorageError):
    """Certainly not stored; trying again later can succeed."""


class Failed(StorageError):
    """The outcome is unknown; repeating with the same idempotency key resolves it."""


class StoreBroken(StorageError):
    """The store cannot be trusted any more: the process must end, loudly."""


class CannotOpen(StorageError):
    """The database cannot be opened; the message names the path and what to do."""


class InUse(CannotOpen):
    """Another process holds the database."""


class NotOurs(CannotOpen):
    """The file is not a database of this program."""


class NewerVersion(CannotOpen):
    """The file was written by a newer version of this program."""


class Damaged(CannotOpen):
    """The file fails its integrity check."""
