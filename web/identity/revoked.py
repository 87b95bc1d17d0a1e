"""What operators have revoked, in memory: asked at every use of a token. Pure; stored by `storage.store`."""

from __future__ import annotations

from collections.abc import Iterable

from storage.records import Revocation


class Revoked:
    """Revoked subjects and tokens. A copy of the stored revocations, loaded at start; each change is told to it."""

    def __init__(self, revocations: Iterable[Revocation] = ()) -> None:
        self._subjects: dict[str, Revocation] = {}
        self._tokens: dict[str, Revocation] = {}
        self.replace(revocations)

    def replace(self, revocations: Iterable[Revocation]) -> None:
        """Take these for all that is revoked."""
        self._subjects.clear()
        self._tokens.clear()
        for one in revocations:
            self.add(one)

    def add(self, revocation: Revocation) -> None:
        """Refuse these tokens from now on."""
        if revocation.sub is not None:
            self._subjects[revocation.sub] = revocation
        elif revocation.token_id is not None:
            self._tokens[revocation.token_id] = revocation

    def lift(self, revocation: Revocation) -> None:
        """Forget a revocation, unless a later one has taken its place."""
        for table, name in ((self._subjects, revocation.sub), (self._tokens, revocation.token_id)):
            if name is not None and (found := table.get(name)) is not None and found.number <= revocation.number:
                del table[name]

    def covering(self, sub: str | None, token_id: str | None, issued_at: float | None) -> Revocation | None:
        """The revocation of such a token; `None`: it is not revoked.

        The clock of whoever issued it may be ahead of ours by the leeway: until then a token counts as older than the
        revocation of its subject, and so does one that does not say when it was issued.
        """
        if token_id is not None and (revocation := self._tokens.get(token_id)) is not None:
            return revocation
        if sub is None or (revocation := self._subjects.get(sub)) is None:
            return None
        return revocation if issued_at is None or issued_at <= revocation.covers_until else None
