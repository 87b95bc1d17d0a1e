"""Keys from a JWKS URL: fetched on a thread, kept while the source is down, fetched again for an unknown key.

The rest of the server stays synchronous: a request whose token names an unknown key waits here, in front
of its route (`web.gate`), and is then judged like any other.
"""

from __future__ import annotations

import hashlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Final
from urllib.parse import urlsplit

import trio

from storage.clock import Clock
from web import wire
from web.keys import KeyUnusable, keys_of_jwks
from web.tokens import Verifier

DOCUMENT_BYTES_MAX: Final = 256 * 1024
"""Largest JWKS document. Beyond: refused, the last good set is kept."""

READ_SECONDS_MAX: Final = 5.0
"""Longest silence of the source."""

FETCH_SECONDS_MAX: Final = 10.0
"""Longest time a fetch may take, and a request may wait for one."""

ASKED_AGAIN_SECONDS: Final = 60.0
"""Least time between two fetches, whoever asks. Reason: tokens that name keys nobody has cost the source nothing."""

FIRST_AGAIN_SECONDS: Final = 5.0
"""The same while no set has been fetched yet."""

Fetch = Callable[[str], bytes]
"""Gets the document at a URL; blocks.

Raises:
    OSError, HTTPException, ValueError: it could not.
"""

logger = logging.getLogger("avicenna.keys")


class RemoteKeys:
    """The keys of one JWKS URL, handed to the verifier as they change."""

    def __init__(
        self, url: str, verifier: Verifier, clock: Clock, *, refresh_seconds: float, fetch: Fetch | None = None
    ) -> None:
        """Keys that are fetched by `fetch` and `run`.

        Args:
            refresh_seconds: time between two fetches nobody asks for.
            fetch: gets the document; `None`: over HTTP.
        """
        self._url = url
        self._verifier = verifier
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._fetch = fetch_document if fetch is None else fetch
        self._limiter = trio.CapacityLimiter(1)
        self._digest = b""
        self._tried_at: float | None = None
        self._asked = trio.Event()
        self._fetched = trio.Event()

    async def run(self) -> None:
        """Fetch again and again until cancelled, after a first `fetch`."""
        while True:
            await trio.sleep(self._pause_seconds)
            with trio.move_on_after(self._refresh_seconds - self._pause_seconds if self._digest else 0):
                await self._asked.wait()
            await self.fetch()

    async def fetch(self) -> None:
        """Try once, and have those go on who wait for it."""
        await self._try_to_fetch()
        self._tried_at = self._clock.monotonic()
        self._asked = trio.Event()
        self._fetched.set()
        self._fetched = trio.Event()

    async def ready_for(self, token: str) -> None:
        """Wait for the keys to be fetched if this token names an unknown one and a fetch is due."""
        if not self._verifier.lacks_key_for(token):
            return
        if self._tried_at is not None and self._clock.monotonic() - self._tried_at < self._pause_seconds:
            return
        fetched = self._fetched
        self._asked.set()
        with trio.move_on_after(FETCH_SECONDS_MAX):
            await fetched.wait()

    @property
    def _pause_seconds(self) -> float:
        return ASKED_AGAIN_SECONDS if self._digest else FIRST_AGAIN_SECONDS

    async def _try_to_fetch(self) -> None:
        host = urlsplit(self._url).hostname
        try:
            with trio.fail_after(FETCH_SECONDS_MAX):
                document = await trio.to_thread.run_sync(
                    self._fetch, self._url, abandon_on_cancel=True, limiter=self._limiter
                )
            digest = hashlib.sha256(document).digest()
            if digest == self._digest:
                return
            keys = keys_of_jwks(wire.decode_json(document))
        except (OSError, HTTPException, ValueError, KeyUnusable, trio.TooSlowError) as error:
            # Its text may hold the URL, and that a secret.
            logger.warning("the keys at %s cannot be fetched, the last ones are kept: %s", host, type(error).__name__)
        else:
            self._digest = digest
            self._verifier.take_fetched(keys)
            logger.info("fetched %d keys from %s", len(keys), host)


def fetch_document(url: str) -> bytes:
    """The document at a URL, by GET; blocks at most for about `FETCH_SECONDS_MAX`. Raises as `Fetch` says."""
    ends_at = time.monotonic() + FETCH_SECONDS_MAX
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked as a setting
    content = b""
    try:
        answer = urllib.request.build_opener(_SameOrigin).open(request, timeout=READ_SECONDS_MAX)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        raise OSError(f"the source answered {refusal.code}") from None
    with answer as response:
        while chunk := response.read1(DOCUMENT_BYTES_MAX + 1 - len(content)):
            content += chunk
            if len(content) > DOCUMENT_BYTES_MAX:
                raise ValueError(f"a JWKS document must have at most {DOCUMENT_BYTES_MAX} bytes")
            if time.monotonic() > ends_at:
                raise TimeoutError("the JWKS document takes too long")
    return content


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port only: keys come from whom the operator trusts."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            fp.close()
            raise urllib.error.URLError("redirected to another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
