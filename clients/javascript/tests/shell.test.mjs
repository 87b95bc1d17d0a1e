// The client with a socket that the test plays: tokens, stores, waits, and how it leaves. Time is the test's, too.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Ended, Follower, LocalStore } from "../client.js";
import { EPOCH, connect, event, frame } from "./frames.mjs";

const TOKEN = "a-token-that-is-never-shown";
const URL_OF_SERVER = "http://127.0.0.1:8000";

let now;
let sockets;

class Socket {
  readyState = 0;
  sent = [];
  closed = [];
  answersClose = true;

  constructor(url, protocols) {
    this.url = new URL(url);
    this.protocols = protocols;
    sockets.push(this);
  }

  get query() {
    return Object.fromEntries(this.url.searchParams);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closed.push(code);
    this.readyState = 2;
    if (this.answersClose) queueMicrotask(() => this.end(code ?? 1005));
  }

  open(...frames) {
    this.readyState = 1;
    this.onopen?.();
    this.say(...frames);
  }

  say(...frames) {
    for (const data of frames) this.onmessage?.({ data });
  }

  end(code, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

const LIVE = frame("live", { seq: 0 });

beforeEach(() => {
  now = 0;
  sockets = [];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(performance, "now", () => now);
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Let everything that can go on do so. */
async function settled() {
  for (let turn = 0; turn < 5; turn += 1) await new Promise(setImmediate);
}

async function pass(ms) {
  now += ms;
  mock.timers.tick(ms);
  await settled();
}

/** A Follower whose statuses are kept, as texts. */
function follower(options = {}) {
  const statuses = [];
  const onState = (id, { name, reason, code }) =>
    statuses.push([name, code, reason].filter((one) => one !== null).join(" "));
  const live = new Follower(URL_OF_SERVER, { token: TOKEN, WebSocket: Socket, random: () => 1, onState, ...options });
  return Object.assign(live, { statuses });
}

/** Begin to follow: the iterator, what its first `next` gives, and the socket. */
async function following(live, options) {
  const items = live.follow(42, options);
  const first = items.next();
  first.catch(() => {});
  await settled();
  return { items, first, socket: sockets.at(-1) };
}

test("the query says what is wanted, and the token travels as a subprotocol, not in the URL", async () => {
  const live = follower({ device: "phone", heartbeat: 30 });
  const { socket } = await following(live, { start: "new" });
  assert.equal(socket.url.href, "ws://127.0.0.1:8000/ws/42?heartbeat=30&start=new&device=phone&ack=app");
  assert.deepEqual(socket.protocols, ["avicenna.v1", `bearer.${TOKEN}`]);
  await live.close();
});

test("without a token and a device it only looks", async () => {
  const live = follower({ token: null });
  const { socket } = await following(live);
  assert.deepEqual([socket.query, socket.protocols], [{ heartbeat: "20" }, ["avicenna.v1"]]);
  await live.close();
});

test("an item is saved, and then acknowledged, when the next one is asked for", async () => {
  const done = [];
  const store = { load: () => null, save: async (id, { seq }) => done.push(`saved ${id} ${seq}`) };
  const { items, first, socket } = await following(follower({ store }));
  socket.send = (text) => done.push(text);
  socket.open(connect({ head: 1, queued: 1 }), event(1), LIVE);
  assert.equal((await first).value.seq, 1);
  await settled();
  assert.deepEqual(done, []);
  items.next();
  await settled();
  assert.deepEqual(done, ["saved 42 1", '{"type":"ack","seq":1}']);
  assert.deepEqual(items.position, { epoch: EPOCH, seq: 1 });
  await items.return();
});

test("a stored position is where it begins, and one that the app gives comes first", async () => {
  const store = { load: async () => ({ epoch: EPOCH, seq: 7 }), save: () => {} };
  const live = follower({ store });
  const { items, socket } = await following(live);
  assert.deepEqual([socket.query.after, socket.query.epoch], ["7", EPOCH]);
  await items.return();
  const { socket: other } = await following(live, { after: 3 });
  assert.deepEqual([other.query.after, other.query.epoch], ["3", undefined]);
  await live.close();
});

test("what a store throws leaves the iterator, and the item comes again", async () => {
  const live = follower({ store: { load: () => null, save: () => Promise.reject(new Error("the disk is full")) } });
  const { items, first, socket } = await following(live);
  socket.open(connect({ head: 1, queued: 1 }), event(1));
  await first;
  await assert.rejects(items.next(), /the disk is full/);
  assert.deepEqual([socket.sent, socket.closed], [[], [1000]]);
  const { first: again, socket: other } = await following(live);
  other.open(connect({ resume: "exact", head: 1, queued: 1 }), event(1));
  assert.equal((await again).value.seq, 1);
  await live.close();
});

test("an item over which the consumer left comes again, also without a store", async () => {
  const live = follower();
  const { items, first, socket } = await following(live);
  socket.open(connect({ head: 2, queued: 2 }), event(1), event(2));
  await first;
  await items.next();
  await items.return();
  assert.equal((await items.next()).done, true);
  const { socket: other } = await following(live);
  assert.equal(other.query.after, "1");
  await live.close();
});

test("so does the first one, also where only what is new was wanted", async () => {
  const live = follower();
  const { items, first, socket } = await following(live, { start: "new" });
  socket.open(connect({ head: 10 }), event(11));
  await first;
  await items.return();
  const { socket: other } = await following(live, { start: "new" });
  assert.deepEqual([other.query.start, other.query.after], [undefined, "10"]);
  await live.close();
});

test("the state is loaded before the events that follow, and what it throws leaves the iterator", async () => {
  let attempts = 0;
  const getState = async () => {
    if ((attempts += 1) === 1) throw new Error("not now");
    return { herb: "saffron" };
  };
  const live = follower({ getState });
  const { first, socket } = await following(live);
  assert.equal(socket.query.start, "new");
  socket.open(connect({ head: 3 }), event(4));
  await assert.rejects(first, /not now/);
  const { items, first: again, socket: other } = await following(live);
  assert.equal(other.query.start, "new");
  other.open(connect({ head: 4 }), event(5));
  assert.deepEqual((await again).value, { type: "snapshot", epoch: EPOCH, seq: 4, data: { herb: "saffron" } });
  assert.equal((await items.next()).value.seq, 5);
  await items.return();
  // Event 5 was not done with, but the state is there.
  const { socket: third } = await following(live);
  assert.equal(third.query.after, "4");
  await live.close();
});

test("it comes back after its wait, and says how it is", async () => {
  const live = follower({ backoff: { firstMs: 100, maxMs: 150 } });
  const { socket } = await following(live);
  socket.open(connect(), LIVE);
  socket.end(1006);
  await settled();
  await pass(99);
  assert.equal(sockets.length, 1);
  await pass(1);
  assert.equal(sockets.length, 2);
  sockets[1].end(1006);
  await settled();
  await pass(150);
  sockets[2].open(connect({ resume: "exact" }), LIVE);
  assert.deepEqual(live.statuses, [
    "connecting",
    "live",
    "offline 1006",
    "connecting",
    "offline 1006",
    "connecting",
    "live",
  ]);
  await live.close();
});

test("what never opens is given up after 10 s, with or without a close event", async () => {
  const live = follower();
  const { socket } = await following(live);
  await pass(9_999);
  assert.deepEqual(socket.closed, []);
  await pass(1);
  assert.deepEqual(socket.closed, [1000]);
  await pass(500);
  sockets[1].onerror({}); // Node's WebSocket says no more than this
  await settled();
  assert.deepEqual(live.statuses.at(-1), "offline 1006");
  await live.close();
});

test("silence of one and a half heartbeats drops the socket, without a wait for its close", async () => {
  const live = follower({ heartbeat: 10 });
  const { items, first, socket } = await following(live);
  socket.answersClose = false;
  socket.open(connect(), LIVE);
  await pass(14_000);
  socket.say(frame("heartbeat", { seq: 0 }));
  await pass(14_999);
  assert.deepEqual(socket.closed, []);
  await pass(1);
  assert.deepEqual([socket.closed, live.statuses.at(-1)], [[1000], "offline 1006 nothing heard"]);
  assert.equal(socket.onmessage, null, "what still comes there would come twice");
  await pass(500);
  sockets[1].open(connect({ resume: "exact", head: 1, queued: 1 }), event(1));
  assert.equal((await first).value.seq, 1);
  await items.return();
});

test("a process that slept asks the server, and looks first at what has arrived meanwhile", async () => {
  const live = follower({ heartbeat: 10 });
  const { socket } = await following(live);
  socket.open(connect(), LIVE);
  now += 3_600_000;
  await pass(15_000);
  assert.deepEqual([socket.sent, socket.closed], [[{ type: "ping" }], []]);
  await pass(1_000);
  socket.say(frame("heartbeat", { seq: 0 }));
  await pass(2_000);
  assert.deepEqual(socket.closed, []);
  now += 3_600_000;
  await pass(15_000);
  now += 3_600_000; // timers of a page that nobody looks at are all late
  await pass(3_000);
  assert.deepEqual([socket.sent.length, socket.closed], [2, [1000]]);
  await live.close();
});

test("a function is asked for a token before each connect, and before a token ends", async () => {
  let number = 0;
  const live = follower({ token: async () => `token-${(number += 1)}` });
  const { socket } = await following(live);
  assert.deepEqual(socket.protocols, ["avicenna.v1", "bearer.token-1"]);
  socket.open(connect(), LIVE, frame("auth_expiring", { seconds_left: 60 }));
  await settled();
  assert.deepEqual(socket.sent, [{ type: "auth", token: "token-2" }]);
  socket.say(frame("error", { code: "invalid_token", detail: "another sub" }));
  assert.deepEqual(live.statuses.at(-1), "live invalid_token");
  socket.say(frame("auth_ok", { expires_at: null }));
  assert.deepEqual(live.statuses.at(-1), "live");
  socket.end(1008, "token expired");
  await settled();
  assert.deepEqual(live.statuses.at(-1), "needs_auth 1008 token expired");
  await pass(0);
  assert.deepEqual(sockets[1].protocols, ["avicenna.v1", "bearer.token-3"]);
  sockets[1].end(1008, "invalid token");
  await settled();
  await pass(1_999);
  assert.equal(sockets.length, 2);
  await pass(1);
  assert.equal(sockets.length, 3);
  await live.close();
});

test("a text that was refused is not shown again; another one is, at once", async () => {
  const live = follower();
  const { socket } = await following(live);
  socket.end(1008, "revoked");
  await settled();
  await pass(600_000);
  assert.deepEqual([sockets.length, live.statuses.at(-1)], [1, "needs_auth 1008 revoked"]);
  live.useToken("another");
  await settled();
  assert.deepEqual(sockets[1].protocols, ["avicenna.v1", "bearer.another"]);
  sockets[1].open(connect(), LIVE);
  live.useToken("a-third");
  await settled();
  assert.deepEqual(sockets[1].sent, [{ type: "auth", token: "a-third" }]);
  await live.close();
});

test("a function that gives no token is asked again, and nothing it said is passed on", async () => {
  const given = [() => Promise.reject(new Error(TOKEN)), () => "with a blank", () => undefined, () => "good"];
  const live = follower({ token: () => given.shift()() });
  await following(live);
  for (const ms of [1_000, 2_000, 4_000]) {
    assert.deepEqual([sockets.length, live.statuses.at(-1)], [0, "needs_auth no token"]);
    await pass(ms);
  }
  assert.deepEqual(sockets[0].protocols, ["avicenna.v1", "bearer.good"]);
  await live.close();
});

test("where the server ended it for good, what was read comes first, and then the reason", async () => {
  const live = follower({ device: "phone" });
  const { items, first, socket } = await following(live);
  socket.open(connect({ head: 2, queued: 2 }), event(1), event(2), LIVE);
  socket.say(frame("bye", { code: 4000, reason: "replaced", retry_after_ms: null }));
  socket.end(4000, "replaced");
  await settled();
  assert.deepEqual([(await first).value.seq, (await items.next()).value.seq], [1, 2]);
  await assert.rejects(
    items.next(),
    (error) => error instanceof Ended && error.code === 4000 && error.reason === "replaced",
  );
  assert.deepEqual(await items.next(), { done: true, value: undefined });
  assert.deepEqual(live.statuses, ["connecting", "live", "ended 4000 replaced"]);
  assert.equal(items.status.name, "ended");
  assert.equal(sockets.length, 1);
});

test("a frame that breaks the protocol ends the connection, and it comes back", async () => {
  const live = follower();
  const { socket } = await following(live);
  socket.open(connect({ head: 2, queued: 2 }), event(2));
  await settled();
  assert.deepEqual([socket.closed, live.statuses.at(-1)], [[4002], "offline 1006 number 2 after 0"]);
  await pass(500);
  assert.equal(sockets.length, 2);
  await live.close();
});

test("leaving closes in order, and waits 2 s at most", async () => {
  const { items, first, socket } = await following(follower());
  socket.answersClose = false;
  socket.open(connect(), LIVE);
  let isLeft = false;
  items.return().then(() => (isLeft = true));
  await settled();
  assert.deepEqual(await first, { done: true, value: undefined });
  assert.deepEqual(socket.closed, [1000]);
  await pass(1_999);
  assert.equal(isLeft, false);
  await pass(1);
  assert.equal(isLeft, true);
  await pass(600_000);
  assert.equal(sockets.length, 1);
});

test("leaving ends every wait", async () => {
  const never = new Promise(() => {});
  const cases = [{ token: () => never }, {}];
  for (const options of cases) {
    const live = follower(options);
    const { first, socket } = await following(live);
    socket?.open(connect({ head: 1, queued: 1 }), event(1));
    await settled();
    if (socket === undefined) assert.equal(sockets.length, 0);
    else socket.end(1012);
    await live.close();
    if (socket === undefined) assert.equal((await first).done, true);
    await pass(600_000);
  }
  assert.equal(sockets.length, 1);
});

test("leaving ends the loop within 2 s, also where a function of the app never answers", async () => {
  const never = () => new Promise(() => {});
  const cases = [{ store: { load: never, save: () => {} } }, { store: { load: () => null, save: never } }];
  for (const options of [...cases, { getState: never }]) {
    const live = follower(options);
    const { items, first, socket } = await following(live);
    socket?.open(connect({ head: 1, queued: 1 }), event(1));
    await settled();
    const waiting = options.store?.save === never ? items.next() : first;
    let answer = null;
    waiting.then((given) => (answer = given));
    await settled();
    await live.close();
    await pass(1_999);
    assert.equal(answer, null);
    await pass(1);
    assert.deepEqual(answer, { done: true, value: undefined });
    assert.equal((await items.next()).done, true);
  }
});

test("a function of the app that answers after `close` has its answer kept, and no item comes", async () => {
  let answer;
  const later = () => new Promise((resolve) => (answer = resolve));
  const saving = follower({ store: { load: () => null, save: later } });
  const { items, first, socket } = await following(saving);
  socket.open(connect({ head: 2, queued: 2 }), event(1), event(2));
  await first;
  const second = items.next();
  await settled();
  await saving.close();
  answer();
  assert.deepEqual([(await second).done, items.position.seq], [true, 1]);

  const loading = follower({ getState: later });
  const { items: states, first: state, socket: other } = await following(loading);
  other.open(connect());
  await settled();
  await loading.close();
  answer({});
  answer = null;
  assert.equal((await state).done, true);
  await states.next();
  const { socket: third } = await following(loading);
  third.open(connect());
  await settled();
  assert.equal(typeof answer, "function", "a state that nobody saw is loaded again");
  await loading.close();
});

test("a position that is saved late does not take back what a later `follow` has reached", async () => {
  const answers = [];
  const live = follower({ store: { load: () => null, save: () => new Promise((resolve) => answers.push(resolve)) } });
  const { items, first, socket } = await following(live);
  socket.open(connect({ head: 1, queued: 1 }), event(1));
  await first;
  items.next();
  await settled();
  await live.close();
  await pass(2_000);
  const { items: again, first: repeated, socket: second } = await following(live);
  second.open(connect({ head: 2, queued: 2 }), event(1), event(2));
  await repeated;
  const next = again.next();
  await settled();
  answers[1]();
  await next;
  const last = again.next();
  await settled();
  answers[2]();
  await settled();
  await live.close();
  await last;
  answers[0]();
  await settled();
  const { socket: third } = await following(live);
  assert.equal(third.query.after, "2");
  await live.close();
});

test("a store that gives no position is named, and where it begins is not guessed", async () => {
  for (const given of [{}, "x", ["e", 1], { epoch: 5, seq: 1 }, { epoch: "e", seq: "1" }, { epoch: "e", seq: -1 }]) {
    const { first } = await following(follower({ store: { load: () => given, save: () => {} } }));
    await assert.rejects(first, /store\.load must give/);
  }
  assert.equal(sockets.length, 0);
});

test("a consumer that is done after `close` has its position saved, and no more comes", async () => {
  const saved = [];
  const live = follower({ store: { load: () => null, save: (_, { seq }) => saved.push(seq) } });
  const { items, first, socket } = await following(live);
  socket.open(connect({ head: 2, queued: 2 }), event(1), event(2));
  await first;
  await live.close();
  assert.equal((await items.next()).done, true);
  assert.deepEqual(saved, [1]);
});

test("a consumer that is too far behind gets all that was read, and then a new connection", async () => {
  const live = follower();
  const { items, first, socket } = await following(live);
  socket.open(connect(), LIVE);
  for (let seq = 1; seq <= 1500; seq += 1) socket.say(event(seq));
  await settled();
  assert.deepEqual([socket.closed, live.statuses.at(-1)], [[1000], "offline 1006 the consumer is behind"]);
  await pass(600_000);
  let { value } = await first;
  for (; value.seq < 1000; { value } = await items.next()) assert.equal(sockets.length, 1);
  items.next();
  await settled();
  await pass(600_000);
  assert.equal(sockets[1].query.after, "1000");
  await live.close();
});

test("a diagnosis is followed once at a time; several go side by side", async () => {
  const live = follower();
  const { items } = await following(live);
  await assert.rejects(live.follow("42").next(), /follows diagnosis 42 already/);
  const other = live.follow(43);
  other.next();
  await settled();
  assert.equal(sockets.length, 2);
  await items.return();
  await following(live);
  assert.equal(sockets.length, 3);
  await live.close();
});

test("a second `next` before the first has answered is an error", async () => {
  const { items } = await following(follower());
  await assert.rejects(items.next(), /before it had answered/);
  await items.return();
});

test("what the app's callback throws leaves the iterator", async () => {
  const live = follower({
    onState: () => {
      throw new Error("a mistake of the app");
    },
  });
  const { first } = await following(live);
  await assert.rejects(first, /a mistake of the app/);
});

test("wrong options are refused by name, and no token is shown", () => {
  const make = (options, url = URL_OF_SERVER) => new Follower(url, { WebSocket: Socket, ...options });
  for (const [options, named] of [
    [{ token: "two words" }, /token must be/],
    [{ token: "t".repeat(7169) }, /token must be/],
    [{ token: 5 }, /token must be/],
    [{ device: "" }, /device must be/],
    [{ device: "ü" }, /device must be/],
    [{ heartbeat: 4 }, /heartbeat must be/],
    [{ heartbeat: 7.5 }, /heartbeat must be/],
    [{ getState: {} }, /getState must be/],
    [{ onState: "say" }, /onState must be/],
    [{ random: 0.5 }, /random must be/],
    [{ WebSocket: "ws" }, /WebSocket must be/],
    [{ store: { load: () => null } }, /store must have/],
    [{ store: 5 }, /store must have/],
    [{ backoff: { firstMs: NaN } }, /backoff\.firstMs must be/],
    [{ backoff: { firstMs: -1 } }, /backoff\.firstMs must be/],
    [{ backoff: { maxMs: Infinity } }, /backoff\.maxMs must be/],
    [{ backoff: { maxMs: "30" } }, /backoff\.maxMs must be/],
    [{ backoff: 500 }, /backoff must be/],
  ]) {
    assert.throws(() => make(options), named);
  }
  assert.throws(
    () => make({ token: `${TOKEN} ` }),
    (error) => !`${error.message}${error.stack}`.includes(TOKEN),
  );
  for (const url of ["ws://h", "http://h/path", "http://h?a=1", "http://u:p@h", "ftp://h", "nonsense", ""]) {
    assert.throws(() => make({}, url), /url must be/);
  }
  for (const id of ["", "a/b", "ü", "x".repeat(65), 1.5, 2 ** 60, NaN, null, undefined, true, [42], {}])
    assert.throws(() => make({}).follow(id), /diagnosisId must be/);
  assert.throws(() => make({}).follow(42, { after: -1 }), /after must be/);
  assert.throws(() => make({}).follow(42, { epoch: "e" }), /epoch goes together/);
  assert.throws(() => make({}).follow(42, { after: 1, epoch: 5 }), /epoch must be/);
  for (const start of ["later", "5", -1, 1.5, NaN]) assert.throws(() => make({}).follow(42, { start }), /start must be/);
  make({ backoff: { firstMs: undefined } }).follow(42, { start: 5 });
});

test("a wait that was not chosen is the default, also where it is named", async () => {
  const live = follower({ backoff: { firstMs: undefined, maxMs: undefined } });
  const { socket } = await following(live);
  socket.end(1006);
  await settled();
  await pass(499);
  assert.equal(sockets.length, 1);
  await pass(1);
  assert.equal(sockets.length, 2);
  await live.close();
});

test("the error of an end without a reason has none", () => {
  assert.equal(new Ended(4001, null).message, "the server ended it: 4001");
  assert.equal(new Ended(4000, "replaced").message, "the server ended it: 4000 replaced");
});

test("where there is no WebSocket, the error says what to do", () => {
  const { WebSocket } = globalThis;
  try {
    globalThis.WebSocket = undefined;
    assert.throws(() => new Follower(URL_OF_SERVER), /pass one/);
  } finally {
    globalThis.WebSocket = WebSocket;
  }
});

/**
 * A page, as far as the client looks at it: with a storage that is there, or denied.
 *
 * `act` gets the names of the Web Locks that are held. `hasLocks`: the page came over HTTPS.
 */
async function inPage(act, { storage = new Map(), hasLocks = true } = {}) {
  const page = new EventTarget();
  const window = new EventTarget();
  page.visibilityState = "visible";
  const held = [];
  const locks = {
    request: async (name, _, use) => {
      if (held.includes(name)) return use(null);
      held.push(name);
      await use({});
      held.splice(held.indexOf(name), 1);
    },
  };
  const shelf = { getItem: (key) => storage.get(key) ?? null, setItem: (key, value) => storage.set(key, value) };
  const denied = {
    get() {
      throw new Error("denied");
    },
  };
  const storages = storage === null ? denied : { value: shelf };
  const globals = {
    document: { value: page },
    addEventListener: { value: window.addEventListener.bind(window) },
    localStorage: storages,
    sessionStorage: storages,
    navigator: { value: hasLocks ? { locks } : {} },
  };
  const before = Object.keys(globals).map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
  for (const [name, one] of Object.entries(globals)) {
    Object.defineProperty(globalThis, name, { ...one, configurable: true });
  }
  try {
    await act({ page, window, held });
  } finally {
    for (const [name, one] of before) {
      delete globalThis[name];
      if (one !== undefined) Object.defineProperty(globalThis, name, one);
    }
  }
}

test("a page that is looked at again, or is online again, does not wait any longer", async () => {
  await inPage(async ({ page, window }) => {
    const live = follower({ backoff: { firstMs: 30_000 } });
    await following(live);
    for (const [target, name] of [
      [page, "visibilitychange"],
      [window, "online"],
      [page, "resume"],
      [window, "pageshow"],
    ]) {
      sockets.at(-1).end(1006);
      await settled();
      const { length } = sockets;
      target.dispatchEvent(new Event(name));
      await settled();
      assert.equal(sockets.length, length + 1, name);
    }
    sockets.at(-1).end(1006);
    await settled();
    page.visibilityState = "hidden";
    page.dispatchEvent(new Event("visibilitychange"));
    await settled();
    assert.equal(sockets.length, 5);
    window.dispatchEvent(new Event("online"));
    await settled();
    sockets.at(-1).end(1008, "revoked");
    await settled();
    window.dispatchEvent(new Event("online"));
    await settled();
    assert.equal(sockets.length, 6, "the token is still the one that was refused");
    await live.close();
  });
});

test("a page that is looked at again asks the server, and drops a socket on which no answer comes", async () => {
  await inPage(async ({ page, window }) => {
    const live = follower({ heartbeat: 30 });
    const { socket } = await following(live);
    socket.open(connect(), LIVE);
    await pass(5_000);
    page.dispatchEvent(new Event("visibilitychange"));
    await pass(1_000);
    socket.say(frame("pong"));
    await pass(40_000);
    assert.deepEqual([socket.sent, socket.closed], [[{ type: "ping" }], []]);
    window.dispatchEvent(new Event("online"));
    await pass(2_999);
    assert.deepEqual([socket.sent.length, socket.closed], [2, []]);
    await pass(1);
    assert.deepEqual([socket.closed, live.statuses.at(-1)], [[1000], "offline 1006 nothing heard"]);
    await live.close();
  });
});

test("a page that is looked at again asks nothing on a socket that is not open yet", async () => {
  await inPage(async ({ page }) => {
    const live = follower();
    const { socket } = await following(live);
    page.dispatchEvent(new Event("visibilitychange"));
    await pass(5_000);
    socket.open(connect(), LIVE);
    assert.deepEqual([socket.sent, socket.closed], [[], []]);
    await live.close();
  });
});

test("a page that is put aside lets go of its sockets and its name, and comes back with its position", async () => {
  await inPage(async ({ window, held }) => {
    const live = follower();
    const { items, first, socket } = await following(live);
    const name = `avicenna-live/${socket.query.device}`;
    assert.deepEqual(held, [name]);
    socket.open(connect({ head: 2, queued: 2 }), event(1), event(2), LIVE);
    await first;
    window.dispatchEvent(new Event("pagehide"));
    await settled();
    assert.deepEqual([socket.closed, held], [[1000], []]);
    await pass(600_000);
    assert.deepEqual(live.statuses, ["connecting", "live", "offline 1006 the page is put aside"]);
    window.dispatchEvent(new Event("pageshow"));
    await settled();
    assert.deepEqual([sockets[1].query.after, held], ["0", [name]]);
    sockets[1].open(connect({ resume: "exact", head: 3, queued: 3 }), event(1), event(2), event(3));
    assert.deepEqual([(await items.next()).value.seq, (await items.next()).value.seq], [2, 3]);
    await live.close();
    await settled();
    assert.deepEqual(held, []);
  });
});

test("a page that is put aside opens no socket, also where it was about to", async () => {
  await inPage(async ({ window }) => {
    let give;
    const live = follower({ token: () => new Promise((resolve) => (give = resolve)) });
    await following(live);
    window.dispatchEvent(new Event("pagehide"));
    give(TOKEN);
    await settled();
    assert.equal(sockets.length, 0);
    window.dispatchEvent(new Event("pageshow"));
    await settled();
    give(TOKEN);
    await settled();
    assert.equal(sockets.length, 1);
    await live.close();
  });
});

test("a Follower that is closed listens to the page no longer", async () => {
  await inPage(async ({ page, window }) => {
    const signals = [page, window].flatMap((target) => {
      const found = [];
      const add = target.addEventListener.bind(target);
      target.addEventListener = (name, act, options) => found.push(options.signal) && add(name, act, options);
      return [found];
    });
    Object.defineProperty(globalThis, "addEventListener", { value: window.addEventListener, configurable: true });
    const live = follower();
    await live.close();
    assert.deepEqual(
      signals.map((found) => found.length),
      [2, 3],
    );
    assert.ok(signals.flat().every(({ aborted }) => aborted));
  });
});

test("a page has a device name of its own, also where storage or locks are denied, and none where the app says so", async () => {
  const [numbered, random] = [/^web-[0-9a-f]{16}[.]1$/, /^web-[0-9a-f]{16}[.][0-9a-f]{16}$/];
  for (const [page, name] of [
    [{}, numbered],
    [{ storage: null }, numbered],
    [{ hasLocks: false }, random],
  ]) {
    await inPage(async () => {
      const live = follower();
      const { socket } = await following(live);
      assert.match(socket.query.device, name);
      await live.close();
      const nameless = follower({ device: null });
      const { socket: other } = await following(nameless);
      assert.equal(other.query.device, undefined);
      await nameless.close();
    }, page);
  }
});

test("a tab goes on from its own position after a reload, and loads its state where it has to", async () => {
  const storage = new Map();
  await inPage(
    async () => {
      const live = follower();
      const { items, first, socket } = await following(live);
      socket.open(connect({ head: 2, queued: 2 }), event(1), event(2));
      await first;
      items.next();
      await settled();
      await live.close();
    },
    { storage },
  );
  await inPage(
    async () => {
      const live = follower({ getState: () => ({}) });
      const { items, first, socket } = await following(live);
      assert.deepEqual([socket.query.after, socket.query.epoch], ["1", EPOCH]);
      socket.open(connect({ resume: "exact", head: 2, queued: 1 }), event(2));
      assert.equal((await first).value.type, "snapshot");
      assert.equal((await items.next()).value.seq, 2);
      await live.close();
    },
    { storage },
  );
});

test("a tab goes on from its own position, not from one that another tab left under its name", async () => {
  const storage = new Map();
  const begins = async () => {
    const live = follower({ store: new LocalStore() });
    const { socket } = await following(live);
    await live.close();
    return [socket.query.after, socket.query.device];
  };
  await inPage(
    async () => {
      const [, device] = await begins();
      new LocalStore().save(42, { epoch: EPOCH, seq: 9 }, device);
      assert.deepEqual(await begins(), ["9", device]);
      storage.set(`avicenna-live/position/0/${URL_OF_SERVER} 42`, JSON.stringify({ epoch: EPOCH, seq: 5 }));
      assert.deepEqual(await begins(), ["5", device]);
    },
    { storage },
  );
});

test("two Followers of one page have each its place, and one that could not be made has none", async () => {
  const storage = new Map();
  await inPage(
    async () => {
      assert.throws(() => follower({ token: "two words" }), /token must be/);
      const [one, other] = [follower(), follower()];
      const { items, first, socket } = await following(one);
      socket.open(connect({ head: 1, queued: 1 }), event(1));
      await first;
      items.next();
      await settled();
      const { socket: second } = await following(other);
      assert.equal(second.query.after, undefined);
      const names = [0, 1].map((place) => JSON.parse(storage.get(`avicenna-live/name/${place}`)));
      assert.deepEqual(names, [socket.query.device, second.query.device]);
      assert.notEqual(...names);
      await Promise.all([one.close(), other.close()]);
    },
    { storage },
  );
});

test("positions in `localStorage` are those of a device name; without one, memory has them", () => {
  const position = { epoch: EPOCH, seq: 3 };
  const storage = new Map();
  const check = async (store) => {
    store.save(42, position, "one");
    assert.deepEqual(store.load(42, "one"), position);
    for (const [id, device] of [
      [43, "one"],
      [42, "other"],
      [42, null],
    ])
      assert.equal(store.load(id, device), null);
    assert.equal(new LocalStore("another").load(42, "one"), null);
  };
  return inPage(
    async () => {
      await check(new LocalStore());
      assert.equal(storage.size, 1);
      for (const wrong of ["{", "{}", '{"seq":-1,"epoch":"e"}', "null", "5"]) {
        for (const key of storage.keys()) storage.set(key, wrong);
        assert.equal(new LocalStore().load(42, "one"), null);
      }
    },
    { storage },
  ).then(() => check(new LocalStore()));
});
