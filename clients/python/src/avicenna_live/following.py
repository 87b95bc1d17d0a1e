"""What `follow` returns: the items of one diagnosis, as an async iterator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from avicenna_live.core import Step
from avicenna_live.items import DiagnosisId, Item, Position, Snapshot, Status
from avicenna_live.link import Link
from avicenna_live.shell import Shell, settled
from avicenna_live.stores import Store

GetState = Callable[[DiagnosisId], Any | Awaitable[Any]]


class Following:
    """The items of one diagnosis.

    Asking for the next item finishes the step of the one before: its position is saved, then acknowledged. An item
    whose step was left by an exception or by `break` is not finished, and the next `follow` begins with it.

    Raises `Ended` when the server ends the connection for good, and what a function of the app raises.

    Ownership: the `Follower` closes what is still open at the end of its `async with`. Left by `break`, this closes
    when nothing refers to it any more; `async with` and `aclose` close it at once.
    """

    def __init__(
        self,
        diagnosis_id: DiagnosisId,
        begin: Callable[[], Awaitable[Link]],
        shell: Shell,
        store: Store,
        get_state: GetState | None,
    ) -> None:
        """Prepare; nothing happens before the first item is asked for.

        Args:
            begin: makes the connection.
        """
        self._diagnosis_id = diagnosis_id
        self._begin = begin
        self._shell = shell
        self._store = store
        self._get_state = get_state
        self._link: Link | None = None
        self._closed = False
        self._asked = False

    @property
    def status(self) -> Status:
        """How it stands with the connection."""
        return Status("connecting") if self._link is None else self._link.core.status

    @property
    def position(self) -> Position | None:
        """Up to where the steps are finished, `None`: not known yet."""
        return None if self._link is None else self._link.core.position

    def __aiter__(self) -> Following:
        return self

    async def __anext__(self) -> Item:
        """The next item; finishes the step of the one before. Cancellation: what was not returned comes next time."""
        if self._asked:
            raise RuntimeError("another task waits for the next item of this follow already")
        self._asked = True
        try:
            return await self._next()
        finally:
            self._asked = False

    async def _next(self) -> Item:
        if self._link is None and not self._closed:
            self._link = await self._begin()
        if (link := self._link) is None or self._closed:
            if link is not None:
                # `aclose` may have been called while it began, and found nothing to close.
                link.leave()
            raise StopAsyncIteration
        core = link.core
        if (reached := core.unsaved) is not None and not link.leaving:
            await settled(self._store.save(self._diagnosis_id, reached))
        if not link.leaving:
            core.finish()
            link.note()
        await self._shell.checkpoint()
        while True:
            while (step := core.step) is None or link.leaving:
                if core.failure is not None:
                    raise core.failure
                if link.leaving:
                    raise StopAsyncIteration
                await link.changed.wait()
            item = await self._item(step)
            # While the app loaded its state, a reset may have taken the step back.
            if core.step is step and not link.leaving:
                core.take()
                link.changed.notify()
                return item

    async def _item(self, step: Step) -> Item:
        if step.item is not None:
            return step.item
        assert self._get_state is not None
        assert step.position is not None
        data = await settled(self._get_state(self._diagnosis_id))
        return Snapshot(step.position.epoch, step.position.seq, data)

    async def aclose(self) -> None:
        """Close the connection, with 1000, within 2 s. The iterator ends."""
        self._closed = True
        if self._link is not None:
            self._link.leave()
            await self._link.stopped()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if (link := getattr(self, "_link", None)) is not None and not link.over:
            link.abandon()
