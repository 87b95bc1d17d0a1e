/** Elements, made of tags, attributes and text. Text is always inserted as text. */

/** Characters that would turn round what stands beside them; the marks that Persian and Arabic need are none of them. */
const TURNING = /[\u202a-\u202e\u2066-\u2069]/g;

/** A text as it is shown: it cannot make what stands beside it read otherwise. */
function legible(text) {
  return String(text).replace(TURNING, (one) => `\\u${one.charCodeAt(0).toString(16)}`);
}

/**
 * An element.
 * @param {string} tag `div`, or `svg:path` for one of SVG.
 * @param {Record<string, unknown>} [attributes] `onclick` and the like are listeners; `false`, null and undefined are left out.
 * @param {...(Node|string|number|null|undefined|false)} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((one) => one !== null && one !== undefined && one !== false).map(asNode));
  return element;
}

function asNode(child) {
  return child instanceof Node ? child : document.createTextNode(legible(child));
}

/** Have an element say this, if it does not already. */
export function say(element, text) {
  const wanted = legible(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Have an attribute hold this, if it does not already; null removes it. */
export function set(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** Tell somebody who does not see the page what has come of something. */
export function announce(text) {
  document.getElementById("said").textContent = legible(text);
}

/**
 * A table with a caption that only screen readers have.
 * @param {string} caption
 * @param {(string|Node)[]} columns a text, or a `th`.
 * @param {Node[]} rows
 */
export function table(caption, columns, rows, attributes = {}) {
  return h(
    "table", attributes,
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, ...columns.map((one) => (one instanceof Node ? one : h("th", { scope: "col" }, one))))),
    h("tbody", {}, ...rows),
  );
}

/** What scrolls sideways on a narrow screen, also by keyboard. */
export function scrolling(label, child) {
  return h("div", { class: "scrolling", role: "region", "aria-label": label, tabindex: "0" }, child);
}
