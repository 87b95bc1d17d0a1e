/** Tokens that are refused before their time: the list, a new one, and lifting one. */

import { confirm } from "./confirm.js";
import { h, scrolling, table } from "./dom.js";
import { when } from "./format.js";
import { ask } from "./session.js";

export function revocations() {
  const problem = h("p", { class: "problem", role: "alert" });
  const list = h("div", {});
  const kind = h("select", { id: "revoke-kind" }, h("option", { value: "sub" }, "all tokens of a user"), h("option", { value: "jti" }, "one token, by its jti"));
  const name = h("input", { id: "revoke-name", required: true, autocomplete: "off", spellcheck: "false" });
  const form = h("form", { class: "filters" },
    h("div", { class: "field" }, h("label", { for: "revoke-kind" }, "Revoke"), kind),
    h("div", { class: "field" }, h("label", { for: "revoke-name" }, "Name"), name),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Revoke…")));
  let after = null;

  async function read(isFirst = true) {
    try {
      const { items, next } = await ask("GET", ["revocations"], { query: { limit: 100, after: isFirst ? "" : after } });
      after = next;
      const rows = items.map((one) => h("tr", {},
        h("th", { scope: "row" }, one.sub ?? one.jti),
        h("td", {}, one.sub === undefined ? "one token" : "all tokens"),
        h("td", { class: "wide" }, h("time", { datetime: one.at }, when(one.at))),
        h("td", {}, h("time", { datetime: one.covers_until }, when(one.covers_until))),
        h("td", { class: "buttons" }, h("button", { type: "button", class: "small", "aria-label": `Lift the revocation of ${one.sub ?? one.jti}`, onclick: () => lift(one) }, "Lift"))));
      list.replaceChildren(
        rows.length
          ? scrolling("Revocations", table("Revocations in force", ["Of", "Refuses", h("th", { scope: "col", class: "wide" }, "Since"), "Issued until", h("th", { scope: "col" }, h("span", { class: "unseen" }, "Acts"))], rows))
          : h("p", { class: "quiet empty" }, "No token is revoked."),
        next === null ? "" : h("button", { type: "button", class: "plain", onclick: () => read(false) }, "Next"));
    } catch (error) {
      problem.textContent = error.message;
    }
  }

  async function lift(one) {
    const done = await confirm({
      title: `Lift the revocation of ${one.sub ?? one.jti}?`,
      text: "Tokens that it covers and that have not expired are accepted again at once.",
      act: "Lift",
      run: async () => {
        await ask("DELETE", ["revocations", String(one.id)]);
        return "Lifted.";
      },
    });
    if (done) read();
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [field, value] = [kind.value, name.value];
    const done = await confirm({
      title: field === "sub" ? `Revoke all tokens of ${value}?` : `Revoke the token ${value}?`,
      text: field === "sub"
        ? "Every token that this user has now is refused from this moment, and its connections are closed. A token that is issued later is accepted."
        : "The token is refused from this moment, and its connections are closed.",
      act: "Revoke",
      isGrave: true,
      run: async () => {
        await ask("POST", ["revocations"], { body: { [field]: value } });
        return `Revoked: ${value}.`;
      },
    });
    if (done) {
      name.value = "";
      read();
    }
  });
  read();
  const element = h("div", { class: "trails" },
    h("h1", { tabindex: "-1" }, "Revocations"), h("p", { class: "quiet" }, "Tokens that are refused before their time, the oldest first."),
    h("section", { class: "card", "aria-label": "Revocations" }, form, problem, list));
  return { title: "Revocations", element, leave() {} };
}
