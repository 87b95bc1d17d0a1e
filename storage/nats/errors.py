"""What can go wrong between us and NATS, by what is known of the outcome.

NatsError
+-- Away              certainly not done: there is no connection now, or it takes no more
+-- NoResponders      certainly not done: nobody listens to this subject, e.g. while a leader is elected
+-- TooLarge          certainly not done: the server takes no message of this size
+-- Denied            certainly not done: our user may not; the message names the subject
+-- JetStreamError    certainly not done: JetStream has refused; it says why
+-- Unanswered        the outcome is unknown: no answer in time, or the connection ended before
+-- Garbled           the server says what is not the protocol of NATS: its connection ends
`-- CannotConnect     the operator's: the servers do not take us; the message says why
    `-- BadCredentials    what should name our user does not
"""

from __future__ import annotations


class NatsError(Exception):
    """Any failure this client knows about."""


class Away(NatsError):
    """Nothing was sent."""


class NoResponders(NatsError):
    """Nobody listens to the subject."""


class TooLarge(NatsError):
    """A message is larger than the server takes."""


class Denied(NatsError):
    """Our user may not publish or subscribe so."""


class JetStreamError(NatsError):
    """JetStream has refused."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        """As of HTTP."""
        self.err_code = err_code
        """Which of JetStream's errors it is; 0: it does not say."""


class Unanswered(NatsError):
    """It may be done, or not."""


class Garbled(NatsError):
    """What came cannot be read."""


class CannotConnect(NatsError):
    """The servers do not take us."""


class BadCredentials(CannotConnect):
    """A seed or a file of credentials that is none. The message shows nothing of it."""
