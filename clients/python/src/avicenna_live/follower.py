"""`Follower`: one server, one user, and the diagnoses followed there. Picks the shell of the running event loop."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, Self

import sniffio

from avicenna_live.closing import Backoff
from avicenna_live.core import Core, Wishes
from avicenna_live.credentials import Credentials, TokenFunction
from avicenna_live.following import Following, GetState
from avicenna_live.items import DiagnosisId, Position, Status
from avicenna_live.link import Link
from avicenna_live.shell import Shell, settled
from avicenna_live.stores import MemoryStore, Store

DIAGNOSIS_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,14}")
START: Final = re.compile(r"oldest|new|" + NUMBER.pattern)
DEVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LABEL: Final = "[A-Za-z0-9_-]{1,63}"
URL: Final = re.compile(rf"(https?://(?:{LABEL}(?:\.{LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?)/?")
PORT_MAX: Final = 65_535
HEARTBEAT_SECONDS: Final = range(5, 301)
SEQ_MAX: Final = 2**53 - 1

OnState = Callable[[DiagnosisId, Status], None]


class Follower:
    """Follows diagnoses of one server, on Trio or asyncio: whichever runs the `async with`.

    ```python
    async with Follower("https://live.example.org", token=token, device="ward-3") as live:
        async for item in live.follow(42):
            print(item)
    ```

    Several `follow`s at a time are fine, each in a task of its own. Within one `Follower`, a second `follow` of one
    diagnosis goes on where the first one stopped, and takes over from it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | TokenFunction | None = None,
        device: str | None = None,
        store: Store | None = None,
        get_state: GetState | None = None,
        on_state: OnState | None = None,
        heartbeat: int = 20,
        backoff: Backoff | None = None,
    ) -> None:
        """Prepare; nothing happens before `async with`.

        Args:
            url: of the server: `http://HOST[:PORT]` or `https://HOST[:PORT]`.
            token: a JWT, or a (sync or async) function that returns one. The function is called before each connection,
                and before a token expires. `None`: anonymous, where the server allows it.
            device: the name of a queue of one's own at the server, 1-64 of `A-Z a-z 0-9 _ . -`.
            store: keeps positions, `None`: in memory.
            get_state: loads the app's state of a diagnosis; may be async. It is called where nothing is known yet,
                after a gap and after a reset; what it returns comes as a `Snapshot` before the events that follow.
            on_state: is told each new status of a diagnosis. It must not wait.
            heartbeat: seconds without a message after which the server says that it is there, 5-300. After 1.5 times as
                many without a word the connection is given up.
            backoff: waits before coming back, `None`: from 0.5 s to 30 s.

        Raises:
            ValueError: an argument is not as described.
        """
        self._url = checked_url(url)
        if type(heartbeat) is not int or heartbeat not in HEARTBEAT_SECONDS:
            raise ValueError(f"heartbeat must be a whole number of seconds from 5 to 300, not {heartbeat!r}")
        if store is not None and not (hasattr(store, "load") and hasattr(store, "save")):
            raise ValueError("store must have the functions load and save")
        if get_state is not None and not callable(get_state):
            raise ValueError("get_state must be a function")
        if on_state is not None and (inspect.iscoroutinefunction(on_state) or not callable(on_state)):
            raise ValueError("on_state must be a function that is not async")
        if backoff is not None and not isinstance(backoff, Backoff):
            raise ValueError("backoff must be a Backoff")
        self._credentials = Credentials(token)
        self._device = _checked_device(device)
        self._store = MemoryStore() if store is None else store
        self._get_state = get_state
        self._on_state = on_state
        self._heartbeat = heartbeat
        self._backoff = Backoff() if backoff is None else backoff
        self._positions: dict[DiagnosisId, Position] = {}
        """What is finished, in memory: also where nothing was saved yet."""
        self._links: dict[DiagnosisId, Link] = {}
        """The newest of each diagnosis."""
        self._shell: Shell | None = None

    async def __aenter__(self) -> Self:
        """Begin. Raises `RuntimeError` outside of Trio and asyncio, `ImportError` without the library it needs."""
        if self._shell is not None:
            raise RuntimeError("this Follower is in use: each `async with` wants one of its own")
        shell = new_shell()
        await shell.__aenter__()
        self._shell = shell
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections, with 1000, within 2 s. No task is left."""
        shell, self._shell = self._shell, None
        assert shell is not None
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.leave()
        try:
            await shell.stop(*(link.task for link in links))
        finally:
            await shell.__aexit__(None, None, None)

    def follow(
        self,
        diagnosis_id: DiagnosisId,
        *,
        start: str | int | None = None,
        after: int | None = None,
        epoch: str | None = None,
    ) -> Following:
        """The items of one diagnosis, from where this consumer has come.

        Args:
            diagnosis_id: 1-64 characters of `A-Z a-z 0-9 _ -`; 42 and "42" are the same.
            start: where to begin while there is no position: `oldest`, `new`, or the newest so many; `None`: with
                `get_state` `new`, else `oldest`.
            after: the app's own position, in place of the one that is kept: the last number it has finished.
            epoch: the numbering that `after` belongs to, `None`: the server's current one.

        Raises:
            ValueError: an argument is not as described.
            RuntimeError: outside of `async with`.
        """
        if self._shell is None:
            raise RuntimeError("follow belongs into `async with Follower(...) as live:`")
        diagnosis_id = _checked_id(diagnosis_id)
        wishes = Wishes(
            diagnosis_id=diagnosis_id,
            after=_checked_after(after, epoch),
            epoch=epoch,
            start=_checked_start(start),
            device=self._device,
            heartbeat_seconds=self._heartbeat,
            snapshots=self._get_state is not None,
            renewable=self._credentials.renewable,
            backoff=self._backoff,
        )
        return Following(
            diagnosis_id, partial(self._begin, wishes, self._shell), self._shell, self._store, self._get_state
        )

    def use_token(self, token: str) -> None:
        """Use another token from now on, also on connections that are open; ends the wait after a refused one.

        Raises:
            ValueError: it is no token, or this Follower has a token function.
        """
        self._credentials.replace(token)
        for link in self._links.values():
            link.changed.notify()

    async def _begin(self, wishes: Wishes, shell: Shell) -> Link:
        diagnosis_id = wishes.diagnosis_id
        kept = None
        if wishes.after is None and diagnosis_id not in self._positions:
            kept = await settled(self._store.load(diagnosis_id))
        while (older := self._links.get(diagnosis_id)) is not None:
            older.replace()
            await older.stopped()
            # A task that was cancelled before its first step has told nobody of its end.
            self._forget(diagnosis_id, older)
        # No checkpoint from here on: one link of a diagnosis at a time.
        if self._shell is not shell:
            raise RuntimeError("the `async with` of this Follower is over")
        if wishes.after is None and (kept := self._positions.get(diagnosis_id, kept)) is not None:
            wishes = replace(wishes, after=kept.seq, epoch=kept.epoch)
        link = Link(
            Core(wishes, random.random, partial(self._tell, diagnosis_id)),
            shell,
            self._credentials,
            self._url,
            remember=partial(self._positions.__setitem__, diagnosis_id),
            forget=partial(self._forget, diagnosis_id),
        )
        self._links[diagnosis_id] = link
        return link

    def _tell(self, diagnosis_id: DiagnosisId, status: Status) -> None:
        if self._on_state is not None:
            self._on_state(diagnosis_id, status)

    def _forget(self, diagnosis_id: DiagnosisId, link: Link) -> None:
        if self._links.get(diagnosis_id) is link:
            del self._links[diagnosis_id]


def new_shell() -> Shell:
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        raise RuntimeError("a Follower needs a running event loop: Trio or asyncio") from None
    # Each library is imported only where it runs: an app of one does not need the other.
    if library == "trio":
        try:
            from avicenna_live.trio_shell import TrioShell  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            raise ImportError(f"on Trio: pip install 'avicenna-live-client[trio]' ({missing})") from missing
        return TrioShell()
    if library == "asyncio":
        from avicenna_live.asyncio_shell import AsyncioShell  # noqa: PLC0415

        return AsyncioShell()
    raise RuntimeError(f"a Follower runs on Trio or asyncio, not on {library}")


def checked_url(url: object) -> str:
    """The base URL without a slash behind it. Raises `ValueError`, which does not repeat it: it may hold a password."""
    if not isinstance(url, str) or not (parts := URL.fullmatch(url)) or int(parts[2] or 0) > PORT_MAX:
        raise ValueError("url must be http://HOST[:PORT] or https://HOST[:PORT], without a user, path or query")
    return parts[1]


def _checked_id(diagnosis_id: object) -> DiagnosisId:
    text = str(diagnosis_id)
    if type(diagnosis_id) not in (int, str) or not DIAGNOSIS_ID.fullmatch(text):
        raise ValueError("diagnosis_id must be 1-64 characters of A-Z a-z 0-9 _ -, or a whole number")
    return int(text) if NUMBER.fullmatch(text) else text


def _checked_device(device: object) -> str | None:
    if device is None:
        return None
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        raise ValueError("device must be 1-64 characters of A-Z a-z 0-9 _ . -")
    return device


def _checked_after(after: int | None, epoch: str | None) -> int | None:
    if after is None and epoch is not None:
        raise ValueError("epoch belongs to after: give both, or none")
    if after is not None and (type(after) is not int or not 0 <= after <= SEQ_MAX):
        raise ValueError(f"after must be a whole number from 0 to {SEQ_MAX}, not {after!r}")
    return after


def _checked_start(start: object) -> str | None:
    if start is None:
        return None
    if type(start) not in (int, str) or not START.fullmatch(str(start)):
        raise ValueError(f"start must be oldest, new or a whole number of events, not {start!r}")
    return str(start)
