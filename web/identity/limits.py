"""What one user, one diagnosis or one address may take up: connections, connects and requests. Pure, no I/O.

Every limit is off unless the operator sets it; then its table costs a few dozen bytes a name in use.
Anonymous subscribers are no user: only their address and their diagnosis are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from web.identity.rates import Rate


class TooMany(Exception):
    """A limit is reached; the text names it."""

    def __init__(self, what: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds


class Most(Protocol):
    """The settings that limit (docs/SETTINGS.md); `None`: no limit."""

    @property
    def user_requests_per_second(self) -> float | None: ...

    @property
    def address_requests_per_second(self) -> float | None: ...

    @property
    def user_events_per_second(self) -> float | None: ...

    @property
    def user_connects_per_second(self) -> float | None: ...

    @property
    def address_connects_per_second(self) -> float | None: ...

    @property
    def user_connections_max(self) -> int | None: ...

    @property
    def diagnosis_connections_max(self) -> int | None: ...

    @property
    def address_connections_max(self) -> int | None: ...


class Limits:
    """The limits of one server, and what is taken up now."""

    def __init__(self, most: Most, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._user_requests = _rate(most.user_requests_per_second)
        self._address_requests = _rate(most.address_requests_per_second)
        self._user_events = _rate(most.user_events_per_second)
        self._user_connects = _rate(most.user_connects_per_second)
        self._address_connects = _rate(most.address_connects_per_second)
        self._connections = (
            _Connections("user", most.user_connections_max),
            _Connections("diagnosis", most.diagnosis_connections_max),
            _Connections("address", most.address_connections_max),
        )
        self._limits_connections = any(table.most is not None for table in self._connections)

    def request_from(self, address: Callable[[], str]) -> None:
        """Count a request of this address, which is found out only if there is a limit. Raises `TooMany`."""
        if self._address_requests is not None:
            self._take(self._address_requests, address(), "requests of this address")

    def request_of(self, sub: str | None) -> None:
        """Count a request of this user. Raises `TooMany`."""
        self._take(self._user_requests, sub, "requests of this user")

    def event_of(self, sub: str | None) -> None:
        """Count an event that this user publishes, whatever becomes of it. Raises `TooMany`."""
        self._take(self._user_events, sub, "events of this user (setting user_events_per_second)")

    def connect_from(self, address: Callable[[], str]) -> None:
        """Count an attempt to connect from this address, as `request_from` does. Raises `TooMany`."""
        if self._address_connects is not None:
            self._take(self._address_connects, address(), "connects of this address")

    def connect_of(self, sub: str | None) -> None:
        """Count an attempt to connect of this user. Raises `TooMany`."""
        self._take(self._user_connects, sub, "connects of this user")

    def hold(
        self, sub: str | None, diagnosis_id: str | None, address: Callable[[], str], *, replaces: bool = False
    ) -> Callable[[], None] | None:
        """Count a connection until what is returned is called; `None`: nothing is counted.

        Args:
            sub: `None`: nobody's.
            diagnosis_id: the one it follows; `None`: it follows none.
            replaces: it takes over from one that is counted still, so that one more is allowed.

        Raises:
            TooMany: there are as many as there may be; this one is not counted.
        """
        if not self._limits_connections:
            return None
        names: tuple[Callable[[], str | None], ...] = (lambda: sub, lambda: diagnosis_id, address)
        held = [
            (table, name)
            for table, of_table in zip(self._connections, names, strict=True)
            if table.most is not None and (name := of_table()) is not None
        ]
        for table, name in held:
            table.check(name, replaces=replaces)
        for table, name in held:
            table.count[name] += 1
        return (lambda: _release(held)) if held else None

    def _take(self, rate: Rate | None, name: str | None, what: str) -> None:
        if rate is not None and name is not None and (wait := rate.take(name, self._monotonic())):
            raise TooMany(f"too many {what}", wait)


class _Connections:
    """How many connections each user, diagnosis or address has."""

    def __init__(self, whose: str, most: int | None) -> None:
        self.whose = whose
        self.most = most
        self.count: Counter[str] = Counter()

    def check(self, name: str, *, replaces: bool) -> None:
        if self.most is not None and self.count[name] >= self.most + replaces:
            raise TooMany(f"at most {self.most} connections of one {self.whose}")


def _release(held: list[tuple[_Connections, str]]) -> None:
    for table, name in held:
        table.count[name] -= 1
        if not table.count[name]:
            del table.count[name]


def _rate(per_second: float | None) -> Rate | None:
    return None if per_second is None else Rate(per_second)
