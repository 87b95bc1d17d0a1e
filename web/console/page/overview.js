/** The server at a glance, and the table of all diagnoses: searched, sorted, and shown page by page. */

import { Chart } from "./chart.js";
import { h, say, set } from "./dom.js";
import { STATES } from "./feed.js";
import { bytes, count, many, since, span, took, when } from "./format.js";

const PAGE_ROWS = 50;

/** What rows are sorted by: a key, and whether the largest come first at first. */
const COLUMNS = [
  { name: "order", title: "Diagnosis", cell: "id" },
  { name: "urgency", title: "State", cell: "state" },
  { name: "subscribers", title: "Followers", falls: true, cell: "number" },
  { name: "retained", title: "Outbox", falls: true, cell: "outbox" },
  { name: "lag", title: "Lag", falls: true, cell: "number" },
  { name: "mailbox", title: "Mailbox", falls: true, cell: "number", wide: true },
  { name: "restarts", title: "Crashes", falls: true, cell: "number", wide: true },
  { name: "crashed_at", title: "Last crash", falls: true, cell: "crash", wide: true },
];

/** What somebody has chosen, kept while other views are shown. */
const chosen = { search: "", state: null, column: COLUMNS[1], isTurned: false, page: 0 };

export function overview(feed) {
  const charts = {
    deliveries: new Chart("Deliveries a second", count),
    commits: new Chart("Commit time", took),
    connections: new Chart("Connections", count),
    lag: new Chart("Loop lag", took),
  };
  const figures = new Figures();
  const actors = new Actors(feed);
  const element = h(
    "div", { class: "overview" },
    h("h1", { class: "unseen", tabindex: "-1" }, "Overview"),
    h("div", { class: "charts" }, ...Object.values(charts).map((one) => one.element)),
    figures.element,
    actors.element,
  );

  function turn() {
    showCharts(charts, feed.history);
    figures.show(feed.node, feed.history);
    actors.show();
  }
  feed.addEventListener("turn", turn);
  if (feed.history.length) turn();
  return { title: "Overview", element, leave: () => feed.removeEventListener("turn", turn) };
}

/** How much of something there was in each second; null for the first. */
function rates(history, name) {
  return history.slice(1).map((one, index) => {
    const before = history[index];
    const seconds = (one.at - before.at) / 1000;
    return seconds > 0 ? Math.max(0, (one.node[name] - before.node[name]) / seconds) : 0;
  });
}

function spreads(history, name) {
  return history.slice(1).map((one, index) => since(one.node[name], history[index].node[name]));
}

function showCharts(charts, history) {
  const node = history.at(-1).node;
  const events = rates(history, "events").at(-1);
  charts.deliveries.show(rates(history, "deliveries"), events === undefined ? "" : `of ${many(Math.round(events), "event")}`);
  const commits = spreads(history, "commit_seconds");
  const commit = commits.at(-1);
  charts.commits.show(commits.map((one) => one?.mean ?? null), commit ? `mean of ${count(commit.count)}, p99 ≤ ${took(commit.p99)}` : "no commits");
  charts.connections.show(history.map((one) => one.node.connections), `${count(node.followers)} follow`);
  const lags = spreads(history, "loop_lag_seconds");
  charts.lag.show(lags.map((one) => one?.mean ?? null), lags.at(-1) ? `mean, p99 ≤ ${took(lags.at(-1).p99)}` : "");
}

const FIGURES = [
  ["Diagnoses", (node) => count(node.diagnoses)],
  ["In memory", (node) => count(node.actors)],
  ["Events", (node) => count(node.events)],
  ["Waiting", (node) => count(node.mailbox_messages), (node) => node.mailbox_messages > 1000],
  ["Rings", (node) => bytes(node.ring_bytes), (node) => node.ring_bytes > node.ring_limit_bytes],
  ["Database", (node) => bytes(node.database_bytes)],
  ["Log (WAL)", (node) => bytes(node.wal_bytes)],
  ["Restarts", (node) => count(node.restarts)],
  ["Quarantines", (node) => count(node.quarantines)],
  ["Damaged", (node) => count(node.damaged), (node) => node.damaged > 0],
  ["Stalls", (node) => count(node.stalls)],
  ["Disk waits", (node) => took(node.store_waiting_seconds), (node) => node.store_waiting_seconds >= 1],
  ["Clock", (node) => (node.clock_held_since === null ? "believed" : "not believed"), (node) => node.clock_held_since !== null],
  ["Up", (node) => span(node.uptime_seconds)],
];

class Figures {
  constructor() {
    this.#values = FIGURES.map(() => h("dd", {}, "–"));
    this.element = h("section", { class: "card figures", "aria-label": "Figures of the server" },
      h("dl", {}, ...FIGURES.map(([title], index) => h("div", {}, h("dt", {}, title), this.#values[index]))));
  }

  #values;

  show(node) {
    FIGURES.forEach(([, text, isBad], index) => {
      say(this.#values[index], text(node));
      set(this.#values[index], "data-bad", isBad?.(node) ? "yes" : null);
    });
  }
}

class Actors {
  constructor(feed) {
    this.#feed = feed;
    const search = h("input", { type: "search", id: "search", placeholder: "Search ids", value: chosen.search, autocomplete: "off", spellcheck: "false" });
    search.addEventListener("input", () => this.#choose({ search: search.value.trim().toLowerCase() }));
    this.#filters = [null, ...STATES].map((state) => {
      const number = h("span", { class: "number" });
      const button = h("button", { type: "button", class: "chip", "data-state": state ?? "all" }, state ?? "all", " ", number);
      button.addEventListener("click", () => this.#choose({ state }));
      return { state, button, number };
    });
    this.#headings = COLUMNS.map((column) => {
      const button = h("button", { type: "button" }, column.title);
      button.addEventListener("click", () => this.#choose({ column, isTurned: chosen.column === column && !chosen.isTurned }));
      return h("th", { scope: "col", class: classOf(column) }, button);
    });
    this.#body = h("tbody");
    this.#empty = h("p", { class: "quiet empty", hidden: true });
    this.#count = h("p", { class: "quiet", id: "actors-count" });
    this.#back = h("button", { type: "button", class: "plain", "aria-label": "Former page", onclick: () => this.#turnPage(-1) }, "‹");
    this.#on = h("button", { type: "button", class: "plain", "aria-label": "Next page", onclick: () => this.#turnPage(1) }, "›");
    this.element = h(
      "section", { class: "card actors", "aria-labelledby": "actors-title" },
      h("div", { class: "tools" },
        h("h2", { id: "actors-title" }, "Actors"),
        h("div", { class: "chips", role: "group", "aria-label": "Only this state" }, ...this.#filters.map((one) => one.button)),
        h("label", { class: "unseen", for: "search" }, "Search in the ids of diagnoses"), search),
      h("table", { class: "live", "aria-describedby": "actors-count" },
        h("caption", { class: "unseen" }, "Diagnosis actors"), h("thead", {}, h("tr", {}, ...this.#headings)), this.#body),
      this.#empty,
      h("div", { class: "pager" }, this.#count, h("div", {}, this.#back, this.#on)),
    );
    this.#arrange();
    this.#draw();
  }

  #feed; #filters; #headings; #body; #empty; #count; #back; #on;
  #ids = []; // all that are wanted, in order
  #isOverdue = false; // the order is not what it should be: somebody holds it
  #lines = [];

  #choose(choice) {
    Object.assign(chosen, choice, { page: 0 });
    this.#arrange();
    this.#draw();
  }

  #turnPage(by) {
    chosen.page += by;
    this.#draw();
  }

  /** After a turn. Rows stay where they are while somebody points at one, or has the focus there. */
  show() {
    const feed = this.#feed;
    if (!feed.changed.size && !feed.isRearranged) return;
    const isHeld = this.#body.matches(":hover") || this.#body.contains(document.activeElement);
    const hasMoved = feed.isRearranged || this.#isOverdue || this.#hasMoved();
    this.#isOverdue = hasMoved && isHeld && !feed.isRearranged;
    if (hasMoved && !this.#isOverdue) this.#arrange();
    this.#draw();
  }

  /** Whether the order, or what is counted, may be another one since the last arrangement. */
  #hasMoved() {
    const { column: { name } } = chosen;
    for (const [id, before] of this.#feed.changed) {
      const row = this.#feed.rows.get(id);
      if (row?.state !== before?.state || row?.[name] !== before?.[name]) return true;
    }
    return false;
  }

  #arrange() {
    const { column, isTurned, search, state } = chosen;
    const rows = [];
    const counts = Object.fromEntries(STATES.map((one) => [one, 0]));
    for (const row of this.#feed.rows.values()) {
      if (search && !row.search.includes(search)) continue;
      counts[row.state] += 1;
      if (state === null || row.state === state) rows.push(row);
    }
    const falls = Boolean(column.falls) !== isTurned ? -1 : 1;
    const name = column.name;
    rows.sort((a, b) => {
      const [left, right] = [a[name] ?? "", b[name] ?? ""];
      if (left !== right) return left < right ? -falls : falls;
      return a.order < b.order ? -1 : 1;
    });
    this.#ids = rows.map((row) => row.diagnosis_id);
    for (const { state: one, button, number } of this.#filters) {
      say(number, count(one === null ? Object.values(counts).reduce((sum, each) => sum + each, 0) : counts[one]));
      set(button, "aria-pressed", String(one === state));
    }
    this.#headings.forEach((heading, index) => {
      const isSorted = COLUMNS[index] === column;
      set(heading, "aria-sort", isSorted ? (falls === 1 ? "ascending" : "descending") : null);
    });
  }

  #draw() {
    const pages = Math.max(1, Math.ceil(this.#ids.length / PAGE_ROWS));
    chosen.page = Math.min(Math.max(0, chosen.page), pages - 1);
    const first = chosen.page * PAGE_ROWS;
    const rows = this.#ids.slice(first, first + PAGE_ROWS).map((id) => this.#feed.rows.get(id)).filter(Boolean);
    while (this.#lines.length < rows.length) this.#lines.push(new Line());
    const elements = rows.map((row, index) => this.#lines[index].show(row));
    if (this.#body.childElementCount !== elements.length) {
      while (this.#body.childElementCount > elements.length) this.#body.lastElementChild.remove();
      this.#body.append(...elements.slice(this.#body.childElementCount));
    }
    this.#empty.hidden = rows.length > 0;
    say(this.#empty, this.#feed.rows.size ? "No diagnosis fits." : "No diagnosis is registered yet.");
    const last = first + rows.length;
    say(this.#count, rows.length ? `${count(first + 1)}–${count(last)} of ${count(this.#ids.length)}` : "");
    this.#back.disabled = chosen.page === 0;
    this.#on.disabled = chosen.page === pages - 1;
  }
}

function classOf(column) {
  return [column.cell === "number" ? "number" : "", column.wide ? "wide" : ""].join(" ").trim() || null;
}

/** One row of the table, which shows one diagnosis after another. */
class Line {
  constructor() {
    this.#link = h("a", {});
    this.#state = h("span", { class: "state" });
    this.#fill = h("span", { class: "fill" });
    this.#retained = h("span", {});
    this.#cells = Object.fromEntries(COLUMNS.filter((one) => one.cell === "number").map((one) => [one.name, h("td", { class: classOf(one) })]));
    this.#crash = h("td", { class: "wide crash" });
    this.element = h("tr", {}, ...COLUMNS.map((column) => {
      switch (column.cell) {
        case "id": return h("th", { scope: "row" }, this.#link);
        case "state": return h("td", {}, this.#state);
        case "outbox": return h("td", { class: "outbox" }, h("span", { class: "meter", "aria-hidden": "true" }, this.#fill), this.#retained);
        case "crash": return this.#crash;
        default: return this.#cells[column.name];
      }
    }));
  }

  #link; #state; #fill; #retained; #cells; #crash;

  show(row) {
    say(this.#link, row.diagnosis_id);
    set(this.#link, "href", `#/actors/${encodeURIComponent(row.diagnosis_id)}`);
    say(this.#state, row.damage === null ? row.state : "damaged");
    set(this.#state, "data-state", row.state);
    say(this.#retained, row.retained);
    this.#fill.style.width = `${Math.min(100, row.retained)}%`;
    set(this.#fill, "data-late", row.lag > 80 ? "yes" : null);
    for (const [name, cell] of Object.entries(this.#cells)) {
      say(cell, count(row[name]));
      set(cell, "data-zero", row[name] === 0 ? "yes" : null);
      if (name === "lag") set(cell, "data-late", row.lag > 80 ? "yes" : null);
    }
    say(this.#crash, row.damage ?? (row.crash === null ? "" : `${when(row.crashed_at)}  ${row.crash}`));
    set(this.#crash, "title", row.damage ?? row.crash);
    return this.element;
  }
}
