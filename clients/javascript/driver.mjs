// The driver of the JavaScript client: JSON lines, as `clients/scenarios.yaml` has them, in Node and in a page.
//
// In Node: `node driver.mjs [MODULE]`, lines on stdin and stdout; MODULE is a WebSocket to use instead of Node's own.
// A page makes a `Driver` itself (`tests/clients/page_driver.py`).
import { Ended, Follower } from "./client.js";

export class Driver {
  #write;
  #store;
  #WebSocket;
  #live = null;
  /** The newest; a client whose token is a function gets it when it asks. */
  #token = null;
  #isRenewable = false;
  #isPaused = false;
  #resume = () => {};
  #raisesAt = null;

  /** @param write takes reports; `store(path)` gives a store of the app, which keeps its position there. */
  constructor(write, store, WebSocket) {
    this.#write = write;
    this.#store = store;
    this.#WebSocket = WebSocket;
  }

  async obey(command) {
    if (command.do === "follow") this.#follow(command);
    else if (command.do === "token") this.#renew(command.token);
    else if (command.do === "pause") this.#isPaused = true;
    else if (command.do === "resume") this.#go();
    else if (command.do === "stop") await this.#live?.close();
    else this.#write({ cannot: command.do });
  }

  async #follow({ url, diagnosis_id, token, renewable, device, store, start, heartbeat, backoff_ms, ...more }) {
    const { now } = Date;
    Date.now = () => now() + 1000 * more.clock_offset_s;
    this.#token = token;
    this.#raisesAt = more.raise_at;
    this.#isRenewable = renewable;
    const [firstMs, maxMs] = backoff_ms;
    this.#live = new Follower(url, {
      token: renewable ? () => this.#token : token,
      device,
      store: store === null ? undefined : this.#store(store),
      getState: more.get_state ? () => ({ state: true }) : undefined,
      onState: (_, { name, reason, code }) => this.#write({ status: name, reason, code }),
      heartbeat,
      backoff: { firstMs, maxMs },
      WebSocket: this.#WebSocket,
    });
    let isOver = false;
    while (!isOver) {
      try {
        for await (const item of this.#live.follow(diagnosis_id, start === null ? {} : { start }))
          await this.#take(item);
        isOver = true;
      } catch (error) {
        isOver = !(error instanceof Raised);
        if (error instanceof Ended) this.#write({ ended: { code: error.code, reason: error.reason } });
        else if (isOver) this.#write({ failed: `${error.stack}` });
      }
    }
  }

  async #take(item) {
    if (this.#isPaused) await new Promise((resolve) => (this.#resume = resolve));
    const { type, ...fields } = item;
    const isUpdate = type.endsWith("_update");
    if (isUpdate && item.seq === this.#raisesAt) {
      this.#raisesAt = null;
      this.#write({ raised: item.seq });
      throw new Raised();
    }
    const { seq, epoch, data } = fields;
    if (isUpdate) this.#write({ event: type, seq, epoch, data });
    else this.#write({ [type]: type === "snapshot" ? { epoch, seq } : fields });
  }

  #renew(token) {
    this.#token = token;
    if (!this.#isRenewable) this.#live.useToken(token);
  }

  #go() {
    this.#isPaused = false;
    this.#resume();
  }
}

/** What the consumer raises. */
class Raised extends Error {}

async function inNode() {
  const { createInterface } = await import("node:readline");
  const { existsSync, readFileSync, renameSync, writeFileSync } = await import("node:fs");
  const module = process.argv[2];
  const store = (path) => ({
    load: () => (existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : null),
    save: (_, position) => {
      writeFileSync(`${path}.new`, JSON.stringify(position));
      renameSync(`${path}.new`, path);
    },
  });
  const write = (report) => process.stdout.write(`${JSON.stringify(report)}\n`);
  const driver = new Driver(write, store, module && (await import(module)).default);
  write({ ready: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    await driver.obey(command);
    if (command.do === "stop") break;
  }
  await driver.obey({ do: "stop" });
  process.exit(0);
}

if (globalThis.process !== undefined) await inNode();
