"""Bugs that are planted into a copy of the tree: each must be caught. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Planted:
    """One bug: a text that stands once in a file, and what stands there instead."""

    what: str
    guarantees: tuple[int, ...]
    """The promises that it breaks; none: it breaks something that is no numbered promise."""
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = ()
    """Tests that catch it, where no history does; none: the histories catch it."""
    nodes: bool = False
    """The histories of several servers catch it."""


_HUB_TURN: Final = '''                    due_at[index] = self.clock.monotonic() + seconds
            next_at = min(due_at)

    async def _ready_by(self, until: float) -> Sequence[tuple[int, int]]:
        """The sockets that are ready, as soon as there are some; those that are ready at this time, if it is over."""
        with trio.move_on_at(until):
            return await self.poller.wait()
        return self.poller.look()
'''

PLANTED: Final = (
    Planted(
        "a commit that failed is acknowledged",
        (1,),
        "storage/sqlite/committer.py",
        "        raise TransactionFailed(error, in_commit=True, is_full=had_no_room(error, is_full)) from error\n",
        "        return outcomes\n",
    ),
    Planted(
        "events are sent out before they are committed",
        (1, 2),
        "actors/diagnosis.py",
        "        outcomes = await pending.wait()\n",
        "        guessed = enumerate(events, start=self._ring.head + 1)\n"
        "        await self._extend_ring([Event(Seq(n), 0.0, one.kind, one.body) for n, one in guessed], Seq(0))\n"
        "        outcomes = await pending.wait()\n",
    ),
    Planted(
        "the next number is that behind the newest retained event",
        (2,),
        "storage/sqlite/events.py",
        "    last_seq, floor, _ = numbers\n",
        "    _, floor, _ = numbers\n"
        '    (last_seq,) = db.execute("SELECT coalesce(max(seq), 0) FROM entry WHERE dx = ?", (dx,)).fetchone()\n',
    ),
    Planted(
        "numbers are lost with a loss of power, and no epoch begins",
        (2,),
        "storage/sqlite/runs.py",
        '    if not last.clean and last.durability != "full" and not last.was_killed(boot):\n',
        "    if False:\n",
    ),
    Planted(
        "a gap begins one too late",
        (4,),
        "actors/ring.py",
        "return Gap(Seq(position + 1), self.floor,",
        "return Gap(Seq(position + 2), self.floor,",
    ),
    Planted(
        "no gap is told",
        (4,),
        "actors/ring.py",
        "        if position >= self.floor:\n",
        "        if True:\n",
    ),
    Planted(
        "one event too many stays in memory",
        (5,),
        "actors/ring.py",
        "if len(self._texts) > OUTBOX_EVENTS_MAX:\n            self._let_go(1)",
        "if len(self._texts) > OUTBOX_EVENTS_MAX + 1:\n            self._let_go(1)",
        ("tests/actors/test_ring.py",),
    ),
    Planted(
        "a new subscriber begins with a cursor at the head",
        (4,),
        "actors/resume.py",
        "return Plan(Resume.FRESH, position, position,",
        "return Plan(Resume.FRESH, position, window.head,",
    ),
    Planted(
        "the epoch of a cursor is not compared",
        (2, 4),
        "actors/resume.py",
        "if stored is not None and stored[0] == window.epoch else None",
        "if stored is not None else None",
        ("tests/actors/test_resume.py",),
    ),
    Planted(
        "the epoch of a client is not compared",
        (2, 4),
        "actors/resume.py",
        "    if wanted.epoch is not None and wanted.epoch != window.epoch:\n",
        "    if False:\n",
    ),
    Planted(
        "a stored cursor goes back",
        (4,),
        "storage/sqlite/cursors.py",
        "max(cursor.seq, excluded.seq), excluded.seq)",
        "excluded.seq, excluded.seq)",
        ("tests/storage/test_contract.py",),
    ),
    Planted(
        "a cursor is answered and not stored",
        (8,),
        "storage/sqlite/cursors.py",
        "rows.append((*name, move.epoch, min(move.seq, head),",
        "rows.append((*name, move.epoch, min(move.seq, 0),",
    ),
    Planted(
        "a restart knows nobody any more",
        (8,),
        "actors/roster.py",
        "        self.ring, self.known = ring, known\n",
        "        self.ring, self.known = ring, {}\n",
    ),
    Planted(
        "a crash ends the connections",
        (8,),
        "actors/supervisor.py",
        "        self._give_up_on_repeaters(slot.in_hand)\n",
        "        self._give_up_on_repeaters(slot.in_hand)\n"
        "        await turns.end_where(slot.roster, EVERYBODY, Ending.QUARANTINED)\n",
    ),
    Planted(
        "an actor that crashes again and again is never quarantined",
        (6,),
        "actors/intensity.py",
        "return len(self._crashes) > self._crashes_max",
        "return len(self._crashes) > 10**6",
    ),
    Planted(
        "a key is known only while its event is retained",
        (9,),
        "storage/sqlite/events.py",
        "if stored is not None and stored.expires_at > now.judged:",
        "if stored is not None and stored.seq > floor:",
        ("tests/storage/test_contract.py",),
    ),
    Planted(
        "a key expires with one jump of the clock",
        (9,),
        "storage/sqlite/events.py",
        "if stored is not None and stored.expires_at > now.judged:",
        "if stored is not None and stored.expires_at > now.wall:",
    ),
    Planted(
        "a key is not stored with its event",
        (9,),
        "storage/sqlite/events.py",
        "    if is_stored and event.key is not None:\n        idempotency.store(db, dx, seq, event, now)\n",
        "",
    ),
    Planted(
        "a store that is closed while a transaction runs never wakes",
        (11,),
        "storage/sqlite/committer.py",
        "        elif self._is_closed:\n            self._changed.set()\n",
        "",
    ),
    Planted(
        "a transaction that fails is not rolled back",
        (13,),
        "storage/sqlite/committer.py",
        "    if db.in_transaction:\n        try:\n",
        "    if False:\n        try:\n",
    ),
    Planted(
        "a full disk breaks the store",
        (13,),
        "storage/sqlite/committer.py",
        "        if failed.is_full:\n",
        "        if False:\n",
        ("tests/storage/test_faults.py",),
    ),
    Planted(
        "a right is judged when a message comes, and not when it is handed over",
        (16,),
        "actors/diagnosis.py",
        "        if not (batch := await self._judged(received)):\n",
        "        if not (batch := list(received)):\n",
        ("tests/identity/test_acts.py", "tests/actors/test_judging.py"),
    ),
    Planted(
        "revocations are forgotten at a start",
        (16,),
        "web/server/composition.py",
        "        await consequences.read_revoked()\n",
        "",
    ),
    Planted(
        "the connections of somebody who was revoked stay",
        (16,),
        "web/operating/consequences.py",
        "                self._begin(partial(registry.end_everywhere, covered, Ending.REVOKED))\n",
        "",
    ),
    Planted(
        "the connections of a viewer who was removed stay",
        (16,),
        "web/operating/consequences.py",
        "self._begin(partial(registry.end_where, diagnosis.diagnosis_id, lost, Ending.VIEWER_REMOVED))\n",
        "pass\n",
    ),
    Planted(
        "an act is answered before what was handed over is stored",
        (16,),
        "web/operating/consequences.py",
        "        await self._store.barrier()\n",
        "",
        ("tests/identity/test_acts.py",),
    ),
    Planted(
        "an erasure is not told to an actor that loads",
        (),
        "actors/roster.py",
        "        if self._left_out:\n            left_out",
        "        if False:\n            left_out",
        ("tests/actors/test_letting_go.py", "tests/server/test_erasing.py"),
    ),
    Planted(
        "what follows from an act is begun when the server has ended",
        (11,),
        "web/operating/consequences.py",
        "        if self._nursery.cancel_scope.cancel_called:\n",
        "        if False:\n",
        ("tests/server/test_consequences.py",),
    ),
    Planted(
        "an older connection of a device stays",
        (),
        "actors/roster.py",
        "                self.end(older, Ending.REPLACED)\n",
        "                pass\n",
        ("tests/actors/test_cursors.py",),
    ),
    Planted(
        "a silent client is cut before its socket is read once more",
        (7,),
        "web/websocket/channel.py",
        "        if has_left:\n            # Bytes",
        "        if False:\n            # Bytes",
        ("tests/edge/test_hub_turns.py",),
    ),
    Planted(
        "a burst is written, and counts as not sent",
        (3, 4),
        "web/following/follower.py",
        "            subscriber.position = burst.last\n            try:\n",
        "            try:\n",
    ),
    Planted(
        "live is told before all of the replay is sent",
        (4,),
        "actors/reading.py",
        "    if live_at is not None and live_at <= position:\n",
        "    if live_at is not None:\n",
    ),
    Planted(
        "a follower is registered at the head when its replay has ended",
        (4,),
        "actors/reading.py",
        "            due.append(Live(live_at))\n            live_at = None\n        due.append(RenderedEvent",
        "            due.append(Live(live_at))\n            return Taken(due, ring.head, lost, None)\n"
        "        due.append(RenderedEvent",
        ("tests/actors/test_reading.py",),
    ),
    Planted(
        "a cursor moves when an event is written",
        (4,),
        "web/following/follower.py",
        "            subscriber.position = burst.last\n",
        "            subscriber.position = burst.last\n            self._session.reached(burst.last)\n",
    ),
    Planted(
        "an acknowledgement of what was never sent is taken",
        (4,),
        "actors/cursors.py",
        "        if seq > subscriber.position or subscriber.gone",
        "        if subscriber.gone",
        ("tests/actors/test_cursors.py",),
    ),
    Planted(
        "a client that is ahead of the head misses nothing",
        (4,),
        "actors/resume.py",
        "        if wanted.after > window.head:\n",
        "        if False:\n",
    ),
    Planted(
        "the floor stays where it is while events are dropped",
        (5,),
        "storage/sqlite/events.py",
        "(head, max(floor, head - OUTBOX_EVENTS_MAX), dx)",
        "(head, floor, dx)",
    ),
    Planted(
        "the crash of one actor ends all",
        (6, 15),
        "actors/supervisor.py",
        "                failure = error\n",
        "                raise\n",
    ),
    Planted(
        "a torn event is shown to readers",
        (6,),
        "storage/sqlite/events.py",
        "    if damage is not None:\n        raise OutboxDamaged(diagnosis_id, damage)\n    found",
        "    if False:\n        raise OutboxDamaged(diagnosis_id, damage)\n    found",
        ("tests/storage/test_damage.py",),
    ),
    Planted(
        "the torn tail of a log that has failed stays and is read",
        (1, 13),
        "storage/sqlite/live_log.py",
        "                os.ftruncate(self._file, self._end)\n",
        "                pass\n",
        ("tests/storage/test_live_log.py",),
    ),
    Planted(
        "a commit is answered before it is synced",
        (1,),
        "storage/sqlite/schema.py",
        'f"PRAGMA synchronous = {opening.durability.upper()}"',
        '"PRAGMA synchronous = NORMAL"',
        ("tests/crash/test_power_loss.py",),
    ),
    Planted(
        "a deletion is answered and not stored",
        (16,),
        "storage/sqlite/diagnoses.py",
        '    db.execute("UPDATE diagnosis SET deleted_at = ? WHERE dx = ?", (now, dx))\n',
        "",
        ("tests/storage/test_contract.py",),
    ),
    Planted(
        "a request that was in hand when its actor crashed is forgotten",
        (8,),
        "actors/diagnosis.py",
        "            self._in_hand.retries.append(envelope)\n",
        "",
    ),
    Planted(
        "an event that was stored when its actor crashed is stored once more",
        (8, 9),
        "actors/diagnosis.py",
        "        for envelope in [one for one in holding if one.pending is None]:\n",
        "        for envelope in list(holding):\n",
    ),
    Planted(
        "a key of another event is taken for this one's",
        (9,),
        "storage/sqlite/idempotency.py",
        "        if self.digest != event.digest:\n",
        "        if False:\n",
        ("tests/storage/test_contract.py",),
    ),
    Planted(
        "an actor that rests is forgotten with the connections that follow it",
        (10,),
        "actors/registry.py",
        "not slot.has_work and not slot.roster.subscribers\n",
        "not slot.has_work\n",
    ),
    Planted(
        "the files of a database are not locked",
        (12,),
        "storage/disk/database_files.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        ("tests/storage/test_sqlite.py",),
    ),
    Planted(
        "the text of an exception is logged",
        (14,),
        "actors/upkeep.py",
        'return f"{type(error).__name__}{place}"',
        'return f"{type(error).__name__}: {error}{place}"',
        ("tests/actors/test_intensity.py",),
    ),
    Planted(
        "a process confirms a change before what follows from it is done",
        (16,),
        "storage/remote/client.py",
        "        await self._settled()\n        if self._link.out is out:",
        "        await trio.lowlevel.checkpoint()\n        if self._link.out is out:",
        ("tests/storage/test_remote.py",),
    ),
    Planted(
        "requests to the store are numbered anew on a new stream, while older ones wait",
        (1,),
        "storage/remote/client.py",
        "        self.out = out = Outgoing()\n",
        "        self.out = out = Outgoing()\n        self._last_number = next(iter(self._requests), 1) - 1\n",
        ("tests/storage/test_remote_histories.py",),
    ),
    Planted(
        "an update without a key is handed over again after the store has died",
        (),
        "storage/remote/client.py",
        "            is_repeatable=all(event.key is not None for event in events),\n",
        "            is_repeatable=True,\n",
        ("tests/storage/test_remote_histories.py",),
    ),
    Planted(
        "a process of the store forgets keys, and stores again what is handed over again",
        (),
        "storage/remote/calls.py",
        "    given = [(one.kind, one.body, one.key, one.digest) for one in events]\n",
        "    given = [(one.kind, one.body, None, one.digest) for one in events]\n",
        ("tests/storage/test_remote_histories.py",),
    ),
    Planted(
        "a process learns of an act after what was stored behind it",
        (16,),
        "storage/remote/client.py",
        "                self._changed(calls.change_of(frame.content))\n",
        "                change = calls.change_of(frame.content)\n"
        "                trio.lowlevel.current_trio_token().run_sync_soon(self._changed, change)\n",
        ("tests/storage/test_remote_histories.py",),
    ),
    Planted(
        "an act is answered before the other processes have confirmed it",
        (16,),
        "storage/remote/server.py",
        "                        await self._confirmed(client, self._last_change)\n",
        "                        pass\n",
        ("tests/storage/test_remote.py",),
    ),
    Planted(
        "the process of the store answers an append before its commit",
        (1,),
        "storage/remote/server.py",
        "                if not pending.is_there:\n                    await pending.done.wait()\n"
        "                self._appends.popleft()\n                try:\n"
        "                    outcomes = pending.result()\n",
        "                self._appends.popleft()\n                try:\n"
        '                    guess = Appended(Seq(1), 0.0, "e", replayed=False)\n'
        "                    outcomes = pending.result() if pending.is_there else [guess] * len(events)\n",
        ("tests/storage/test_remote.py",),
    ),
    Planted(
        "an update is answered before it is committed",
        (1,),
        "actors/diagnosis.py",
        "            envelope.pending, envelope.pending_index = pending, index\n",
        "            envelope.pending, envelope.pending_index = pending, index\n"
        "            guess = Receipt(Seq(self._ring.head + 1 + index), self._ring.epoch, 0, 0, 0, 0, False)\n"
        "            envelope.reply.answer(guess)\n",
    ),
    Planted(
        "a restart drops a subscriber",
        (8,),
        "actors/roster.py",
        "        self.ring, self.known = ring, known\n",
        "        if self.ring is not None:\n"
        "            for one in list(self.subscribers)[:1]:\n"
        "                self.detach(one)\n"
        "        self.ring, self.known = ring, known\n",
    ),
    Planted(
        "an eviction is not told to an actor that loads",
        (),
        "actors/registry.py",
        "            self.tell(diagnosis_id, Evict(window))\n",
        "            slot.roster.ring is None or self.tell(diagnosis_id, Evict(window))\n",
        ("tests/actors/test_letting_go.py",),
    ),
    Planted(
        "a look at deadlines that is late leaves a deadline in the past, and no socket is served any more",
        (7,),
        "web/websocket/hub.py",
        _HUB_TURN,
        _HUB_TURN.replace("= self.clock.monotonic() + seconds", "+= seconds").replace("self.poller.look()", "()"),
        ("tests/edge/test_hub_turns.py",),
    ),
    Planted(
        "a drain has no deadline",
        (11,),
        "web/http/serving.py",
        "connections_nursery.cancel_scope.deadline = trio.current_time() + terms.drain_seconds_max\n",
        "trio.current_time() + 1e6\n",
        ("tests/edge/test_drain.py",),
    ),
    Planted(
        "a transaction that fails in an unknown way leaves whoever waits",
        (11,),
        "storage/sqlite/committer.py",
        '            self.break_down(f"a transaction failed unexpectedly: {type(error).__name__}")\n'
        "            _settle(batch, [Failed(str(self._broken))] * len(batch))\n",
        "            self._changed.set()\n            return\n",
        ("tests/storage/test_committer.py",),
    ),
    Planted(
        "somebody who was erased while an admission was stored is known",
        (),
        "actors/diagnosis.py",
        "        if erasures != self._roster.erasures:\n            return [start.envelope for start in starts]\n",
        "",
        ("tests/actors/test_letting_go.py",),
    ),
    Planted(
        "a stored event is said not to be stored",
        (8,),
        "actors/slot.py",
        "            unknown = envelope.pending is not None and not isinstance(refusal, Refused)\n",
        "            unknown = False\n",
        ("tests/actors/test_cancellations.py",),
    ),
    Planted(
        "a token that has ended is followed on with",
        (16,),
        "web/identity/expiry.py",
        "        if now >= expires_at + LEEWAY_SECONDS:\n            session.end(Ending.TOKEN_EXPIRED)\n",
        "        if False:\n            session.end(Ending.TOKEN_EXPIRED)\n",
    ),
    Planted(
        "a revoked token is taken again",
        (16,),
        "web/identity/tokens.py",
        "        if revocation is not None:\n",
        "        if False:\n",
    ),
    Planted(
        "a newer token of somebody else is taken",
        (16,),
        "web/identity/expiry.py",
        "            if who.sub != session.who.sub:\n",
        "            if False:\n",
        ("tests/identity/test_live_tokens.py",),
    ),
    Planted(
        "the connections that publish stay when their token is revoked",
        (16,),
        "web/operating/consequences.py",
        "                self._end_others(covered.covers, Ending.REVOKED)\n            case RevocationsLifted",
        "            case RevocationsLifted",
        ("tests/server/test_publish_sockets.py",),
    ),
    Planted(
        "whoever only looks becomes a subscriber",
        (),
        "actors/diagnosis.py",
        "        if message.peeks:\n            self._attach(",
        "        if False:\n            self._attach(",
    ),
    Planted(
        "a subscriber is forgotten with one jump of the clock",
        (8,),
        "actors/diagnosis.py",
        "        if unseen := self._roster.unseen(self._store.moment().judged):\n",
        "        if unseen := self._roster.unseen(self._store.moment().wall):\n",
        ("tests/server/test_unseen.py",),
    ),
    Planted(
        "an event stream ends and its connection stays",
        (),
        "web/following/streams.py",
        "        subscriber.detach()\n        if subscriber.roster is None:\n",
        "        if subscriber.roster is None:\n",
    ),
    Planted(
        "an act leaves no row",
        (),
        "storage/sqlite/store.py",
        "        trails.record(db, row_of(answer), now.wall)\n        return answer\n",
        "        return answer\n",
    ),
    Planted(
        "an act is done again when an operator restarts its actor meanwhile",
        (),
        "actors/diagnosis.py",
        "    return trio.CancelScope(shield=True)\n",
        "    return trio.CancelScope()\n",
        ("tests/actors/test_cancellations.py",),
    ),
    Planted(
        "a deletion is answered before its commit",
        (16,),
        "web/operating/diagnoses.py",
        '            deleted = await acts.store.delete(checked_id, act(who, "diagnosis.delete"))\n'
        "            await consequences.settled()\n",
        "            deleted = await acts.store.get(checked_id)\n"
        '            acts._acts_nursery.start_soon(acts.store.delete, checked_id, act(who, "diagnosis.delete"))\n',
    ),
    Planted(
        "an act is committed without a sync",
        (16,),
        "storage/sqlite/committer.py",
        '        db.execute("BEGIN IMMEDIATE")\n',
        '        is_act = any(getattr(work, "__name__", "") == "recorded" for work in works)\n'
        '        db.execute("PRAGMA synchronous = " + ("NORMAL" if is_act else "FULL"))\n'
        '        db.execute("BEGIN IMMEDIATE")\n',
    ),
    Planted(
        "a Close that answers another one than 1012 is a receipt",
        (4,),
        "web/following/follower.py",
        "        if code == CloseCode.RESTART and self._asks:\n",
        "        if self._asks:\n",
        ("tests/edge/test_following.py",),
    ),
    Planted(
        "a Close that answers 1012 is no receipt",
        (11,),
        "web/following/follower.py",
        "        if code == CloseCode.RESTART and self._asks:\n",
        "        if False:\n",
    ),
    Planted(
        "a Close that has crossed the server's own is a receipt",
        (4,),
        "web/websocket/channel.py",
        "one.code == closing.code and not self._hub.unsent(self._sock):\n",
        "one.code == closing.code:\n",
        ("tests/edge/test_following.py",),
    ),
    Planted(
        "a revocation does not cover tokens of an issuer whose clock is ahead",
        (16,),
        "web/operating/revocations.py",
        "leeway_seconds=LEEWAY_SECONDS",
        "leeway_seconds=0.0",
    ),
    Planted(
        "an actor does not hear of what others write",
        (3,),
        "actors/registry.py",
        "        slot.mailbox.hear_nowait(news)\n",
        "        pass\n",
        nodes=True,
    ),
    Planted(
        "a log that is read too old is not looked at again",
        (3,),
        "actors/diagnosis.py",
        "            found = window is None or self._has_reached(window)\n",
        "            found = True\n",
        ("tests/actors/test_second_writer.py",),
    ),
    Planted(
        "a newcomer has seen more elsewhere than the ring holds, and is taken for one that lies",
        (4,),
        "actors/diagnosis.py",
        "        if seen > ring.head:\n            await self._look_up_to(seen)\n",
        "",
        ("tests/actors/test_second_writer.py",),
    ),
    Planted(
        "a key that was exchanged is taken on",
        (16,),
        "web/identity/tokens.py",
        "        self._configured = tuple(keys)\n        self._take_all()\n",
        "        self._configured = (*self._configured, *keys)\n        self._take_all()\n",
    ),
    Planted(
        "a restored database goes on in its old epochs",
        (2,),
        "storage/sqlite/runs.py",
        "    if last.copied:\n",
        "    if False:\n",
    ),
    Planted(
        "where a subscriber got to at another server is not asked",
        (
            4,
            8,
        ),
        "actors/diagnosis.py",
        "        if self._store.shared:\n            # While",
        "        if False:\n            # While",
        ("tests/actors/test_second_writer.py",),
    ),
    Planted(
        "what the connections of an erased person leave elsewhere stays",
        (),
        "web/operating/consequences.py",
        "        for sub in person.met:\n",
        "        for sub in ():\n",
        ("tests/server/test_consequences.py",),
    ),
    Planted(
        "what waits to be stored of an erased person elsewhere is stored",
        (),
        "web/operating/consequences.py",
        "        self._registry.forget_what_waits(person, stand_in)\n",
        "",
        ("tests/server/test_consequences.py",),
    ),
    Planted(
        "a device that connects to another server keeps its older connection",
        (),
        "actors/peers.py",
        "                self._take_over(node, note)\n",
        "                pass\n",
        ("tests/actors/test_peers.py",),
    ),
    Planted(
        "on NATS an append does not name the entry that it follows",
        (17,),
        "storage/jetstream/appending.py",
        "headers |= {EXPECTED_LAST: str(head.pos), MESSAGE_ID: this, ATTEMPT: str(attempt)}",
        "headers |= {MESSAGE_ID: this, ATTEMPT: str(attempt)}",
        ("tests/cluster/test_store.py",),
    ),
    Planted(
        "on NATS nobody hears of what others have taken away",
        (18,),
        "storage/jetstream/engine.py",
        "            self.apply(number, *act)\n",
        "            self.known.apply(number, *act, self.told.next)\n",
        ("tests/cluster/test_serve.py",),
    ),
)
