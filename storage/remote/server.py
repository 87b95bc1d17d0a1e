"""Serves a store to other processes of this machine, and carries what they tell each other.

A change that takes effect elsewhere is told to every process. Whoever asked for it is answered once all others have
confirmed it, each on the stream on which it hands over appends, and all that was handed over before is committed or
refused. A process that is away may have connections all the same: it is waited for, too, until it is said to be gone.
One that does not confirm within `CONFIRM_SECONDS_MAX` is cut off (`unconfirmed`).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec
import trio

from storage.changes import (
    Change,
    DiagnosisDeleted,
    DiagnosisRegistered,
    EpochsRenewed,
    EventsEvicted,
    OutboxPurged,
    SubjectErased,
    TokensRevoked,
)
from storage.errors import Failed, StorageError
from storage.news import LOOK, News
from storage.records import OUTBOX_EVENTS_MAX, Appended, Epoch, Event, NewEvent, Seq, Window
from storage.remote import calls
from storage.remote.calls import Frame, State
from storage.remote.frames import RECEIVE_BYTES, Frames, FrameTooLong
from storage.remote.outgoing import Outgoing
from storage.store import PendingAppend, Store

CONFIRM_SECONDS_MAX: Final = 2.0
"""Longest wait for a process to confirm a change, without the time in which the disk does not answer. Beyond: it is cut
off, and `unconfirmed` ends it."""

CONFIRM_STEP_SECONDS: Final = 0.1
"""The wait is counted in steps. Reason: a step in which this process did not run counts no more than another."""

STATE_SECONDS: Final = 0.25
"""Between two tellings of how the store is."""

OUT_BYTES_MAX: Final = 128 * 1024 * 1024
"""Bytes that may wait to be read by one process. Beyond: it is cut off."""

logger = logging.getLogger("avicenna.storage")


class _Client:
    """One process that is connected."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.node = ""
        self.stream = stream
        self.confirmed = 0
        """The number of the last change that it has confirmed."""
        self.followed: set[str] = set()
        self.topics: set[str] = set()
        self.long: dict[int, trio.CancelScope] = {}
        """What it has asked for and may cancel."""
        self.has_ended = False
        """It will not come back."""
        self.scope = trio.CancelScope()
        self.gone = trio.Event()
        self.out = Outgoing()

    def say(self, data: bytes) -> None:
        """Send it something."""
        self.out.say(data)
        if self.out.size > OUT_BYTES_MAX:
            logger.error("a process does not read what it is sent: it is cut off")
            self.scope.cancel()


class _Learning:
    """A reading of how a log stands, and what has come since it began."""

    def __init__(self) -> None:
        self.is_outdated = False
        """Something else than growth has come: it is read again."""
        self.grown: tuple[Epoch, Seq] | None = None
        """The newest entry that was told."""

    def joined(self, window: Window) -> Window | None:
        """How the log stands, given what was read; `None`: it is not known."""
        if self.is_outdated:
            return None
        if self.grown is None or self.grown[1] <= window.head:
            return window
        epoch, head = self.grown
        return None if epoch != window.epoch else _grown_to(window, head)


def _grown_to(window: Window, head: Seq) -> Window:
    return Window(window.epoch, head, Seq(max(window.floor, head - OUTBOX_EVENTS_MAX)), window.purged)


class StoreServer:
    """Serves one store. It is what the store tells (`storage.changes.Hears`)."""

    def __init__(
        self, store: Store, unconfirmed: Callable[[str], None] = lambda _: None, nodes: Collection[str] = ()
    ) -> None:
        """Serve `store`, which nobody else may use.

        Args:
            unconfirmed: called with the node that did not confirm a change in time.
            nodes: those that had asked the store before this process began.
        """
        self._store = store
        self._unconfirmed = unconfirmed
        self._clients: list[_Client] = []
        self._absent = set(nodes)
        """Nodes that are away, and not said to be gone."""
        self._has_confirmed = trio.Event()
        """Set when a node has confirmed something, or is gone."""
        self._windows: dict[str, Window] = {}
        """How logs that are followed were left by the last entry."""
        self._learning: dict[str, _Learning] = {}
        """Of logs whose window is being read."""
        self._to_learn = trio.open_memory_channel[str](math.inf)
        self._last_change = 0
        self._have_rights_changed = False
        self._appends: deque[tuple[_Client, int, str, Sequence[NewEvent], PendingAppend]] = deque()
        """Handed over, in this order; answered in this order."""
        self._appended = trio.Event()
        self._looking_through = trio.Lock()
        self._last_question = 0
        self._questions: dict[int, tuple[_Client, int, set[_Client]]] = {}
        """Who has asked, under which number, and who has not answered yet."""
        store.tell(self)

    async def run(self, listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        """Serve whoever connects; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_appends)
            nursery.start_soon(self._tell_state)
            nursery.start_soon(self._learn_windows)
            await trio.serve_listeners(self._serve, list(listeners), handler_nursery=nursery)

    def is_gone(self, node: str) -> None:
        """A node has ended: nobody waits for it."""
        self._absent.discard(node)
        for client in self._clients:
            if client.node == node:  # the end of its stream is still to be read
                client.has_ended = True
                client.scope.cancel()
        self._stir_confirmed()

    async def left(self) -> None:
        """Wait until nobody is connected."""
        while self._clients:
            await self._clients[0].gone.wait()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        client = _Client(stream)
        try:
            with client.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.out.write, client.stream)
                    await self._read(client, nursery)
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except* (msgspec.DecodeError, FrameTooLong) as wrong:
            logger.error("a process sent what is no frame, and is cut off: %s", wrong.exceptions[0])
        finally:
            self._left(client)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _left(self, client: _Client) -> None:
        client.gone.set()
        if client in self._clients:
            self._clients.remove(client)
            is_back = any(one.node == client.node for one in self._clients)
            if not client.has_ended and not is_back:
                self._absent.add(client.node)
        self._stir_confirmed()
        for number, (_, _, missing) in list(self._questions.items()):
            missing.discard(client)
            self._end_question(number)
        self._forget_windows()
        self._say_state()

    async def _read(self, client: _Client, nursery: trio.Nursery) -> None:
        frames = Frames()
        while data := await client.stream.receive_some(RECEIVE_BYTES):
            for content in frames.taken(data):
                frame = calls.decoded(content)
                if frame.what == calls.APPEND:
                    self._append(client, frame)
                elif frame.what in calls.METHODS:
                    begun = trio.Event()
                    nursery.start_soon(self._ask, client, frame, begun)
                    if frame.what not in calls.READS:
                        # It is handed over before it waits, and before the next frame is looked at.
                        await begun.wait()
                elif frame.what == calls.FOLLOW:
                    diagnosis_id = calls.text_of(frame.content)
                    client.followed.add(diagnosis_id)  # at once: an `UNFOLLOW` may be the next frame
                    self._learn(diagnosis_id)
                else:
                    self._take(client, frame)

    def _take(self, client: _Client, frame: Frame) -> None:
        content = frame.content
        match frame.what:
            case "hello":
                client.node = calls.text_of(content)
                self._absent.discard(client.node)
                self._clients.append(client)
                self._say_state()
            case calls.UNFOLLOW:
                diagnosis_id = calls.text_of(content)
                client.followed.discard(diagnosis_id)
                if not self._is_followed(diagnosis_id):
                    self._windows.pop(diagnosis_id, None)
            case calls.CONFIRM:
                client.confirmed = max(client.confirmed, calls.number_of(content))
                self._stir_confirmed()
            case calls.CANCEL:
                if (scope := client.long.get(calls.number_of(content))) is not None:
                    scope.cancel()
            case calls.SUBSCRIBE:
                client.topics.add(calls.text_of(content))
            case calls.UNSUBSCRIBE:
                client.topics.discard(calls.text_of(content))
            case calls.PUBLISH:
                topic, data = calls.publishing_of(content)
                note = calls.encoded(0, "published", (client.node, topic, data))
                for other in self._others(client):
                    if topic in other.topics:
                        other.say(note)
            case calls.ASK:
                self._be_asked(client, *calls.asking_of(content))
            case calls.ANSWER:
                self._answered(client, *calls.answering_of(content))

    def _others(self, client: _Client) -> list[_Client]:
        return [one for one in self._clients if one is not client]

    # What is asked

    async def _ask(self, client: _Client, frame: Frame, begun: trio.Event) -> None:
        begun.set()
        method, number = frame.what, frame.number
        try:
            given = calls.arguments(method, frame.content)
            with trio.CancelScope() as scope:
                if method in calls.LONG:
                    client.long[number] = scope
                try:
                    if method == "look_through":
                        await self._look_through()
                        answer = None
                    else:
                        answer = await getattr(self._store, method)(**given)
                    if given.get("act") is not None:
                        await self._confirmed(client, self._last_change)
                    client.say(calls.encoded(number, "answer", answer))
                    if method == "drop_damaged":
                        self._tell_others(client, given["diagnosis_id"], LOOK)
                finally:
                    client.long.pop(number, None)
        except StorageError as refusal:
            client.say(calls.refused(number, refusal))
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whoever asked is told that it failed
            logger.error("a request of a process failed unexpectedly: %s", type(error).__name__)
            client.say(calls.refused(number, Failed(type(error).__name__)))

    async def _look_through(self) -> None:
        """All ask for it when they start: once is enough."""
        async with self._looking_through:
            await self._store.look_through()

    async def _confirmed(self, asker: _Client, number: int) -> None:
        """Wait until all others have confirmed a change and what was handed over before is stored or refused.

        Those that do not confirm are cut off.
        """
        left = CONFIRM_SECONDS_MAX
        while missing := self._missing(asker, number):
            if left <= 0:
                for node, client in missing.items():
                    logger.error("a process has not confirmed a change within %g s: it is cut off", CONFIRM_SECONDS_MAX)
                    self._unconfirmed(node)
                    if client is not None:
                        client.scope.cancel()
                    self._absent.discard(node)
                break
            began = trio.current_time()
            with trio.move_on_after(CONFIRM_STEP_SECONDS):
                await self._has_confirmed.wait()
            if self._store.statistics().waiting_seconds < CONFIRM_STEP_SECONDS:
                left -= min(trio.current_time() - began, CONFIRM_STEP_SECONDS)
        await self._store.barrier()

    def _missing(self, asker: _Client, number: int) -> dict[str, _Client | None]:
        """The nodes that have not confirmed a change; `None`: one that is away."""
        return {one.node: one for one in self._others(asker) if one.confirmed < number} | {
            node: None for node in self._absent if node != asker.node
        }

    def _stir_confirmed(self) -> None:
        """Wake all that wait for a confirmation; whoever waits for another one waits again."""
        self._has_confirmed.set()
        self._has_confirmed = trio.Event()

    # Appends

    def _append(self, client: _Client, frame: Frame) -> None:
        diagnosis_id, events = calls.append_of(frame.content)
        try:
            pending = self._store.append_nowait(diagnosis_id, events)
        except StorageError as refusal:
            client.say(calls.append_answered(frame.number, [refusal] * len(events)))
            return
        self._appends.append((client, frame.number, diagnosis_id, events, pending))
        self._appended.set()

    async def _answer_appends(self) -> None:
        """They are settled in the order in which they were handed over."""
        while True:
            while self._appends:
                client, number, diagnosis_id, events, pending = self._appends[0]
                if not pending.is_there:
                    await pending.done.wait()
                self._appends.popleft()
                try:
                    outcomes = pending.result()
                except StorageError as refusal:
                    client.say(calls.refused(number, refusal))
                    continue
                client.say(calls.append_answered(number, outcomes))
                self._has_grown(client, diagnosis_id, events, outcomes)
            self._appended = trio.Event()
            await self._appended.wait()

    def _has_grown(
        self,
        client: _Client,
        diagnosis_id: str,
        events: Sequence[NewEvent],
        outcomes: Sequence[Appended | StorageError],
    ) -> None:
        window = self._windows.get(diagnosis_id)
        if window is None and not self._is_followed(diagnosis_id):
            return
        stored = [
            (one, event)
            for event, one in zip(events, outcomes, strict=True)
            if isinstance(one, Appended) and not one.replayed
        ]
        if not stored:
            return
        first, last = stored[0][0], stored[-1][0]
        if window is None or window.epoch != last.epoch or first.seq != window.head + 1:
            self._tell_others(client, diagnosis_id, LOOK)
            if window is not None and (window.epoch != last.epoch or last.seq > window.head):
                del self._windows[diagnosis_id]
            self._learn(diagnosis_id)
            if (learning := self._learning.get(diagnosis_id)) is not None:
                learning.grown = last.epoch, last.seq
            return
        window = self._windows[diagnosis_id] = _grown_to(window, last.seq)
        if any(diagnosis_id in one.followed for one in self._clients if one is not client):
            grown = tuple(Event(one.seq, one.at, event.kind, event.body) for one, event in stored)
            self._tell_others(client, diagnosis_id, News(window, grown))

    # Who follows what

    def _is_followed(self, diagnosis_id: str) -> bool:
        return any(diagnosis_id in one.followed for one in self._clients)

    def _learn(self, diagnosis_id: str) -> None:
        """Have the window of a log that is followed read, unless it is known, or being read."""
        if diagnosis_id not in self._windows and diagnosis_id not in self._learning:
            self._learning[diagnosis_id] = _Learning()
            self._to_learn[0].send_nowait(diagnosis_id)

    async def _learn_windows(self) -> None:
        async for diagnosis_id in self._to_learn[1]:
            learning = self._learning[diagnosis_id] = _Learning()
            try:
                read = (await self._store.read_after(diagnosis_id, Seq(0), 0)).window
            except StorageError:
                read = None  # without it, whoever follows is told to look
            del self._learning[diagnosis_id]
            if read is None or diagnosis_id in self._windows or not self._is_followed(diagnosis_id):
                continue
            if (window := learning.joined(read)) is None:
                self._learn(diagnosis_id)
            else:
                self._windows[diagnosis_id] = window

    def _forget_windows(self) -> None:
        for diagnosis_id in [one for one in self._windows if not self._is_followed(one)]:
            del self._windows[diagnosis_id]

    def _tell_others(self, client: _Client | None, diagnosis_id: str, news: News) -> None:
        told = [one for one in self._clients if one is not client and diagnosis_id in one.followed]
        if told:
            frame = calls.grew(diagnosis_id, news)
            for one in told:
                one.say(frame)

    # What the store tells

    def changed(self, change: Change) -> None:
        self._last_change = change.number
        if isinstance(change, DiagnosisRegistered | DiagnosisDeleted | TokensRevoked | SubjectErased):
            self._have_rights_changed = True
        frame = calls.changed(change)
        for client in self._clients:
            client.say(frame)
        match change:
            case OutboxPurged(diagnosis_id=diagnosis_id, window=window):
                self._moved(diagnosis_id, window)
            case EventsEvicted(windows=windows):
                for diagnosis_id, window in windows.items():
                    self._moved(diagnosis_id, window)
            case DiagnosisDeleted(diagnosis=diagnosis) | DiagnosisRegistered(diagnosis=diagnosis):
                self._look_anew(diagnosis.diagnosis_id)
            case EpochsRenewed(diagnosis_id=renewed):
                for diagnosis_id in list(self._windows) if renewed is None else [renewed]:
                    self._look_anew(diagnosis_id)
        self._say_state()

    def grew(self, diagnosis_id: str, news: News) -> None:
        self._tell_others(None, diagnosis_id, news)

    def missed(self) -> None:
        """A store that misses something is no store of this process."""

    def _moved(self, diagnosis_id: str, window: Window) -> None:
        self._outdate_reading(diagnosis_id)
        if self._is_followed(diagnosis_id):
            self._windows[diagnosis_id] = window
            self._tell_others(None, diagnosis_id, News(window))

    def _look_anew(self, diagnosis_id: str) -> None:
        self._outdate_reading(diagnosis_id)
        self._windows.pop(diagnosis_id, None)
        self._tell_others(None, diagnosis_id, LOOK)

    def _outdate_reading(self, diagnosis_id: str) -> None:
        if (learning := self._learning.get(diagnosis_id)) is not None:
            learning.is_outdated = True

    # How it is

    def _say_state(self) -> None:
        frame = self._state()
        for client in self._clients:
            client.say(frame)

    def _state(self) -> bytes:
        store = self._store
        state = State(
            store.statistics(),
            dict(store.damaged),
            store.is_check_pending,
            store.moment().reckoned,
            store.clock_held_since,
            tuple(one.node for one in self._clients),
            self._have_rights_changed,
            self._last_change,
        )
        return calls.encoded(0, "state", state)

    async def _tell_state(self) -> None:
        while True:
            self._say_state()
            await trio.sleep(STATE_SECONDS)

    # The bus

    def _be_asked(self, client: _Client, number: int, topic: str, data: bytes) -> None:
        self._last_question += 1
        others = set(self._others(client))
        self._questions[self._last_question] = client, number, others
        frame = calls.encoded(0, "asked", (self._last_question, client.node, topic, data))
        for other in others:
            other.say(frame)
        self._end_question(self._last_question)

    def _answered(self, client: _Client, number: int, answer: bytes) -> None:
        if (asked := self._questions.get(number)) is None:
            return
        asker, their_number, missing = asked
        asker.say(calls.encoded(0, "answered", (their_number, client.node, answer)))
        missing.discard(client)
        self._end_question(number)

    def _end_question(self, number: int) -> None:
        asker, their_number, missing = self._questions[number]
        if not missing or asker.gone.is_set():
            del self._questions[number]
            asker.say(calls.encoded(0, "answers", their_number))
