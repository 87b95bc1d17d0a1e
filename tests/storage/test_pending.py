"""An answer that is not there yet."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from storage.errors import Busy
from storage.pending import Pending


@pytest.mark.parametrize("is_refused", [False, True])
async def test_all_who_wait_get_the_answer_or_the_error_and_so_does_who_comes_later(is_refused: bool) -> None:
    pending: Pending[int] = Pending()
    got: list[object] = []

    async def ask() -> None:
        try:
            got.append(await pending.wait())
        except Busy as refusal:
            got.append(refusal)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask)
        with trio.move_on_after(0):
            await pending.wait()  # who stops waiting takes nothing from the others
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        refusal = Busy("later")
        if is_refused:
            pending.refuse(refusal)
        else:
            pending.answer(7)
    await ask()
    # Whoever gave up waiting may have settled it.
    pending.answer(8)
    pending.refuse(Busy("too late"))
    await ask()
    assert got == [refusal if is_refused else 7] * 4
