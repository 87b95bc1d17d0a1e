/** What the server says of all diagnoses and of itself, as it comes: a stream that is opened again when it ends. */

import { bearer } from "./session.js";

const WAIT_MS = 1000;
const WAIT_MS_MAX = 15_000;
const HISTORY = 120; // turns that charts show
const LARGE = 10_000; // characters of a message that takes some milliseconds

/** Words for states, the worst first. */
export const STATES = ["quarantined", "restarting", "running", "passive"];

/** Digits are ordered as numbers, without comparing them as such each time. */
function orderOf(id) {
  return id.replace(/\d+/g, (digits) => digits.padStart(15, "0")).toLowerCase();
}

/** Fires `turn` after each turn, `state` when the connection changes, `expiring`, and `refused` when the token is. */
export class Feed extends EventTarget {
  /** Rows by id. */
  rows = new Map();
  /** The rows that the last turn changed, by id, as they were before; undefined: they were not there. */
  changed = new Map();
  /** Whether rows came or went in the last turn. */
  isRearranged = false;
  node = {};
  /** Figures of the last turns, the newest last. */
  history = [];
  state = "connecting";
  /** Why there is no stream. */
  trouble = "The server does not answer";
  /** When the token ends, if that is soon. */
  expiresAt = null;

  #ending = new AbortController();
  #columns = [];
  #pending = { changed: new Map(), isRearranged: false };
  #retryMs = null;

  /** Follow until `close`. */
  async open() {
    let failures = 0;
    while (!this.#ending.signal.aborted) {
      const isRefused = await this.#followOnce(() => (failures = 0));
      if (isRefused || this.#ending.signal.aborted) return;
      this.#become("reconnecting");
      const wait = this.#retryMs ?? Math.min(WAIT_MS * 2 ** failures++, WAIT_MS_MAX) * (0.5 + Math.random() / 2);
      this.#retryMs = null;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  close() {
    this.#ending.abort();
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #refuse(detail) {
    this.dispatchEvent(new CustomEvent("refused", { detail }));
    return true;
  }

  /** One stream, to its end; whether it will not do to open another one. */
  async #followOnce(succeeded) {
    this.trouble = "The server does not answer";
    try {
      const answer = await fetch("/console/events", { headers: bearer(), signal: this.#ending.signal, cache: "no-store" });
      if (!answer.ok) {
        const { detail } = await answer.json().catch(() => ({}));
        this.trouble = `The server refuses: ${detail ?? answer.status}`;
        return [401, 403].includes(answer.status) ? this.#refuse(detail) : false;
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return false;
        const blocks = (text + value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          succeeded();
          const ended = this.#take(block);
          if (ended !== undefined) return ended;
          if (block.length > LARGE) await new Promise((resolve) => setTimeout(resolve)); // let the page have its turn
        }
      }
    } catch {
      return false; // the connection failed, or the page closes it
    }
  }

  /** Take a message in. Not undefined: it was the last one, and whether another stream will not do. */
  #take(block) {
    const data = block.split("\n").find((line) => line.startsWith("data: "));
    if (data === undefined) return undefined;
    const message = JSON.parse(data.slice(6));
    switch (message.type) {
      case "snapshot":
        this.rows.clear();
        this.#columns = message.data.columns;
        this.#pending.isRearranged = true;
        return undefined;
      case "rows":
        this.#takeRows(message.data);
        return undefined;
      case "turn":
        this.#turn(message);
        return undefined;
      case "auth_expiring":
        this.expiresAt = message.data.expires_at;
        this.dispatchEvent(new Event("expiring"));
        return undefined;
      case "bye":
        if (message.data.code === 1008) return this.#refuse(`the session has ended: ${message.data.reason}`);
        this.#retryMs = message.data.retry_after_ms;
        return false;
      default:
        return undefined; // of a newer server
    }
  }

  #takeRows({ rows, gone }) {
    for (const values of rows) {
      const row = {};
      for (let index = 0; index < values.length; index += 1) row[this.#columns[index]] = values[index];
      const before = this.rows.get(row.diagnosis_id);
      row.order = before?.order ?? orderOf(row.diagnosis_id);
      row.search = before?.search ?? row.diagnosis_id.toLowerCase();
      row.urgency = STATES.indexOf(row.state);
      if (before === undefined) this.#pending.isRearranged = true;
      this.rows.set(row.diagnosis_id, row);
      this.#note(row.diagnosis_id, before);
    }
    for (const id of gone) {
      this.#note(id, this.rows.get(id));
      this.#pending.isRearranged = this.rows.delete(id) || this.#pending.isRearranged;
    }
  }

  #note(id, before) {
    if (!this.#pending.changed.has(id)) this.#pending.changed.set(id, before);
  }

  #turn({ timestamp, data }) {
    const node = { ...this.node, ...data.node };
    if (node.uptime_seconds < this.node.uptime_seconds) this.history = []; // another server, or another start
    this.node = node;
    this.history = [...this.history.slice(1 - HISTORY), { at: Date.parse(timestamp), node }];
    ({ changed: this.changed, isRearranged: this.isRearranged } = this.#pending);
    this.#pending = { changed: new Map(), isRearranged: false };
    this.#become("live");
    this.dispatchEvent(new Event("turn"));
  }
}
