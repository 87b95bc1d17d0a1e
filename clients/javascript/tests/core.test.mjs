// The core of the client: what it makes of frames and closes, without a socket or a clock.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Core, Fault, afterClose, jitter, patience } from "../client.js";
import { EPOCH, connect, event, frame } from "./frames.mjs";

function gap(from, to, reason = "evicted") {
  return frame("gap", { from, to, count: to - from + 1, reason });
}

/** A core with a connection that has got these frames. */
function connected(core, ...frames) {
  core.opened();
  for (const one of frames) core.receive(one);
  return core;
}

/** What the consumer gets when it takes all there is, in short. */
function taken(core) {
  const found = [];
  for (let item = core.take(); item !== null; item = core.take()) {
    found.push(shown(item));
    core.finish();
  }
  return found;
}

function shown(item) {
  if (item.type === "gap") return `gap ${item.first}-${item.last} ${item.reason}`;
  if (item.type === "reset") return `reset ${item.epoch} ${item.floor}`;
  if (item.type === "snapshot") return `snapshot ${item.epoch} ${item.seq}`;
  return item.seq;
}

test("a new client takes its position from `connect`, and then says where it goes on", () => {
  const core = new Core({});
  assert.deepEqual(core.parameters(), {});
  connected(core, connect({ head: 9, queued: 2 }));
  assert.deepEqual(core.position, { epoch: EPOCH, seq: 7 });
  assert.deepEqual(core.parameters(), { after: 7, epoch: EPOCH });
});

test("an event has its fields, and no others", () => {
  const core = connected(
    new Core({}),
    connect({ head: 1, queued: 1 }),
    frame("feedback_update", { rating: 5 }, { seq: 1, more: 1 }),
  );
  const timestamp = "2026-01-01T00:00:00.000Z";
  const item = { type: "feedback_update", diagnosis_id: 42, seq: 1, epoch: EPOCH, timestamp, data: { rating: 5 } };
  assert.deepEqual(core.take(), item);
});

test("`start` counts until there is a position; with a state to load it is `new`", () => {
  assert.deepEqual(new Core({ start: 5 }).parameters(), { start: 5 });
  assert.deepEqual(new Core({ hasState: true }).parameters(), { start: "new" });
  assert.deepEqual(new Core({ hasState: true, start: "oldest" }).parameters(), { start: "oldest" });
  assert.deepEqual(new Core({ start: "new", position: { epoch: EPOCH, seq: 3 } }).parameters(), {
    after: 3,
    epoch: EPOCH,
  });
});

test("a number of the app without an epoch takes that of the server", () => {
  const core = new Core({ position: { epoch: null, seq: 3 } });
  assert.deepEqual(core.parameters(), { after: 3 });
  connected(core, connect({ resume: "exact", head: 3 }));
  assert.deepEqual(core.position, { epoch: EPOCH, seq: 3 });
});

test("a position moves when the consumer is done with an item, not when it gets it", () => {
  const core = connected(new Core({}), connect({ head: 1, queued: 1 }), event(1));
  core.take();
  assert.equal(core.position.seq, 0);
  core.finish();
  assert.equal(core.position.seq, 1);
});

test("an item that was left is not done with", () => {
  const core = connected(new Core({}), connect({ head: 1, queued: 1 }), event(1));
  core.take();
  core.abandon();
  core.finish();
  assert.equal(core.position.seq, 0);
});

test("a gap is an item, and the event behind it follows", () => {
  const core = new Core({ position: { epoch: EPOCH, seq: 2 } });
  connected(core, connect({ resume: "partial", head: 6, missed: 3, queued: 1 }), gap(3, 5), event(6));
  assert.deepEqual(taken(core), ["gap 3-5 evicted", 6]);
});

test("an event that comes twice is dropped", () => {
  const core = connected(new Core({}), connect({ head: 2, queued: 2 }), event(1), event(1), event(2), gap(1, 2));
  assert.deepEqual(taken(core), [1, 2]);
});

test("a hole, and a frame that is none, are faults", () => {
  const nothing = () => connected(new Core({}), connect({ head: 2, queued: 2 }));
  for (const wrong of [event(2), gap(2, 3), gap(1, 0), event("1"), event(0.5), frame("gap"), frame("gap", [])]) {
    assert.throws(() => nothing().receive(wrong), Fault, wrong);
  }
  for (const wrong of [
    "",
    "{",
    "[]",
    "null",
    "1",
    "{}",
    '{"type":1}',
    '{"type":"live","data":1}',
    new ArrayBuffer(2),
  ]) {
    assert.throws(() => nothing().receive(wrong), Fault);
  }
  for (const wrong of [event(1), connect({ epoch: null }), connect({ head: -1 }), connect({ missed: "1" })]) {
    assert.throws(() => connected(new Core({}), wrong), Fault);
  }
  const elsewhere = { position: { epoch: EPOCH, seq: 2 } };
  assert.throws(() => connected(new Core(elsewhere), connect({ resume: "exact", head: 3 })), Fault);
});

test("frames and fields that are not known are ignored", () => {
  const core = connected(
    new Core({}),
    connect({ surprise: 1 }),
    frame("surprise"),
    frame("surprise", { seq: 9 }),
    frame("pong"),
  );
  assert.deepEqual(taken(core), []);
});

test("an event of a kind that is not known is passed over, and its number is no hole", () => {
  const later = frame("later_update", { more: 1 }, { seq: 2 });
  const core = connected(new Core({}), connect({ head: 3, queued: 3 }), event(1), later, event(3));
  assert.deepEqual(taken(core), [1, 3]);
  assert.equal(core.acknowledgement(), 3);
});

test("what was read and not taken is kept over a new connection, and comes once", () => {
  const core = connected(new Core({}), connect({ head: 3, queued: 3 }), event(1), event(2), event(3));
  core.take();
  core.closed(1006, "");
  assert.deepEqual(core.parameters(), { after: 0, epoch: EPOCH });
  connected(core, connect({ resume: "exact", head: 4, queued: 4 }), event(1), event(2), event(3), event(4));
  core.finish();
  assert.deepEqual(taken(core), [2, 3, 4]);
});

test("a gap names only what was not read on an earlier connection", () => {
  const core = connected(new Core({}), connect({ head: 2, queued: 2 }), event(1), event(2));
  core.closed(1006, "");
  connected(core, connect({ resume: "partial", head: 6, missed: 5, queued: 1 }), gap(1, 5), event(6));
  assert.deepEqual(taken(core), [1, 2, "gap 3-5 evicted", 6]);
});

test("after a reset the numbers of before are void", () => {
  const core = connected(new Core({}), connect({ head: 2, queued: 2 }), event(1), event(2));
  core.closed(1006, "");
  connected(core, connect({ epoch: "second", resume: "reset", head: 4, floor: 3, queued: 1 }), event(4));
  assert.deepEqual(taken(core), ["reset second 3", 4]);
  assert.deepEqual(core.position, { epoch: "second", seq: 4 });
});

test("a reset that the consumer has not got to is not told twice", () => {
  const core = new Core({ position: { epoch: "old", seq: 9 } });
  const reset = { resume: "reset", head: 2, queued: 2 };
  connected(core, connect(reset), event(1), event(2));
  core.take();
  core.closed(1006, "");
  assert.deepEqual(core.parameters(), { after: 9, epoch: "old" });
  connected(core, connect({ ...reset, head: 3, queued: 3 }), event(1), event(2), event(3));
  core.finish();
  assert.deepEqual(taken(core), [1, 2, 3]);
});

test("a reset is told anew where numbers behind it are gone meanwhile", () => {
  const core = new Core({ position: { epoch: "old", seq: 9 } });
  connected(core, connect({ resume: "reset", head: 2, queued: 2 }), event(1), event(2));
  core.closed(1006, "");
  connected(core, connect({ resume: "reset", head: 7, floor: 6, queued: 1 }), event(7));
  assert.deepEqual(taken(core), [`reset ${EPOCH} 6`, 7]);
});

test("another epoch is a reset, also where the connection that said so broke before it was heard", () => {
  const core = connected(new Core({}), connect({ resume: "reset" }));
  core.closed(1006, "");
  assert.deepEqual(core.parameters(), {});
  connected(core, connect({ epoch: "second", resume: "exact", head: 3, queued: 1 }), event(3));
  assert.deepEqual(taken(core), ["reset second 2", 3]);
});

test("a number beyond the head is reset within its epoch", () => {
  const core = new Core({ position: { epoch: EPOCH, seq: 9 } });
  connected(core, connect({ resume: "reset", head: 1, queued: 1 }), event(1));
  assert.deepEqual(taken(core), [`reset ${EPOCH} 0`, 1]);
});

test("the state is loaded by a new client, after a gap and after a reset, and is done with before they are", () => {
  const core = connected(new Core({ hasState: true }), connect({ head: 3 }), event(4), gap(5, 6));
  assert.equal(core.isFresh, true);
  assert.equal(shown(core.take()), `snapshot ${EPOCH} 3`);
  core.finish();
  assert.equal(core.isFresh, false);
  assert.equal(core.take().seq, 4);
  core.finish();
  assert.equal(core.take().type, "gap");
  assert.equal(core.reaches, null);
  core.finish();
  assert.equal(core.position.seq, 4);
  assert.equal(shown(core.take()), `snapshot ${EPOCH} 6`);
  core.finish();
  assert.equal(core.position.seq, 6);
  core.closed(1006, "");
  connected(core, connect({ epoch: "second", resume: "reset" }));
  assert.deepEqual(taken(core), ["reset second 0", "snapshot second 0"]);
});

test("a new client that is reset loads its state once", () => {
  const core = connected(new Core({ hasState: true }), connect({ resume: "reset" }));
  assert.deepEqual(taken(core), [`reset ${EPOCH} 0`, `snapshot ${EPOCH} 0`]);
});

test("a state that is not loaded yet is not asked for twice over two connections", () => {
  const core = connected(new Core({ hasState: true }), connect({ head: 3 }));
  core.closed(1006, "");
  connected(core, connect({ resume: "exact", head: 4, queued: 1 }), event(4));
  assert.deepEqual(taken(core), [`snapshot ${EPOCH} 3`, 4]);
});

test("where a tab goes on without a state of its own, the state is loaded, and the events from there follow", () => {
  const core = new Core({ position: { epoch: EPOCH, seq: 3 }, isFresh: true, hasState: true });
  assert.deepEqual(core.parameters(), { after: 3, epoch: EPOCH });
  connected(core, connect({ resume: "exact", head: 4, queued: 1 }), event(4));
  assert.deepEqual(taken(core), [`snapshot ${EPOCH} 3`, 4]);
});

test("what is done with is acknowledged once, and only where the server counts what the app says", () => {
  const core = connected(new Core({}), connect({ head: 2, queued: 2 }), event(1), event(2));
  assert.equal(core.acknowledgement(), null);
  core.take();
  core.finish();
  assert.equal(core.acknowledgement(), 1);
  assert.equal(core.acknowledgement(), null);
  core.closed(1006, "");
  connected(core, connect({ resume: "exact", head: 2, queued: 1 }));
  assert.equal(core.acknowledgement(), null, "`after` has said so");
  const peeks = connected(new Core({}), connect({ head: 1, queued: 1, ack: null }), event(1));
  assert.deepEqual(taken(peeks), [1]);
  assert.equal(peeks.acknowledgement(), null);
});

test("no number is acknowledged that has not come on this connection, or is of another epoch", () => {
  const core = connected(new Core({}), connect({ head: 2, queued: 2 }), event(1), event(2));
  core.closed(1006, "");
  connected(core, connect({ resume: "exact", head: 2, queued: 2 }));
  assert.deepEqual(taken(core), [1, 2]);
  assert.equal(core.acknowledgement(), null);
  core.receive(event(1));
  assert.equal(core.acknowledgement(), 1);
  core.receive(event(2));
  assert.equal(core.acknowledgement(), 2);
  core.closed(1006, "");
  assert.equal(core.acknowledgement(), null);
  connected(core, connect({ epoch: "second", resume: "reset", head: 5, floor: 1, queued: 4 }), event(2), event(3));
  assert.equal(core.acknowledgement(), null);
});

test("close codes say who comes back", () => {
  const file = new URL("../../close-codes.json", import.meta.url);
  for (const { code, reason, then } of JSON.parse(readFileSync(file, "utf8"))) {
    assert.equal(afterClose(code, reason), then, `${code} ${reason}`);
  }
});

test("a connection that broke behind its `bye` ended for the reason of the `bye`", () => {
  const bye = { code: 4000, reason: "replaced", retry_after_ms: null };
  const over = connected(new Core({}), connect(), frame("bye", bye)).closed(1006, "");
  assert.deepEqual([over.then, over.code, over.reason], ["ended", 4000, "replaced"]);
  assert.equal(connected(new Core({}), connect(), frame("bye", {})).closed(1006, "").then, "come_back");
});

test("waits double up to a bound, are random below it, and begin anew once it was live", () => {
  const core = new Core({ random: () => 0.5, backoff: { firstMs: 100, maxMs: 1000 } });
  const wait = (...frames) => connected(core, ...frames).closed(1006, "").waitMs;
  assert.deepEqual([wait(), wait(), wait(), wait(), wait(), wait()], [50, 100, 200, 400, 500, 500]);
  assert.equal(wait(connect(), frame("live", { seq: 0 })), 50);
  assert.equal(wait(connect()), 100);
  assert.equal(
    jitter({ firstMs: 500, maxMs: 30_000 }, 5000, () => 1),
    30_000,
  );
});

test("the server says how long to wait, up to five minutes", () => {
  const wait = (retry_after_ms) => {
    const bye = frame("bye", { code: 1012, reason: "restart", retry_after_ms });
    return connected(new Core({ random: () => 0 }), connect(), bye).closed(1012, "restart").waitMs;
  };
  assert.deepEqual([wait(1234), wait(0), wait(1e9), wait(null), wait("5"), wait(-5)], [1234, 0, 300_000, 0, 0, 0]);
});

test("a function is asked for a token at once where the old one had ended, and then ever less often", () => {
  const core = new Core({ random: () => 1 });
  const refused = (...frames) => connected(core, ...frames).closed(1008, "token expired").waitMs;
  assert.deepEqual([refused(connect()), refused(connect()), refused(), refused()], [0, 2000, 4000, 8000]);
  connected(core, connect(), frame("auth_ok"));
  assert.equal(core.closed(1008, "revoked").waitMs, 0);
  for (let asked = 0; asked < 9; asked += 1) assert.ok(refused() <= 30_000);
  connected(core, connect(), frame("live"));
  assert.equal(core.closed(1008, "token expired").waitMs, 0, "a token was live since the refusals");
  connected(core, connect()).closed(1006, "");
  assert.equal(refused(), 1000);
});

test("silence ends a connection; where a timer comes late the server is asked, once", () => {
  const times = { heardAt: 1000, askedAt: null, silentMs: 5000 };
  assert.equal(patience({ ...times, now: 4000, dueAt: 4000 }), 2000);
  assert.equal(patience({ ...times, now: 6000, dueAt: 6000 }), 0);
  assert.equal(patience({ ...times, now: 60_000, dueAt: 6000 }), null);
  const asked = { ...times, askedAt: 60_000 };
  assert.equal(patience({ ...asked, now: 61_000, dueAt: 61_000 }), 2000);
  assert.equal(patience({ ...asked, now: 63_000, dueAt: 63_000 }), 0);
  assert.equal(patience({ ...asked, now: 90_000, dueAt: 63_000 }), 0, "late again");
  assert.equal(patience({ ...asked, heardAt: 61_000, now: 63_000, dueAt: 63_000 }), 3000, "it has answered");
});

/** A server as the protocol describes it, with one diagnosis, for one client. */
class Server {
  epoch = "1";
  head = 0;
  floor = 0;
  cursor = null;

  publish(count) {
    this.head += count;
    this.floor = Math.max(this.floor, this.head - 100);
  }

  restore(random) {
    this.epoch = `${Number(this.epoch) + 1}`;
    this.head = Math.floor(random() * (this.head + 1));
    this.floor = Math.max(0, this.head - 100);
  }

  /** The frames of a connection with these parameters, up to the head. */
  frames({ after, epoch }) {
    const { head, floor } = this;
    const cursor = this.cursor ?? { epoch: this.epoch, seq: 0 };
    const from = after === undefined ? cursor : { epoch: epoch ?? this.epoch, seq: after };
    if (from.epoch !== this.epoch || from.seq > head) {
      this.cursor = { epoch: this.epoch, seq: floor };
      return [
        connect({ epoch: this.epoch, head, floor, resume: "reset", queued: head - floor }),
        ...this.events(floor),
      ];
    }
    this.cursor = {
      epoch: this.epoch,
      seq: Math.max(from.seq, this.cursor?.epoch === this.epoch ? this.cursor.seq : 0),
    };
    const missed = Math.max(0, floor - from.seq);
    const begins = Math.max(from.seq, floor);
    const resume = missed > 0 ? "partial" : "exact";
    const said = connect({ epoch: this.epoch, head, floor, resume, missed, queued: head - begins });
    return [said, ...(missed > 0 ? [gap(from.seq + 1, floor)] : []), ...this.events(begins)];
  }

  events(after) {
    return Array.from({ length: this.head - after }, (_, index) => event(after + 1 + index));
  }
}

/** Random numbers that are the same for the same seed (mulberry32). */
function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("whatever happens, each number comes once, or in a gap, and no acknowledgement is beyond what is done", () => {
  for (let seed = 1; seed <= 400; seed += 1) {
    const random = seeded(seed);
    const server = new Server();
    const core = new Core({ random, hasState: random() < 0.3, start: "oldest" });
    let waiting = [];
    let isConnected = false;
    let at = null;
    const consume = () => {
      const item = core.take();
      if (item === null) return;
      if (item.type === "reset") at = { epoch: item.epoch, seq: item.floor };
      else if (item.type === "snapshot") assert.deepEqual({ epoch: item.epoch, seq: item.seq }, at, `seed ${seed}`);
      else {
        const [first, last] = item.type === "gap" ? [item.first, item.last] : [item.seq, item.seq];
        assert.equal(first, at.seq + 1, `seed ${seed}: ${shown(item)} after ${at.seq}`);
        at = { ...at, seq: last };
      }
      if (random() < 0.9) core.finish(); // else it is still in hand while other things happen
    };
    const acts = [
      () => {
        const count = Math.floor(random() * 60);
        server.publish(count);
        if (isConnected) waiting.push(...server.events(server.head - count));
      },
      () => {
        if (!isConnected) {
          core.opened();
          waiting = server.frames(core.parameters());
          isConnected = true;
        }
      },
      () => {
        if (isConnected) core.closed(1006, "");
        isConnected = false;
        waiting = [];
      },
      () => {
        for (const one of waiting.splice(0, Math.floor(random() * 80))) {
          core.receive(one);
          at ??= core.position;
          const seq = core.acknowledgement();
          if (seq !== null) assert.ok(seq <= core.position.seq);
        }
      },
      () => {
        for (let count = Math.floor(random() * 50); count > 0; count -= 1) {
          core.finish();
          consume();
        }
      },
      () => {
        if (!isConnected && random() < 0.3) server.restore(random);
      },
    ];
    for (let step = 0; step < 120; step += 1) acts[Math.floor(random() * acts.length)]();
    if (isConnected) core.closed(1006, "");
    connected(core, ...server.frames(core.parameters()));
    at ??= core.position;
    for (core.finish(); core.isBusy; core.finish()) consume();
    assert.deepEqual(at, { epoch: server.epoch, seq: server.head }, `seed ${seed}`);
  }
});
