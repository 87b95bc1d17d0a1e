/** A question before an act: what will happen, in words, and a button that does it. */

import { announce, h } from "./dom.js";

/**
 * Ask, and do it if somebody says so. Problems are shown in the question, which stays.
 * @param {{title: string, text: string, act: string, isGrave?: boolean, fields?: Node, run: () => Promise<string>}} question
 *   `run` returns what has come of it.
 * @returns {Promise<boolean>} whether it was done.
 */
export function confirm({ title, text, act, isGrave = false, fields, run }) {
  const dialog = document.getElementById("dialog");
  const problem = h("p", { class: "problem", role: "alert" });
  const cancel = h("button", { type: "button", class: "plain" }, "Cancel");
  const go = h("button", { type: "submit", class: isGrave ? "grave" : "primary" }, act);
  const form = h(
    "form", {},
    h("h2", { id: "dialog-title" }, title),
    h("p", { id: "dialog-text" }, text),
    fields, problem,
    h("p", { class: "buttons" }, cancel, go),
  );
  dialog.replaceChildren(form);
  return new Promise((resolve) => {
    let isDone = false;
    cancel.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (go.ariaDisabled === "true") return;
      go.ariaDisabled = "true";
      try {
        announce(await run());
        isDone = true;
        dialog.close();
      } catch (error) {
        problem.textContent = error.message;
        go.ariaDisabled = "false";
      }
    });
    const closed = new AbortController();
    dialog.addEventListener("close", () => {
      if (dialog.open) return; // the event is of a question before this one: it comes late
      closed.abort();
      dialog.replaceChildren();
      resolve(isDone);
    }, { signal: closed.signal });
    dialog.showModal();
    (fields?.querySelector("input, select") ?? cancel).focus();
  });
}
