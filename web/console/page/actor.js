/** One actor: how it is, its outbox, who follows, what became of an event, and the buttons of operators. */

import { confirm } from "./confirm.js";
import { h, say, scrolling, set, table } from "./dom.js";
import { bytes, count, many, state as stateText, when } from "./format.js";
import { ask } from "./session.js";

const READ_AGAIN_MS = 1000;
const ACTS_SHOWN = 15;

const KINDS = {
  recommendation_update: "recommendation",
  effectiveness_update: "effectiveness",
  feedback_update: "feedback",
};

/** What has acknowledged. */
const BY = { app: "its app", transport: "its library" };

export function actor(feed, id) {
  return new ActorView(feed, id);
}

class ActorView {
  constructor(feed, id) {
    this.title = `Diagnosis ${id}`;
    this.#feed = feed;
    this.#id = id;
    this.#state = h("span", { class: "state" }, "…");
    this.#trouble = h("p", { class: "trouble", hidden: true });
    this.#buttons = {
      restart: this.#button("Restart", "plain", () => this.#restart()),
      release: this.#button("Release", "primary", () => this.#release()),
      stop: this.#button("Stop", "plain", () => this.#stop()),
      disconnect: this.#button("Disconnect…", "plain", () => this.#disconnect()),
      purge: this.#button("Purge…", "plain danger", () => this.#purge()),
    };
    this.#buttons.release.hidden = true;
    this.#facts = h("dl", { class: "facts" });
    this.#outbox = h("div", {});
    this.#subscribers = h("div", {});
    this.#delivery = h("section", { class: "card", hidden: true, tabindex: "-1", "aria-label": "Delivery of an event" });
    this.#restarts = h("div", {});
    this.#acts = h("div", {});
    this.element = h(
      "div", { class: "actor" },
      h("p", { class: "trail" }, h("a", { href: "#/" }, "‹ All actors")),
      h("div", { class: "head" },
        h("h1", { tabindex: "-1" }, this.title), this.#state,
        h("div", { class: "buttons", role: "group", "aria-label": "Acts" }, ...Object.values(this.#buttons))),
      this.#trouble,
      h("section", { class: "card", "aria-label": "How it is" }, this.#facts),
      h("div", { class: "columns" },
        h("section", { class: "card outbox-card", "aria-labelledby": "outbox-title" },
          h("h2", { id: "outbox-title" }, "Outbox"),
          h("p", { class: "quiet" }, "What an event says is shown when you ask for it. The audit trail then names you."),
          this.#outbox),
        h("div", { class: "stack" },
          h("section", { class: "card", "aria-labelledby": "subscribers-title" },
            h("h2", { id: "subscribers-title" }, "Furthest behind"), this.#subscribers),
          this.#delivery,
          h("section", { class: "card", "aria-labelledby": "restarts-title" },
            h("h2", { id: "restarts-title" }, "Restarts"), this.#restarts))),
      h("section", { class: "card", "aria-labelledby": "acts-title" },
        h("h2", { id: "acts-title" }, "Acts on this diagnosis"), this.#acts),
    );
    this.#turn = () => {
      if (feed.changed.has(id)) this.#readSoon();
    };
    feed.addEventListener("turn", this.#turn);
    this.#read();
  }

  #feed; #id; #state; #trouble; #buttons; #facts; #outbox; #subscribers; #delivery; #restarts; #acts; #turn;
  #found = null;
  #head = null; // where the outbox that is shown ends
  #lines = new Map();
  #timer = null;
  #isReading = false;

  leave() {
    this.#feed.removeEventListener("turn", this.#turn);
    clearTimeout(this.#timer);
    this.#timer = -1;
  }

  #button(text, look, press) {
    return h("button", { type: "button", class: look, disabled: true, onclick: press }, text); // until it is read
  }

  /** Read anew, at most once a second, and only as something has changed. */
  #readSoon() {
    if (this.#timer !== null) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#read();
    }, READ_AGAIN_MS / 2);
  }

  async #read() {
    if (this.#isReading) return this.#readSoon();
    this.#isReading = true;
    try {
      const found = await ask("GET", ["actors", this.#id]);
      const where = `${found.epoch} ${found.head} ${found.floor}`;
      if (where !== this.#head) {
        this.#head = where;
        await this.#readOutbox(found);
      }
      this.#found = found;
      if (this.#timer !== -1) this.#show(found);
    } catch (error) {
      this.#trouble.hidden = false;
      say(this.#trouble, error.status === 404 ? "This diagnosis is not registered." : error.message);
      if (error.status === 404) this.#showNothing();
      this.#head = null;
    } finally {
      this.#isReading = false;
    }
  }

  #show(found) {
    say(this.#state, found.damage === null ? found.state : "damaged");
    set(this.#state, "data-state", found.state);
    const crash = found.last_crash;
    this.#trouble.hidden = found.damage === null && found.state !== "quarantined";
    say(this.#trouble, found.damage !== null
      ? `Its outbox is damaged: ${found.damage}. It is refused alone. A purge drops the damage with the events.`
      : `It crashed too often and rests. Nobody can publish to it or follow it until it is released, or has rested. ${crash === null ? "" : `The last crash: ${crash.error}.`}`);
    this.#buttons.release.hidden = found.state !== "quarantined" || found.damage !== null;
    this.#buttons.restart.hidden = !this.#buttons.release.hidden;
    for (const name of ["restart", "release", "disconnect"]) this.#buttons[name].disabled = false;
    this.#buttons.stop.disabled = found.state === "passive";
    this.#buttons.purge.disabled = found.head === found.floor && found.damage === null;
    const retained = found.head - found.floor;
    const facts = [
      ["Followers", count(found.subscribers)],
      ["Retained", retained ? `${retained} of 100 (#${found.floor + 1}–#${found.head})` : `none, up to #${found.head}`],
      ["Mailbox", `${count(found.mailbox.depth)} of ${count(found.mailbox.limit)}`],
      ["Incarnation", count(found.incarnation)],
      ["Crashes", count(found.restarts)],
      ["Last crash", crash === null ? "none" : `${when(crash.at)}, ${crash.error}`],
      ["Epoch", found.epoch],
      ...(found.nodes ?? []).map((one) => [one.node, `${one.state}, ${many(one.subscribers, "follower")}`]),
    ];
    if (this.#facts.childElementCount !== facts.length) {
      this.#facts.replaceChildren(...facts.map(() => h("div", {}, h("dt", {}), h("dd", {}))));
    }
    facts.forEach(([name, value], index) => {
      const [dt, dd] = this.#facts.children[index].children;
      say(dt, name);
      say(dd, value);
    });
    this.#showLag(found);
    this.#showRestarts(found.recent_restarts ?? []);
    const shown = JSON.stringify([found.incarnation, found.state, found.floor, found.subscribers]);
    if (shown !== this.#actsOf) {
      this.#actsOf = shown;
      this.#readActs();
    }
  }

  /** It was deleted: what it was says nothing any more, and nothing can be done to it. */
  #showNothing() {
    say(this.#state, "gone");
    set(this.#state, "data-state", "gone");
    for (const button of Object.values(this.#buttons)) button.disabled = true;
    this.#delivery.hidden = true;
    this.#lines.clear();
    for (const part of [this.#facts, this.#outbox, this.#subscribers, this.#restarts]) part.replaceChildren();
    this.#actsOf = "";
    this.#readActs();
  }

  #actsOf = "";

  #showLag({ lag, head }) {
    if (!lag.length) return this.#subscribers.replaceChildren(h("p", { class: "quiet" }, "Nobody has followed it yet."));
    const most = Math.max(100, ...lag.map((one) => one.lag));
    this.#subscribers.replaceChildren(table(
      "Subscribers that are furthest behind", ["Subscriber", "Behind", h("th", { scope: "col", class: "number" }, "Has")],
      lag.map((one) => {
        const fill = h("span", { class: "fill", "data-late": one.lag > 80 ? "yes" : null });
        fill.style.width = `${(100 * one.lag) / most}%`;
        return h("tr", {},
          h("th", { scope: "row" }, h("span", { class: one.online ? "dot on" : "dot", title: one.online ? "connected" : "away" }), nameOf(one), h("span", { class: "unseen" }, one.online ? ", connected" : ", away")),
          h("td", { class: "lag" }, h("span", { class: "meter", "aria-hidden": "true" }, fill), h("span", {}, count(one.lag))),
          h("td", { class: "number" }, `#${one.cursor}`));
      }),
    ), h("p", { class: "quiet" }, `Head: #${head}. Each bar ends at ${most} events.`));
  }

  #showRestarts(restarts) {
    if (!restarts.length) return this.#restarts.replaceChildren(h("p", { class: "quiet" }, "None since the server started."));
    this.#restarts.replaceChildren(table(
      "Latest restarts", ["Ended", h("th", { scope: "col", class: "number" }, "Incarnation"), "Why"],
      restarts.toReversed().map((one) => h("tr", {},
        h("td", {}, h("time", { datetime: one.at }, when(one.at))),
        h("td", { class: "number" }, one.incarnation),
        h("td", { "data-reason": one.reason }, one.error === null ? one.reason : `${one.reason}: ${one.error}`))),
    ));
  }

  async #readActs() {
    const { items } = await ask("GET", ["audit"], { query: { diagnosis_id: this.#id, limit: ACTS_SHOWN } }).catch(() => ({ items: [] }));
    if (!items.length) return this.#acts.replaceChildren(h("p", { class: "quiet" }, "None."));
    this.#acts.replaceChildren(scrolling("Acts", table(
      "Latest acts", ["When", "Who", "Act", "Before", "After"],
      items.map((one) => h("tr", {},
        h("td", {}, h("time", { datetime: one.at }, when(one.at))), h("td", { class: "name" }, one.actor), h("td", {}, one.action),
        h("td", { class: "said" }, stateText(one.before)), h("td", { class: "said" }, stateText(one.after)))))));
    return undefined;
  }

  // The outbox

  async #readOutbox({ damage }) {
    if (damage !== null) return this.#outbox.replaceChildren(h("p", { class: "quiet" }, "Nothing of a damaged outbox is shown."));
    const { items } = await ask("GET", ["actors", this.#id, "outbox"], { query: { payload: 0, limit: 100 } });
    if (!items.length) {
      this.#lines.clear();
      return this.#outbox.replaceChildren(h("p", { class: "quiet" }, "Nothing is retained."));
    }
    const lines = new Map(items.toReversed().map((event) => [event.seq, this.#lines.get(event.seq) ?? this.#line(event)]));
    this.#lines = lines;
    const rows = [...lines.values()].flat();
    const body = this.#outbox.querySelector("tbody");
    if (body === null) {
      this.#outbox.replaceChildren(scrolling("Retained events", table(
        "Retained events, the newest first",
        [h("th", { scope: "col", class: "number" }, "#"), "Type", "Stored", h("th", { scope: "col", class: "number wide" }, "Size"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "More"))], rows)));
    } else {
      // Lines that stay are not moved, so that the focus stays, too.
      for (const row of [...body.children]) if (!rows.includes(row)) row.remove();
      rows.forEach((row, index) => {
        if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
      });
    }
    return undefined;
  }

  #line(event) {
    const payload = h("tr", { class: "payload", hidden: true }, h("td", { colspan: 5 }));
    const read = h("button", { type: "button", class: "small", "aria-expanded": "false", "aria-label": `Read event ${event.seq}` }, "Read");
    read.addEventListener("click", () => this.#reveal(event.seq, read, payload));
    const trace = h("button", { type: "button", class: "small", "aria-label": `Delivery of event ${event.seq}` }, "Delivery");
    trace.addEventListener("click", () => this.#trace(event.seq));
    return [
      h("tr", {},
        h("th", { scope: "row", class: "number" }, event.seq),
        h("td", {}, KINDS[event.type] ?? event.type),
        h("td", {}, h("time", { datetime: event.timestamp }, when(event.timestamp))),
        h("td", { class: "number wide" }, bytes(event.bytes)),
        h("td", { class: "buttons" }, read, trace)),
      payload,
    ];
  }

  async #reveal(seq, button, row) {
    const cell = row.firstElementChild;
    if (!row.hidden) {
      row.hidden = true;
      cell.replaceChildren();
    } else {
      try {
        const { items } = await ask("GET", ["actors", this.#id, "outbox"], { query: { after: seq - 1, limit: 1 } });
        const isThere = items[0]?.seq === seq;
        cell.replaceChildren(isThere ? h("pre", { dir: "auto" }, JSON.stringify(items[0].data, null, 2)) : h("p", { class: "quiet" }, "It is not retained any more."));
      } catch (error) {
        cell.replaceChildren(h("p", { class: "problem" }, error.message));
      }
      row.hidden = false;
    }
    set(button, "aria-expanded", String(!row.hidden));
    say(button, row.hidden ? "Read" : "Hide");
    set(button, "aria-label", `${button.textContent} event ${seq}`);
    this.#readActs();
  }

  async #trace(seq, after = null) {
    const section = this.#delivery;
    section.hidden = false;
    try {
      const { items, next } = await ask("GET", ["diagnoses", this.#id, "delivery"], { query: { seq, after } });
      const counts = ["acknowledged", "written", "pending", "lost"].map((name) => [name, items.filter((one) => one.state === name).length]);
      const parts = [
        h("h2", {}, `Delivery of event ${seq}`),
        h("p", { class: "quiet" }, items.length ? counts.filter(([, number]) => number).map(([name, number]) => `${number} ${name}`).join(", ") + (next ? ", and more" : "") : "No subscriber is known."),
        items.length ? scrolling("Subscribers", table(
          `What became of event ${seq}`, ["Subscriber", "State", "By", "When"],
          items.map((one) => h("tr", {},
            h("th", { scope: "row" }, h("span", { class: one.online ? "dot on" : "dot" }), nameOf(one)),
            h("td", {}, h("span", { class: "state", "data-delivery": one.state }, one.state)),
            h("td", { class: "act" }, one.state !== "acknowledged" ? "" : BY[one.acknowledged_by] ?? ""),
            h("td", {}, one.state !== "acknowledged" || one.acknowledged_at === null ? "" : when(one.acknowledged_at)))))) : null,
        next ? h("button", { type: "button", class: "plain", onclick: () => this.#trace(seq, next) }, "More") : null,
        h("button", { type: "button", class: "plain", onclick: () => (section.hidden = true) }, "Close"),
      ];
      section.replaceChildren(...parts.filter((one) => one !== null));
    } catch (error) {
      section.replaceChildren(h("h2", {}, `Delivery of event ${seq}`), h("p", { class: "problem" }, error.message));
    }
    section.focus({ preventScroll: true });
    section.scrollIntoView({ block: "nearest" });
  }

  // Acts

  async #confirmed(question) {
    if (await confirm(question(this.#found))) this.#read();
  }

  #restart() {
    return this.#confirmed((found) => ({
      title: `Restart the actor of ${this.#id}?`,
      text: `Incarnation ${found.incarnation + 1} begins and reads the outbox again. ${stay(found)} Nothing is lost or repeated.`,
      act: "Restart",
      run: () => this.#done("POST", "restart", (now) => `Restarted: incarnation ${now.incarnation} runs.`),
    }));
  }

  #release() {
    return this.#confirmed((found) => ({
      title: `Release diagnosis ${this.#id} from quarantine?`,
      text: `Its actor starts again, as incarnation ${found.incarnation + 1}, and takes publishes and followers. If what made it crash is still there, it crashes and is quarantined again.`,
      act: "Release",
      run: () => this.#done("POST", "restart", (now) => `Released: incarnation ${now.incarnation} runs.`),
    }));
  }

  #stop() {
    return this.#confirmed((found) => ({
      title: `Stop the actor of ${this.#id}?`,
      text: `It finishes its mailbox and leaves memory. ${stay(found)} The next publish or follower wakes it.`,
      act: "Stop",
      run: () => this.#done("POST", "stop", () => "Stopped: the actor rests."),
    }));
  }

  #purge() {
    return this.#confirmed((found) => {
      const events = many(found.head - found.floor, "retained event");
      return {
        title: `Purge the outbox of ${this.#id}?`,
        text: `${found.damage === null ? `The ${events} (#${found.floor + 1}–#${found.head}) are dropped for good.` : "The damage is dropped with all events."} Whoever has not received them is told a gap. Numbers go on after #${found.head}.`,
        act: "Purge",
        isGrave: true,
        run: () => this.#done("DELETE", "outbox", (now) => `Purged: nothing up to #${now.head} is retained.`),
      };
    });
  }

  #disconnect() {
    const sub = h("input", { id: "disconnect-sub", autocomplete: "off", spellcheck: "false" });
    const device = h("input", { id: "disconnect-device", autocomplete: "off", spellcheck: "false" });
    const forget = h("input", { id: "disconnect-forget", type: "checkbox" });
    const fields = h("div", { class: "fields" },
      h("label", { for: "disconnect-sub" }, "User (the sub of its token)"), sub,
      h("label", { for: "disconnect-device" }, "Device (empty: all)"), device,
      h("div", { class: "check" }, forget, h("label", { for: "disconnect-forget" }, "Forget how far it has come, too")));
    return this.#confirmed((found) => ({
      title: `Disconnect from ${this.#id}?`,
      text: `The connections of this user are closed with “disconnected by operator” (without a user: those of the anonymous). ${many(found.subscribers, "connection")} are open. A client with a valid token may come back: revoke the token to keep it out.`,
      act: "Disconnect",
      isGrave: true,
      fields,
      run: async () => {
        const query = { sub: sub.value, device: device.value, forget: forget.checked ? 1 : 0 };
        const done = await ask("DELETE", ["actors", this.#id, "subscribers"], { query });
        return `Disconnected: ${many(done.disconnected, "connection")}; forgotten: ${done.forgotten}.`;
      },
    }));
  }

  async #done(method, what, text) {
    return text(await ask(method, ["actors", this.#id, what]));
  }
}

function stay({ subscribers }) {
  return subscribers ? `Its ${many(subscribers, "connection")} ${subscribers === 1 ? "stays" : "stay"} open.` : "Nobody is connected.";
}

function nameOf({ user_id: user, device }) {
  return `${user ?? "anonymous"}${device === null ? "" : ` · ${device}`}`;
}
