/** Both trails: what was done, and who followed what; filtered, and read page by page. */

import { h, scrolling, table } from "./dom.js";
import { state, target, when } from "./format.js";
import { ask } from "./session.js";

const AUDIT = {
  title: "Audit",
  about: "What operators and registrars have done, the newest first.",
  path: "audit",
  filters: [["actor", "Who"], ["action", "Act"], ["diagnosis_id", "Diagnosis"]],
  columns: ["When", "Who", "Act", "On", "Before", "After"],
  cells: (one) => [
    h("td", {}, h("time", { datetime: one.at, title: one.at }, when(one.at))),
    h("td", { class: "name" }, one.actor),
    h("td", { class: "act" }, one.action),
    h("td", { class: "on" }, one.diagnosis_id === null ? target(one.target) : link(one.diagnosis_id)),
    h("td", { class: "said" }, state(one.before)),
    h("td", { class: "said" }, state(one.after)),
  ],
  choices: {
    action: ["actor.restart", "actor.stop", "database.backup", "database.check", "diagnosis.delete", "diagnosis.register",
      "epochs.renew", "outbox.drop_damaged", "outbox.purge", "outbox.read", "revocation.add", "revocation.lift",
      "server.drain", "subject.erase", "subscriber.disconnect"],
  },
};

const ACCESSES = {
  title: "Accesses",
  about: "Who followed which diagnosis, the newest first. The setting access_trail decides whether the server keeps this.",
  path: "accesses",
  filters: [["user_id", "Who"], ["what", "What"], ["diagnosis_id", "Diagnosis"]],
  columns: ["When", "Who", "Device", "What", "Diagnosis"],
  cells: (one) => [
    h("td", {}, h("time", { datetime: one.at, title: one.at }, when(one.at))),
    h("td", { class: "name" }, one.user_id ?? "anonymous"),
    h("td", {}, one.device ?? ""),
    h("td", { class: "act" }, one.what),
    h("td", { class: "on" }, link(one.diagnosis_id)),
  ],
  choices: { what: ["connect", "disconnect"] },
};

export const audit = () => trail(AUDIT);
export const accesses = () => trail(ACCESSES);

function link(id) {
  return h("a", { href: `#/actors/${encodeURIComponent(id)}` }, id);
}

function trail({ title, about, path, filters, columns, cells, choices }) {
  const fields = [...filters, ["since", "From"], ["until", "Until"]].map(([name, label]) => {
    const isTime = name === "since" || name === "until";
    const list = choices[name] && h("datalist", { id: `choices-${name}` }, ...choices[name].map((one) => h("option", { value: one })));
    const input = h("input", {
      id: `filter-${name}`, name, type: isTime ? "datetime-local" : "text", step: isTime ? 1 : null, max: isTime ? "9999-12-31T23:59:59" : null,
      list: list ? list.id : null, autocomplete: "off", spellcheck: "false",
    });
    return { name, isTime, input, element: h("div", { class: isTime ? "field time" : "field" }, h("label", { for: input.id }, label), input, list) };
  });
  const problem = h("p", { class: "problem", role: "alert" });
  const body = h("tbody");
  const empty = h("p", { class: "quiet empty", hidden: true }, "No rows fit.");
  const more = h("button", { type: "button", class: "plain", hidden: true }, "Older rows");
  const whole = table(title, columns, []);
  whole.replaceChild(body, whole.querySelector("tbody"));
  const form = h("form", { class: "filters", role: "search", "aria-label": `Filters of ${title}` },
    ...fields.map((one) => one.element),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Show"), h("button", { type: "reset", class: "plain" }, "Clear")));
  let query = {};
  let next = null;
  let asked = 0;

  async function read(isFirst) {
    problem.textContent = "";
    more.disabled = true;
    asked += 1;
    const number = asked;
    try {
      const page = await ask("GET", [path], { query: { ...query, limit: 100, after: isFirst ? "" : next } });
      if (number !== asked) return; // something else is wanted meanwhile
      if (isFirst) body.replaceChildren();
      body.append(...page.items.map((one) => h("tr", {}, ...cells(one))));
      next = page.next;
    } catch (error) {
      if (number !== asked) return;
      problem.textContent = error.message;
      next = null;
    }
    more.disabled = false;
    more.hidden = next === null;
    empty.hidden = body.childElementCount > 0 || problem.textContent !== "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    query = Object.fromEntries(fields.map(({ name, isTime, input }) => [name, isTime && input.value ? new Date(input.value).toISOString() : input.value.trim()]));
    read(true);
  });
  form.addEventListener("reset", () => {
    query = {};
    read(true);
  });
  more.addEventListener("click", () => read(false));
  read(true);
  const element = h("div", { class: "trails" },
    h("h1", { tabindex: "-1" }, title), h("p", { class: "quiet" }, about),
    h("section", { class: "card", "aria-label": title }, form, problem, scrolling(title, whole), empty, h("p", { class: "pager" }, more)));
  return { title, element, leave() {} };
}
