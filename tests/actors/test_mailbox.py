"""A mailbox takes so many publishes and so many other messages, news beside them, and nothing once it is closed."""

from __future__ import annotations

import pytest

from actors import mailbox
from actors.counts import Counts
from actors.errors import Draining, MailboxFull
from actors.mailbox import Mailbox
from actors.messages import Envelope, Inspect
from storage.news import LOOK


def inspection() -> Envelope:
    return Envelope(Inspect())


async def test_messages_that_are_no_publishes_have_a_limit_of_their_own_which_news_do_not_count_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "CONTROLS_MAX", 2)
    box = Mailbox(1, Counts())
    box.tell_nowait(inspection())
    for _ in range(3):
        box.hear_nowait(LOOK)
    box.tell_nowait(inspection())
    with pytest.raises(MailboxFull, match="2 messages"):
        box.tell_nowait(inspection())
    assert len(box.drain_nowait()) == 3
    box.tell_nowait(inspection())


async def test_a_closed_mailbox_refuses_messages_and_drops_news() -> None:
    box = Mailbox(1, Counts())
    box.tell_nowait(inspection())
    box.close()
    with pytest.raises(Draining):
        box.tell_nowait(inspection())
    box.hear_nowait(LOOK)
    assert len(box.drain_nowait()) == 1, "what was there before"
