/** A figure with its last two minutes as a line. */

import { h, say, set } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 44;
const POINTS = 120;

export class Chart {
  /**
   * @param {string} title
   * @param {(value: number) => string} text a value as people read it.
   */
  constructor(title, text) {
    this.#text = text;
    this.#value = h("span", { class: "value" }, "–");
    this.#note = h("span", { class: "quiet" });
    this.#line = h("svg:polyline", { class: "line" });
    this.#area = h("svg:polygon", { class: "area" });
    this.#svg = h(
      "svg:svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: no values yet` },
      this.#area, this.#line,
    );
    this.#title = title;
    this.element = h("section", { class: "card chart", "aria-label": title },
      h("h2", {}, title), h("p", { class: "reading" }, this.#value, " ", this.#note), this.#svg);
  }

  #text; #value; #note; #line; #area; #svg; #title;

  /**
   * @param {(number|null)[]} values the newest last; null: there was nothing to measure.
   * @param {string} note
   */
  show(values, note) {
    const known = values.filter((one) => one !== null);
    const last = values.at(-1) ?? null;
    say(this.#value, last === null ? "–" : this.#text(last));
    say(this.#note, note);
    const top = Math.max(...known, 0) || 1;
    const step = WIDTH / (POINTS - 1);
    const first = WIDTH - (values.length - 1) * step;
    const points = values.map((one, index) => `${(first + index * step).toFixed(1)},${(HEIGHT - 2 - ((one ?? 0) / top) * (HEIGHT - 6)).toFixed(1)}`);
    set(this.#line, "points", points.join(" "));
    set(this.#area, "points", points.length ? `${first.toFixed(1)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` : "");
    const now = last === null ? "nothing now" : `${this.#text(last)} now`;
    set(this.#svg, "aria-label", known.length ? `${this.#title}, last two minutes: ${now}, at most ${this.#text(top)}` : `${this.#title}: no values yet`);
  }
}
