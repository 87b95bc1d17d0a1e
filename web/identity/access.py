"""Who is asking, and may they: tokens out of requests, rights against diagnoses.

The one place where a missing right is told apart from a missing diagnosis, and to whom.

Tokens end and rights are taken away while a request travels. The act is the hand-over to the store, which commits in
order. A judgement here holds until the next checkpoint, so it holds for everything handed over before that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Protocol, TypeVar

from actors.messages import Judge
from storage.clock import Clock
from storage.errors import NoSuchDiagnosis
from storage.records import Diagnosis
from storage.store import DiagnosisStore
from web.contract.errors import (
    ACCESS_DENIED,
    NOT_FOUND,
    ConnectionRefused,
    Problem,
    Refusal,
    retry_after,
)
from web.contract.exchange import Request
from web.contract.origins import normal_origin
from web.contract.principals import ANONYMOUS, Principal
from web.identity import rights
from web.identity.addresses import Proxy, address_of, is_own_origin
from web.identity.bearer import token_of
from web.identity.limits import Limits, TooMany
from web.identity.refusals import RefusedTokens, forbidden, problem_of_token, refusal_of_token
from web.identity.tokens import TokenError, Verifier

Told = TypeVar("Told")


class Rules(Protocol):
    """The settings that decide who may ask (docs/SETTINGS.md)."""

    @property
    def allow_anonymous(self) -> bool: ...

    @property
    def query_tokens(self) -> bool: ...

    @property
    def allowed_origins(self) -> Collection[str]: ...

    @property
    def public_url(self) -> str | None: ...

    @property
    def trusted_proxies(self) -> Sequence[Proxy]: ...


class Access:
    """Judges whoever asks. One per server."""

    def __init__(
        self,
        rules: Rules,
        verifier: Verifier,
        limits: Limits,
        store: DiagnosisStore,
        clock: Clock,
        keys_retry_seconds: Callable[[], float],
    ) -> None:
        """Judge by these.

        Args:
            store: knows whose a diagnosis is.
            keys_retry_seconds: when a key that is missing may be there, in seconds from now.
        """
        self.rules = rules
        self.limits = limits
        self.verifier = verifier
        self.refused_tokens = RefusedTokens()
        self._store = store
        self._clock = clock
        self._keys_retry_seconds = keys_retry_seconds

    # Where a request comes from

    def address_of(self, asked: Request) -> str:
        """The address of the client, behind proxies that are trusted."""
        return address_of(asked, self.rules.trusted_proxies)

    def origin_allowed(self, asked: Request) -> bool:
        """Whether a request comes from a page that may talk to this server, or from no page at all."""
        origin = asked.headers.get("Origin")
        if origin is None or normal_origin(origin) in self.rules.allowed_origins:
            return True
        return is_own_origin(origin, asked, self.rules.public_url, self.rules.trusted_proxies)

    def asked_by_a_foreign_page(self, asked: Request) -> bool:
        """Whether a page that may not talk to this server makes a browser send a request.

        What a page only embeds (an image, a script) is sent without `Origin`, but browsers say where they come from
        (Fetch Metadata).
        """
        if "Origin" in asked.headers:
            return not self.origin_allowed(asked)
        return asked.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")

    # Who sent it

    def verified(self, token: str) -> Principal:
        """Whose token this is. If it is not accepted, the log has the reason. Raises as `Verifier.verify`."""
        try:
            return self.verifier.verify(token, self._clock.wall())
        except TokenError as error:
            self.refused_tokens.say(error)
            raise

    def token_of(self, asked: Request) -> str | None:
        """The token of a request. Returns as `web.identity.bearer.token_of`."""
        return token_of(asked, query_tokens=self.rules.query_tokens)

    def authenticate(self, asked: Request, *, anonymous_allowed: bool) -> Principal:
        """Who sent a request.

        Args:
            anonymous_allowed: a request without a token is not refused.

        Raises:
            Problem: 401, the token is missing, invalid or expired; 429, its user asks too often.
        """
        token = self.token_of(asked)
        if token is None:
            if anonymous_allowed:
                return ANONYMOUS
            self.refused_tokens.say(None, in_query=asked.query.get("token") is not None)
            raise Problem("unauthenticated", "a bearer token is required", {"WWW-Authenticate": "Bearer"})
        try:
            who = self.verified(token)
            self.limits.request_of(who.sub)
        except TokenError as error:
            raise self.problem_of_token(error) from None
        except TooMany as excess:
            raise Problem("rate_limited", str(excess), retry_after(excess.retry_after_seconds)) from None
        return who

    def problem_of_token(self, error: TokenError) -> Problem:
        """The answer to a request whose token is not accepted."""
        return problem_of_token(error, self._keys_retry_seconds())

    # What somebody may do, at the head of a request

    async def diagnosis_for(
        self, who: Principal, diagnosis_id: str, may: Callable[[Principal, Diagnosis], bool]
    ) -> Diagnosis:
        """The diagnosis, if `who` may do this with it.

        Raises:
            Problem: 403, or 404 for those who may know.
        """
        if (known := self._store.known(diagnosis_id)) is not None and may(who, known):
            return known
        try:
            diagnosis = await allowed_now(self._store, diagnosis_id, partial(may, who))
        except NoSuchDiagnosis:
            raise self.absent(who) from None
        if diagnosis is None:
            raise forbidden()
        return diagnosis

    async def diagnosis_to_follow(self, who: Principal, diagnosis_id: str) -> Diagnosis:
        """The diagnosis, if `who` may follow it. Raises as `diagnosis_for`."""
        return await self.diagnosis_for(who, diagnosis_id, self._may_subscribe)

    async def check_may_broadcast_something(self, who: Principal) -> None:
        """Let only those pass who have a scope to broadcast, or own a diagnosis; before much is read or decoded.

        Raises:
            Problem: 403.
        """
        if not rights.may_broadcast_anywhere(who) and not await self._store.diagnoses(owner=who.sub, limit=1):
            raise Problem("forbidden", "you may not broadcast to any diagnosis")

    def count_event(self, who: Principal) -> None:
        """Count an event that somebody publishes, whatever becomes of it.

        Raises:
            Problem: 429, it is one too many.
        """
        try:
            self.limits.event_of(who.sub)
        except TooMany as excess:
            detail = f"{excess}; nothing was stored"
            raise Problem("rate_limited", detail, retry_after(excess.retry_after_seconds)) from None

    # In the moment of the act

    def judge_token(self, who: Principal) -> None:
        """See that a token is still accepted, in the same stretch as the act it allows.

        Raises:
            Problem: 401 as `authenticate`.
        """
        if (refused := self.refusal_of_sender(who)) is not None:
            self.refused_tokens.say(refused)
            raise refused

    def refusal_of_sender(self, who: Principal) -> Problem | None:
        """The answer to somebody whose token is not accepted any more; `None`: it is."""
        try:
            self.verifier.check(who, self._clock.wall())
        except TokenError as error:
            return self.problem_of_token(error)
        return None

    def judge_of(self, who: Principal, may: Callable[[Principal, Diagnosis], bool]) -> Judge:
        """What an actor asks in the stretch in which it does what `who` wants: answers as the head of the request."""

        def judge(diagnosis: Diagnosis | None) -> Problem | None:
            if (refused := self.refusal_of_sender(who)) is not None:
                return refused
            if diagnosis is None:
                return self.absent(who)
            return None if may(who, diagnosis) else forbidden()

        return judge

    async def told(self, who: Principal, telling: Awaitable[Told]) -> Told:
        """What an actor answers somebody; a diagnosis that was deleted meanwhile is answered as at the head.

        Raises:
            Problem: 403, or 404 for those who may know; or what the message's judge answered.
            ActorError, StorageError: as `telling`.
        """
        try:
            return await telling
        except NoSuchDiagnosis:
            raise self.absent(who) from None
        except Problem as refused:
            if refused.status == 401:
                self.refused_tokens.say(refused)
            raise

    # Following

    def refusal_of_follower(self, who: Principal, diagnosis: Diagnosis | None) -> ConnectionRefused | None:
        """Why somebody may not follow a diagnosis registered so (`None`: not at all); `None`: may follow."""
        if diagnosis is None:
            return ConnectionRefused(self._absent_to_follower(who))
        if not self._may_subscribe(who, diagnosis):
            return ConnectionRefused(ACCESS_DENIED)
        try:
            self.verifier.check(who, self._clock.wall())
        except TokenError as error:
            return ConnectionRefused(refusal_of_token(error))
        return None

    async def check_may_follow(self, who: Principal, diagnosis_id: str) -> None:
        """Let only those pass who may follow this diagnosis, and whose token is still accepted; no checkpoint since.

        Raises:
            ConnectionRefused: `access denied`, or `diagnosis not found` for those who may know; or as
                `refusal_of_token`.
        """
        try:
            diagnosis = await allowed_now(self._store, diagnosis_id, partial(self._may_subscribe, who))
        except NoSuchDiagnosis:
            raise ConnectionRefused(self._absent_to_follower(who)) from None
        if diagnosis is None:
            raise ConnectionRefused(ACCESS_DENIED)
        try:
            self.verifier.check(who, self._clock.wall())
        except TokenError as error:
            self.refused_tokens.say(error)
            raise ConnectionRefused(refusal_of_token(error)) from None

    async def may_follow(self, who: Principal, diagnosis_id: str) -> bool:
        """Whether `check_may_follow` lets somebody pass."""
        try:
            await self.check_may_follow(who, diagnosis_id)
        except ConnectionRefused:
            return False
        return True

    def _may_subscribe(self, who: Principal, diagnosis: Diagnosis) -> bool:
        return rights.may_subscribe(who, diagnosis, anonymous_allowed=self.rules.allow_anonymous)

    def _absent_to_follower(self, who: Principal) -> Refusal:
        """For whoever wants to follow a diagnosis that is not registered."""
        allowed = self.rules.allow_anonymous
        return NOT_FOUND if rights.may_know_absence_connecting(who, anonymous_allowed=allowed) else ACCESS_DENIED

    def absent(self, who: Principal) -> Problem:
        """For a diagnosis that is not registered: 404 for those who may know that, else as for somebody else's."""
        if rights.may_know_absence(who, anonymous_allowed=self.rules.allow_anonymous):
            return Problem("not_found", "this diagnosis is not registered")
        return forbidden()


def require(who: Principal, right: rights.Right) -> None:
    """Let only those pass whose scopes give them a right.

    Raises:
        Problem: 403.
    """
    if not who.has(*right.scopes):
        raise Problem("forbidden", f"this needs the scope {' or '.join(right.scopes)}")


async def allowed_now(store: DiagnosisStore, diagnosis_id: str, may: Callable[[Diagnosis], bool]) -> Diagnosis | None:
    """The diagnosis as it is registered now, no checkpoint since; `None`: `may` does not allow it.

    A refusal takes one look-up of the database whether the diagnosis is in memory, is stored or does not exist: the
    time it takes does not tell which.

    Raises:
        NoSuchDiagnosis: it is not registered.
    """
    while (diagnosis := store.known(diagnosis_id)) is None or not may(diagnosis):
        found = await store.look_up(diagnosis_id)
        if found is diagnosis or not may(found):
            return None
    return diagnosis
