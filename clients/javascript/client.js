/**
 * Follows diagnoses of an Avicenna Live server: every update once and in order, or a gap that names what is missing.
 *
 *     import { Follower } from "/client.js";
 *     const live = new Follower(location.origin, { token });
 *     for await (const item of live.follow(42)) apply(item);
 *
 * For browsers and for Node 22 and later; it needs nothing else. `client.d.ts` has the types, README.md the rules.
 * `Core` decides everything and is pure: no socket, no clock, and its random numbers are given. `Follower`, `Following`
 * and `Connection` below it have the sockets, the timers, the page and the functions of the app.
 *
 * MIT licence.
 */

/** Items that a consumer has not taken. A page cannot stop reading: beyond, the socket goes until it has caught up. */
const AHEAD_MAX = 1000;

/** From the start of a connection until it is open. Beyond: it counts as broken. */
const OPEN_MS_MAX = 10_000;

/** For the server's Close after ours, and for a function of the app that still runs when it is left. */
const CLOSE_MS_MAX = 2_000;

/** Longest wait that a timer takes: beyond, it is over at once. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/** Silence that a socket may keep at least, whatever the heartbeat. */
const SILENT_MS_MIN = 5_000;

/** A timer that comes so much later than it was due says that this process slept, not that the server was silent. */
const LATE_MS = 1_000;

/** Where a socket is in doubt the server is asked, and has so long to answer. */
const ANSWER_MS_MAX = 3_000;

/** Longest wait a server can ask for. Beyond: this one. */
const RETRY_AFTER_MS_MAX = 300_000;

/** Waits before coming back, and before a function is asked for a token again: random, up to a bound that doubles. */
const BACKOFF = { firstMs: 500, maxMs: 30_000 };
const REFUSED = { firstMs: 1_000, maxMs: 30_000 };

/** Names for the tabs of one browser: as many as the server keeps for a user and diagnosis. */
const NAMES_MAX = 100;

/** Our Close after a frame that breaks the protocol. A page may send no code below 3000 but 1000. */
const PROTOCOL_FAULT = 4002;

const TOKEN_CHARACTERS_MAX = 7 * 1024;

const EVENTS = new Set(["recommendation_update", "effectiveness_update", "feedback_update"]);
const COME_BACK = new Set([1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015]);
const NEEDS_AUTH = new Set(["invalid token", "token expired", "revoked"]);

/** The server has ended this for good; `code` and `reason` are those of its Close. */
export class Ended extends Error {
  constructor(code, reason) {
    super(`the server ended it: ${[code, reason].filter((said) => said !== null).join(" ")}`);
    this.name = "Ended";
    this.code = code;
    this.reason = reason;
  }
}

/** The server does not keep to the protocol. */
export class Fault extends Error {}

/* ---- the core: pure ---- */

/** What follows a close code, or an HTTP status in place of an upgrade: "come_back", "needs_auth" or "ended". */
export function afterClose(code, reason) {
  if (COME_BACK.has(code) || code === 429 || (code >= 500 && code <= 599)) return "come_back";
  if (code === 401 || (code === 1008 && NEEDS_AUTH.has(reason))) return "needs_auth";
  return "ended";
}

/** A wait in ms after `failures` failures: a random part of a bound that doubles (full jitter). */
export function jitter({ firstMs, maxMs }, failures, random) {
  return random() * Math.min(maxMs, firstMs * 2 ** Math.min(failures, 30));
}

/**
 * In how many ms to look again whether the server is heard; 0: it is silent; null: ask it, and look when it should have
 * answered. All times are ms of a monotonic clock; `askedAt` is null where it was never asked.
 *
 * A process that slept finds its timers before the messages that arrived meanwhile, so a timer that comes late proves
 * nothing. A page that nobody looks at has only late timers, so it asks once.
 */
export function patience({ now, heardAt, askedAt, dueAt, silentMs }) {
  if (askedAt !== null && askedAt > heardAt) return Math.max(0, askedAt + ANSWER_MS_MAX - now);
  const left = heardAt + silentMs - now;
  if (left > 0) return left;
  return now - dueAt > LATE_MS ? null : 0;
}

/**
 * What one follow knows, over all its connections: where it stands, what it has read ahead, what it may acknowledge,
 * and whether and when it comes back.
 *
 * A position is `{ epoch, seq }`. An entry of what is read ahead is `{ item, reaches }`: `reaches` is the position once
 * the consumer is done with the item, null where only the Snapshot behind it reaches one.
 */
export class Core {
  /** Up to here the consumer is done; null: the server decides where we begin. The `epoch` of an app may be null. */
  position;
  /** Whether the app's state is still to be loaded: it has no position of its own. */
  isFresh;

  #start;
  #hasState;
  #backoff;
  #random;
  /** The last number read, on whatever connection. */
  #received;
  #ahead = [];
  #taken = null;
  #connection = null;
  /** Connections that ended since the last one that was live. */
  #failures = 0;
  /** Tokens refused since a connection ended for another reason, or since a new one was accepted. */
  #refusals = 0;

  constructor({ position = null, isFresh = position === null, start = null, hasState = false, backoff, random }) {
    this.position = this.#received = position;
    this.isFresh = isFresh;
    this.#start = start ?? (hasState ? "new" : null);
    this.#hasState = hasState;
    this.#backoff = { ...BACKOFF, ...backoff };
    this.#random = random ?? Math.random;
  }

  /** The query parameters that say where the next connection begins. */
  parameters() {
    if (this.position === null) return this.#start === null ? {} : { start: this.#start };
    const { epoch, seq } = this.position;
    return epoch === null ? { after: seq } : { after: seq, epoch };
  }

  /** A connection begins. */
  opened() {
    this.#connection = { epoch: null, seq: null, acknowledges: false, acked: null, isLive: false, bye: null };
  }

  /** Whether the connection has said `connect`. */
  get isAdmitted() {
    return this.#connection?.epoch != null;
  }

  /** Whether the connection has said `live`. */
  get isLive() {
    return this.#connection?.isLive ?? false;
  }

  /** Whether the consumer has an item, or could have one. */
  get isBusy() {
    return this.#taken !== null || this.#ahead.length > 0;
  }

  /** Whether more is read ahead than may be. */
  get isBehind() {
    return this.#ahead.length >= AHEAD_MAX;
  }

  /** Take a frame of the server; the frame, parsed. Throws a `Fault`. */
  receive(text) {
    const frame = parsed(text);
    const connection = this.#connection;
    const data = frame.data ?? {};
    if (frame.type === "connect") this.#begin(data);
    else if (frame.type === "bye") connection.bye = isWhole(data.code) ? data : null;
    else if (frame.type === "auth_ok") this.#refusals = 0;
    else if (frame.type === "live") {
      connection.isLive = true;
      this.#failures = 0;
      this.#refusals = 0; // this token is a good one
    } else if (frame.type === "gap") {
      if (this.#reads(data.from, data.to)) {
        const first = Math.max(data.from, this.#received.seq + 1);
        this.#read({ type: "gap", first, last: data.to, reason: data.reason }, data.to);
      }
    } else if ((EVENTS.has(frame.type) || frame.seq !== undefined) && this.#reads(frame.seq, frame.seq)) {
      const { type, diagnosis_id, seq, timestamp } = frame;
      const { epoch } = connection;
      if (EVENTS.has(type)) this.#read({ type, diagnosis_id, seq, epoch, timestamp, data }, seq);
      // A kind that a later server has is passed over, and its number is no hole.
      else this.#received = { epoch, seq };
    }
    return frame;
  }

  #begin({ epoch, head, floor, queued, missed, resume, ack }) {
    const connection = this.#connection;
    const begins = resume === "reset" ? floor : head - queued - missed;
    if (typeof epoch !== "string" || !isWhole(begins)) throw new Fault("a connect without its numbers");
    Object.assign(connection, { epoch, seq: begins, acked: begins, acknowledges: ack === "app" });
    const known = this.#received?.epoch ?? null;
    // A client without a position asks the server for its own, and so may hear of another epoch without a reset: where
    // the connection that said so broke before it was heard.
    if (resume === "reset" || (known !== null && known !== epoch)) {
      // Where the Reset to this epoch is not done with, it is still there, and what was read behind it, too.
      const isPending = known === epoch && this.position?.epoch !== epoch;
      if (!isPending || begins > this.#received.seq) {
        this.#ahead = [];
        this.#read({ type: "reset", epoch, floor: begins }, begins);
      }
      return;
    }
    if (known === null) this.position = this.#received = { epoch, seq: this.#received?.seq ?? begins };
    if (begins > this.#received.seq) throw new Fault("it does not go on here");
    if (this.isFresh && this.#hasState && !this.isBusy) this.#aheadOf(this.position);
    if (!this.#hasState) this.isFresh = false;
  }

  /** Whether these numbers, the next on this connection, are news. */
  #reads(first, last) {
    const connection = this.#connection;
    if (!this.isAdmitted || !isWhole(first) || !isWhole(last) || last < first) throw new Fault("numbers that are none");
    if (last <= connection.seq) return false;
    if (first !== connection.seq + 1) throw new Fault(`number ${first} after ${connection.seq}`);
    connection.seq = last;
    return last > this.#received.seq;
  }

  #read(item, seq) {
    this.#received = { epoch: this.#connection.epoch, seq };
    const hasSnapshot = this.#hasState && !EVENTS.has(item.type);
    this.#ahead.push({ item, reaches: hasSnapshot ? null : this.#received });
    if (hasSnapshot) this.#aheadOf(this.#received);
  }

  /** The app's state, to be loaded when the consumer comes to it. */
  #aheadOf(position) {
    this.#ahead.push({ item: { type: "snapshot", ...position }, reaches: position });
  }

  /** The next item for the consumer, null: there is none. */
  take() {
    this.#taken = this.#ahead.shift() ?? null;
    return this.#taken?.item ?? null;
  }

  /** The position that the item in hand reaches, null: none. */
  get reaches() {
    return this.#taken?.reaches ?? null;
  }

  /** The consumer is done with the item in hand. */
  finish() {
    if (this.reaches !== null) {
      this.position = this.reaches;
      this.isFresh = false;
    }
    this.#taken = null;
  }

  /** The consumer has left the item in hand: it is not done with. */
  abandon() {
    this.#taken = null;
  }

  /** The number to acknowledge on this connection now, null: none. */
  acknowledgement() {
    const connection = this.#connection;
    if (!connection?.acknowledges || this.position?.epoch !== connection.epoch) return null;
    // A number read on an earlier connection may not have come on this one yet; the server refuses an ack beyond.
    const seq = Math.min(this.position.seq, connection.seq);
    if (seq <= connection.acked) return null;
    connection.acked = seq;
    return seq;
  }

  /**
   * The connection is over.
   *
   * @returns `{ then, code, reason, waitMs }`: `then` as `afterClose` has it, `waitMs` before the next attempt.
   */
  closed(code, reason) {
    const { bye } = this.#connection;
    const wasAdmitted = this.isAdmitted;
    this.#connection = null;
    // A connection that broke behind its `bye` is over for the reason the `bye` gave.
    if (bye !== null && (code === 1005 || code === 1006)) ({ code, reason } = bye);
    const then = afterClose(code, reason);
    if (then === "needs_auth") return { then, code, reason, waitMs: this.refused(wasAdmitted) };
    this.#refusals = 0;
    const asked = bye?.retry_after_ms;
    const isAsked = typeof asked === "number" && asked >= 0;
    const waitMs = isAsked ? Math.min(asked, RETRY_AFTER_MS_MAX) : jitter(this.#backoff, this.#failures, this.#random);
    this.#failures += 1;
    return { then, code, reason: reason || null, waitMs };
  }

  /** How long to wait before a function is asked for a token again: not at all where the last one was an older one. */
  refused(wasOlder) {
    const waitMs = wasOlder && this.#refusals === 0 ? 0 : jitter(REFUSED, this.#refusals, this.#random);
    this.#refusals += 1;
    return waitMs;
  }
}

function parsed(text) {
  let frame;
  try {
    frame = JSON.parse(text);
  } catch {
    throw new Fault("a frame that is not JSON");
  }
  if (typeof frame?.type !== "string" || typeof (frame.data ?? {}) !== "object")
    throw new Fault("a frame that is none");
  return frame;
}

function isWhole(number) {
  return Number.isSafeInteger(number) && number >= 0;
}

/* ---- where positions and names are kept ---- */

/** A storage of the page, `localStorage` or `sessionStorage`, or, where there is none or it is denied, memory. */
class Shelf {
  #kept = new Map();
  #name;

  constructor(name) {
    this.#name = name;
  }

  get(key) {
    const storage = this.#storage();
    if (storage === null) return this.#kept.get(key) ?? null;
    try {
      return JSON.parse(storage.getItem(`avicenna-live/${key}`));
    } catch {
      return null; // somebody else's text
    }
  }

  set(key, value) {
    const storage = this.#storage();
    if (storage === null) this.#kept.set(key, value);
    try {
      storage?.setItem(`avicenna-live/${key}`, JSON.stringify(value));
    } catch {
      // It is full: what stays there is older, which costs a repeat.
    }
  }

  #storage() {
    try {
      return globalThis[this.#name] ?? null;
    } catch {
      return null;
    }
  }
}

const ofBrowser = new Shelf("localStorage");
const ofTab = new Shelf("sessionStorage");

/** A store in `localStorage`, with a position for each device name: two tabs never write over each other's. */
export class LocalStore {
  #name;

  /** @param name keeps apart what would be the same: servers, or lists of one page. */
  constructor(name = "") {
    this.#name = name;
  }

  load(diagnosisId, device) {
    return asPosition(ofBrowser.get(this.#key(diagnosisId, device)));
  }

  save(diagnosisId, position, device) {
    ofBrowser.set(this.#key(diagnosisId, device), position);
  }

  #key(diagnosisId, device) {
    return ["position", this.#name, device ?? "", diagnosisId].join("/");
  }
}

function asPosition(value) {
  return isWhole(value?.seq) && (value.epoch === null || typeof value.epoch === "string") ? value : null;
}

/**
 * The name of a tab, one of its browser's, and up to where this tab has come, for as long as it lives.
 *
 * A tab holds its name with a Web Lock, which ends with it however it ends, so no two tabs have one name. A tab that
 * was discarded may find its name taken, and a duplicated one does; it takes another, and goes on from its own
 * positions. Those are in `sessionStorage`, which is the tab's alone and survives a reload and a discard.
 */
class Tab {
  static #used = new Set();
  #number = 0;
  /** A promise of `{ name, release }`; null: there is no name now. */
  #held = null;

  constructor() {
    while (Tab.#used.has(this.#number)) this.#number += 1;
    Tab.#used.add(this.#number);
  }

  /** The name; taken if there is none. */
  async name() {
    this.#held ??= this.#take();
    return (await this.#held).name;
  }

  async #take() {
    let own = ofBrowser.get("device");
    if (!OWN_NAME.test(own)) ofBrowser.set("device", (own = `web-${randomName()}`));
    const numbered = Array.from({ length: NAMES_MAX }, (_, index) => `${own}.${index + 1}`);
    const last = ofTab.get(`name/${this.#number}`);
    for (const name of numbered.includes(last) ? [last, ...numbered] : numbered) {
      const release = await locked(`avicenna-live/${name}`);
      if (release === undefined) break;
      if (release === null) continue;
      ofTab.set(`name/${this.#number}`, name);
      return { name, release };
    }
    // No locks (a page that did not come over HTTPS), or no name: one of this document alone.
    return { name: `${own}.${randomName()}`, release: null };
  }

  /** Let another tab have the name. */
  giveUp() {
    this.#held?.then(({ release }) => release?.());
    this.#held = null;
  }

  /** The place in this document is free. */
  close() {
    this.giveUp();
    Tab.#used.delete(this.#number);
  }

  load(key) {
    return asPosition(ofTab.get(`position/${this.#number}/${key}`));
  }

  save(key, position) {
    ofTab.set(`position/${this.#number}/${key}`, position);
  }
}

/** Take a Web Lock; a function that releases it, null: somebody has it, undefined: there are no locks here. */
function locked(name) {
  return new Promise((resolve) => {
    const held = (lock) => (lock === null ? resolve(null) : new Promise((release) => resolve(release)));
    const locks = globalThis.navigator?.locks;
    if (locks === undefined) resolve(undefined);
    else locks.request(name, { ifAvailable: true }, held).catch(() => resolve(undefined));
  });
}

function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/* ---- the shell: sockets, timers, the page, and the functions of the app ---- */

/** One socket until it is over: it opens in time, is heard in time, and closes in time. */
class Connection {
  #socket;
  #isOpen = false;
  /** As `patience` has them. */
  #times;
  #timer;
  #over;
  /** Resolves to `{ code, reason }` when it is over. */
  ended;

  constructor(socket, silentMs, onText) {
    this.#socket = socket;
    this.#times = { silentMs, heardAt: 0, askedAt: null, dueAt: 0 };
    this.ended = new Promise((resolve) => (this.#over = resolve));
    socket.onopen = () => {
      this.#isOpen = true;
      this.#times.heardAt = performance.now();
      this.#lookIn(silentMs);
    };
    socket.onmessage = ({ data }) => {
      this.#times.heardAt = performance.now();
      onText(data);
    };
    // A close follows, but not from Node's WebSocket where no connection came about.
    socket.onerror = () => this.#finish(1006, "");
    socket.onclose = ({ code, reason }) => this.#finish(code, reason);
    this.#lookIn(OPEN_MS_MAX);
  }

  send(frame) {
    // A socket that is closing takes no more, and some throw then.
    if (this.#isOpen && this.#socket.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** Ask whether the server is still there: the page may have slept, or the network may be another one. */
  ask() {
    if (!this.#isOpen) return;
    this.send({ type: "ping" });
    this.#times.askedAt = performance.now();
    this.#lookIn(ANSWER_MS_MAX);
  }

  /** Let go of the socket now, without a wait for its end. What still comes on it is not looked at. */
  drop(reason, code) {
    this.#finish(1006, reason);
    this.#socket.onopen = this.#socket.onclose = null;
    // A page has no way to cut a socket; implementations that are passed in may have one.
    if (code === undefined && this.#socket.terminate) this.#socket.terminate();
    else this.#socket.close(code ?? 1000);
  }

  /** Close in order; the wait for the server's Close has an end. */
  async close() {
    this.#socket.close(1000);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.drop(null), CLOSE_MS_MAX);
    await this.ended;
  }

  #lookIn(ms) {
    clearTimeout(this.#timer);
    this.#times.dueAt = performance.now() + ms;
    this.#timer = setTimeout(() => this.#look(), ms);
  }

  #look() {
    const ms = this.#isOpen ? patience({ ...this.#times, now: performance.now() }) : 0;
    if (ms === null) this.ask();
    else if (ms > 0) this.#lookIn(ms);
    else this.drop(this.#isOpen ? "nothing heard" : "no answer");
  }

  #finish(code, reason) {
    clearTimeout(this.#timer);
    this.#socket.onmessage = null;
    this.#over({ code, reason });
  }
}

/** Lets one task wait until another one says that there is something to look at. */
class Bell {
  #ring = null;

  ring() {
    this.#ring?.();
  }

  /** Wait for a ring, at most `ms`. Nothing may be awaited between looking and waiting. */
  async wait(ms) {
    let timer;
    await new Promise((resolve) => {
      this.#ring = resolve;
      if (ms !== undefined) timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
    this.#ring = null;
  }
}

/** One diagnosis that is followed: an async iterator of items, made by `Follower.follow`. */
class Following {
  /** What all follows of a Follower share; see its constructor. */
  #home;
  #id;
  #options;
  #core = null;
  #connection = null;
  /** What was said of it last, null: nothing yet. */
  #status = null;
  /** null: it goes on. `{ error }`: what `next` throws once all items are taken. `{ isLeft }`: there is no more. */
  #over = null;
  #isAsked = false;
  /** Ends the `next` that is under way, where a function of the app does not answer in time; null: none is. */
  #giveUp = null;
  /** One did not. What it answers later changes nothing: another follow may be further by then. */
  #isGivenUp = false;
  /** The socket was dropped, as too much was read ahead. */
  #isBehind = false;
  /** Rings for the consumer, who waits for an item. */
  #news = new Bell();
  /** Rings for the task that connects, which waits for its time. */
  #turn = new Bell();

  constructor(home, id, options) {
    this.#home = home;
    this.#id = id;
    this.#options = options;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** `{ name, reason, code }`; the name is one of `connecting` `live` `offline` `needs_auth` `ended`. */
  get status() {
    return this.#status ?? { name: "connecting", reason: null, code: null };
  }

  /** Up to where the consumer is done, `{ epoch, seq }`; null: unknown yet. */
  get position() {
    return this.#core?.position ?? null;
  }

  /** The next item. Asking for it says that the one before is done with: now that is saved, and then acknowledged. */
  async next() {
    if (this.#isAsked) throw new Error("next() was called again before it had answered");
    this.#isAsked = true;
    try {
      return await this.#untilGivenUp(this.#step());
    } catch (error) {
      await this.#abandon();
      throw error;
    } finally {
      this.#isAsked = false;
    }
  }

  async #step() {
    if (this.#core === null && this.#over === null) await this.#start();
    await this.#finishStep();
    return await this.#nextItem();
  }

  async #untilGivenUp(step) {
    let timer;
    try {
      return await new Promise((resolve, reject) => {
        const giveUp = () => {
          this.#isGivenUp = true;
          this.#core?.abandon();
          resolve({ done: true, value: undefined });
        };
        this.#giveUp = () => (timer ??= setTimeout(giveUp, CLOSE_MS_MAX));
        step.then(resolve, reject);
      });
    } finally {
      clearTimeout(timer);
      this.#giveUp = null;
    }
  }

  /** Leave; `for await` calls it on `break` and on an exception. The item in hand is not done with and comes again. */
  async return(value) {
    await this.#abandon();
    return { done: true, value };
  }

  /** Leave, with the item in hand still to be done with. */
  async leave() {
    this.#over = { isLeft: true };
    if (this.#home.followings.get(this.#name) === this) this.#home.followings.delete(this.#name);
    this.#news.ring();
    this.#turn.ring();
    this.#giveUp?.();
    await this.#connection?.close();
  }

  /** The page may have slept, or the network may be there again. */
  wake() {
    this.#connection?.ask();
    this.#turn.ring();
  }

  /** The page goes, or is put aside for the way back: a page with an open socket would not be. */
  suspend() {
    this.#connection?.drop("the page is put aside");
  }

  /** The app has a new token. */
  tokenChanged() {
    if (this.#core?.isAdmitted) this.#authenticate();
    this.#turn.ring();
  }

  get #name() {
    return `${this.#id}`;
  }

  async #abandon() {
    this.#core?.abandon();
    await this.leave();
  }

  async #start() {
    const { followings, positions, tab, store, url, getState, backoff, random } = this.#home;
    if (followings.has(this.#name)) throw new Error(`this Follower follows diagnosis ${this.#id} already`);
    followings.set(this.#name, this);
    const { start, after, epoch = null } = this.#options;
    const device = await this.#home.device();
    const known = after === undefined ? (positions.get(this.#name) ?? null) : { epoch, seq: after };
    const carried = tab?.load(`${url} ${this.#id}`) ?? null;
    const stored = known === null ? checkedPosition((await store?.load(this.#id, device)) ?? null) : null;
    // A tab that has lost its name to another goes on from its own position, not from that of its new name.
    const own = known ?? (store instanceof LocalStore ? (carried ?? stored) : stored);
    const hasState = getState !== undefined;
    this.#core = new Core({ position: own ?? carried, isFresh: own === null, start, hasState, backoff, random });
    this.#run().catch((error) => this.#end(error));
  }

  async #finishStep() {
    const reached = this.#core?.reaches ?? null;
    if (reached !== null) await this.#home.store?.save(this.#id, reached, await this.#home.device());
    if (this.#isGivenUp) return;
    this.#core?.finish();
    if (reached !== null) {
      this.#keep();
      this.#acknowledge();
    }
  }

  async #nextItem() {
    while (!this.#over?.isLeft) {
      const item = this.#core.take();
      if (item?.type === "snapshot") {
        item.data = await this.#home.getState(this.#id);
        if (this.#over?.isLeft) {
          this.#core.abandon();
          break;
        }
      }
      if (item !== null) return { done: false, value: item };
      if (this.#over !== null) throw this.#over.error;
      if (this.#isBehind) {
        this.#isBehind = false;
        this.#turn.ring();
      }
      await this.#news.wait();
    }
    return { done: true, value: undefined };
  }

  /** Remember where this goes on: for the next `follow`, and for this tab after a reload. */
  #keep() {
    const { position, isFresh } = this.#core;
    if (position === null) return;
    this.#home.tab?.save(`${this.#home.url} ${this.#id}`, position);
    if (!isFresh) this.#home.positions.set(this.#name, position);
  }

  #acknowledge() {
    const seq = this.#core.acknowledgement();
    if (seq !== null) this.#connection?.send({ type: "ack", seq });
  }

  #say(name, reason = null, code = null) {
    const said = this.#status;
    if (this.#over !== null || (said?.name === name && said.reason === reason && said.code === code)) return;
    this.#status = { name, reason, code };
    try {
      this.#home.onState?.(this.#id, this.#status);
    } catch (error) {
      this.#end(error);
    }
  }

  /** It is over; the consumer gets what was read, and then the error. */
  #end(error) {
    this.#over ??= { error };
    this.#news.ring();
    this.#connection?.drop(null);
  }

  async #run() {
    const home = this.#home;
    while (this.#over === null) {
      if (home.isSuspended || this.#isBehind) {
        await this.#turn.wait();
        continue;
      }
      this.#say("connecting");
      const token = home.token;
      const { then, reason, code, waitMs } = await this.#attempt(token);
      if (then === "ended") {
        this.#say("ended", reason, code);
        this.#end(new Ended(code, reason));
      } else if (then === "come_back") {
        this.#say("offline", reason, code);
        if (this.#over === null) await this.#turn.wait(waitMs);
      } else {
        this.#say("needs_auth", reason, code);
        if (typeof token === "function") await this.#turn.wait(waitMs);
        while (typeof token !== "function" && home.token === token && this.#over === null) await this.#turn.wait();
      }
    }
  }

  /** Connect, and be connected; how that ended, as `Core.closed` has it. */
  async #attempt(token) {
    const home = this.#home;
    const core = this.#core;
    let text;
    try {
      text = await textOf(token);
    } catch {
      // Its message is not passed on: it may hold what a token holds.
      return { then: "needs_auth", reason: "no token", code: null, waitMs: core.refused(false) };
    }
    const device = await home.device();
    const query = new URLSearchParams({ heartbeat: home.heartbeat, ...core.parameters() });
    if (device !== null) query.set("device", device);
    // Without a token and a device one only looks, and has nothing to acknowledge.
    if (text !== null || device !== null) query.set("ack", "app");
    const url = `${home.url.replace("http", "ws")}/ws/${this.#id}?${query}`;
    const offered = text === null ? ["avicenna.v1"] : ["avicenna.v1", `bearer.${text}`];
    core.opened();
    if (this.#over !== null || home.isSuspended) return core.closed(1006, null);
    const silentMs = Math.max(SILENT_MS_MIN, home.heartbeat * 1500);
    this.#connection = new Connection(new home.WebSocket(url, offered), silentMs, (said) => this.#received(said));
    const { code, reason } = await this.#connection.ended;
    this.#connection = null;
    return core.closed(code, reason);
  }

  #received(text) {
    const core = this.#core;
    let frame;
    try {
      frame = core.receive(text);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.#connection.drop(error.message, PROTOCOL_FAULT);
      return;
    }
    if (frame.type === "connect") this.#keep();
    if (frame.type === "auth_expiring" && typeof this.#home.token === "function") this.#authenticate();
    if (core.isLive && (frame.type === "live" || frame.type === "auth_ok")) this.#say("live");
    if (core.isLive && frame.type === "error") this.#say("live", frame.data?.code ?? null);
    this.#acknowledge();
    this.#news.ring();
    if (core.isBehind) {
      this.#isBehind = true;
      this.#connection?.drop("the consumer is behind");
    }
  }

  /** Show a newer token on the connection there is. */
  async #authenticate() {
    const connection = this.#connection;
    try {
      const token = await textOf(this.#home.token);
      if (token !== null) connection?.send({ type: "auth", token });
    } catch {
      if (this.#core.isLive) this.#say("live", "no token");
    }
  }
}

const OWN_NAME = /^web-[0-9a-f]{16}$/;
const TOKEN = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;
const DEVICE = /^[A-Za-z0-9_.-]{1,64}$/;
const DIAGNOSIS_ID = /^[A-Za-z0-9_-]{1,64}$/;

async function textOf(token) {
  return typeof token === "function" ? checkedToken(await token()) : token;
}

/** A token, or what gives one, that can be offered as a subprotocol; else an error that does not show it. */
function checkedToken(token) {
  const isText = typeof token === "string" && TOKEN.test(token) && token.length <= TOKEN_CHARACTERS_MAX;
  if (token === null || typeof token === "function" || isText) return token;
  throw new TypeError(`token must be 1 to ${TOKEN_CHARACTERS_MAX} characters of a JWT, a function, or null`);
}

function checkedPosition(value) {
  if (value === null || asPosition(value) !== null) return value;
  throw new TypeError("store.load must give null or { epoch, seq }: a text or null, and an integer from 0");
}

function checkedBackoff(backoff = {}) {
  if (typeof backoff !== "object" || backoff === null) throw new TypeError("backoff must be { firstMs, maxMs }");
  const { firstMs = BACKOFF.firstMs, maxMs = BACKOFF.maxMs } = backoff;
  for (const [name, ms] of Object.entries({ firstMs, maxMs })) {
    if (typeof ms !== "number" || !(ms >= 0 && ms <= TIMER_MS_MAX)) {
      throw new TypeError(`backoff.${name} must be a number from 0 to ${TIMER_MS_MAX}`);
    }
  }
  return { firstMs, maxMs };
}

function checkedStore(store) {
  if (store === undefined || [store?.load, store?.save].every((one) => typeof one === "function")) return store;
  throw new TypeError("store must have the functions load and save");
}

/** Throws a `TypeError` unless each is a function or undefined. */
function checkFunctions(functions) {
  for (const [name, value] of Object.entries(functions)) {
    if (value !== undefined && typeof value !== "function") throw new TypeError(`${name} must be a function`);
  }
}

function originOf(url) {
  const rule = "url must be http://HOST[:PORT] or https://HOST[:PORT], and nothing behind it";
  if (!URL.canParse(url)) throw new TypeError(rule);
  const { protocol, host, origin, pathname, search, hash, username, password } = new URL(url);
  const hasMore = pathname !== "/" || search || hash || username || password;
  if (!["http:", "https:"].includes(protocol) || host === "" || hasMore) {
    throw new TypeError(rule);
  }
  return origin;
}

/** Follows diagnoses of one server. */
export class Follower {
  #home;
  #listening = new AbortController();

  /** See `client.d.ts` for the options. Throws a `TypeError` that names what is wrong. */
  constructor(url = globalThis.location?.origin, options = {}) {
    const { token = null, device, store, getState, onState, heartbeat = 20, backoff, random } = options;
    const { WebSocket = globalThis.WebSocket } = options;
    const isPage = typeof document !== "undefined";
    if (WebSocket === undefined) throw new TypeError("there is no WebSocket here: pass one, `{ WebSocket }`");
    if (device != null && !DEVICE.test(device)) throw new TypeError("device must be 1-64 of A-Z a-z 0-9 _ . -");
    if (!(Number.isInteger(heartbeat) && heartbeat >= 5 && heartbeat <= 300)) {
      throw new TypeError("heartbeat must be an integer from 5 to 300");
    }
    checkFunctions({ getState, onState, random, WebSocket });
    const checked = {
      url: originOf(url),
      token: checkedToken(token),
      store: checkedStore(store),
      backoff: checkedBackoff(backoff),
    };
    const tab = device === undefined && isPage ? new Tab() : null;
    this.#home = {
      ...checked,
      /** null: there is no page, or the app has named the device. */
      tab,
      device: async () => (tab === null ? (device ?? null) : tab.name()),
      getState,
      onState,
      heartbeat,
      random,
      WebSocket,
      /** Where each diagnosis was left, by its id. */
      positions: new Map(),
      /** What is followed now, by its id. */
      followings: new Map(),
      isSuspended: false,
    };
    if (isPage) this.#listen();
  }

  /** Follow a diagnosis, when the iterator is asked for its first item. */
  follow(diagnosisId, options = {}) {
    const isId = typeof diagnosisId === "string" || Number.isSafeInteger(diagnosisId);
    if (!isId || !DIAGNOSIS_ID.test(diagnosisId)) {
      throw new TypeError("diagnosisId must be 1-64 of A-Z a-z 0-9 _ -: a text, or an integer within 2^53");
    }
    const { start, after, epoch } = options;
    if (start != null && start !== "oldest" && start !== "new" && !isWhole(start)) {
      throw new TypeError("start must be oldest, new, or an integer from 0");
    }
    if (after !== undefined && !isWhole(after)) throw new TypeError("after must be an integer from 0");
    if (epoch != null && typeof epoch !== "string") throw new TypeError("epoch must be a text");
    if (epoch != null && after === undefined) throw new TypeError("epoch goes together with after");
    return new Following(this.#home, diagnosisId, options);
  }

  /** The token from now on: a text, or a function that gives one. Whoever waits for one goes on. */
  useToken(token) {
    this.#home.token = checkedToken(token);
    for (const following of this.#home.followings.values()) following.tokenChanged();
  }

  /** Leave all that is followed; done within 2 s. */
  async close() {
    this.#listening.abort();
    await Promise.all([...this.#home.followings.values()].map((following) => following.leave()));
    this.#home.tab?.close();
  }

  /** What `await using` calls, where there is that. */
  async [Symbol.asyncDispose ?? Symbol("asyncDispose")]() {
    await this.close();
  }

  #listen() {
    const { signal } = this.#listening;
    const home = this.#home;
    const wake = () => {
      for (const following of home.followings.values()) following.wake();
    };
    const on = (target, name, act) => target.addEventListener(name, act, { signal });
    on(globalThis, "online", wake);
    on(document, "resume", wake);
    on(document, "visibilitychange", () => document.visibilityState === "visible" && wake());
    on(globalThis, "pagehide", () => {
      home.isSuspended = true;
      for (const following of home.followings.values()) following.suspend();
      home.tab?.giveUp();
    });
    on(globalThis, "pageshow", () => {
      home.isSuspended = false;
      wake();
    });
  }
}
