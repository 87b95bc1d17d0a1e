/** The console: signing in and out, and which view is shown. */

import { actor } from "./actor.js";
import { Feed } from "./feed.js";
import { when } from "./format.js";
import { overview } from "./overview.js";
import { revocations } from "./revocations.js";
import { isSignedIn, signIn, signOut } from "./session.js";
import { accesses, audit } from "./trails.js";

const byId = (id) => document.getElementById(id);
const NAME = "Avicenna Live console";

let feed = null;
let shown = null;

const VIEWS = {
  "": () => overview(feed),
  audit,
  accesses,
  revocations,
};

function route() {
  if (!isSignedIn()) return;
  const [, first = "", second] = location.hash.split("/");
  const isView = Object.hasOwn(VIEWS, first);
  const make = first === "actors" && second ? () => actor(feed, decoded(second)) : VIEWS[isView ? first : ""];
  const isFirst = shown === null;
  shown?.leave();
  shown = make();
  byId("view").replaceChildren(shown.element);
  document.title = `${shown.title} · ${NAME}`;
  const current = (isView && first) || "overview";
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!isFirst) scrollTo(0, 0);
  shown.element.querySelector("h1").focus({ preventScroll: true });
}

/** A part of the address, also if somebody has typed what is no escape. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function enter(token) {
  signIn(token);
  feed = new Feed();
  let isIn = false;
  feed.addEventListener("state", () => {
    byId("link").dataset.state = feed.state;
    byId("link").textContent = feed.state;
    if (!isIn) byId("sign-in-problem").textContent = feed.state === "live" ? "" : `${feed.trouble}; trying again.`;
    if (feed.state !== "live" || isIn) return;
    isIn = true;
    byId("token").value = "";
    byId("sign-in").hidden = true;
    byId("bar").hidden = byId("view").hidden = false;
    route();
  });
  feed.addEventListener("expiring", () => {
    byId("notice").hidden = false;
    byId("notice").textContent = `Your token ends at ${when(feed.expiresAt)}. Sign in again with a newer one.`;
  });
  feed.addEventListener("refused", ({ detail }) => leave(detail ?? "the token was refused"));
  feed.open();
}

function leave(why = "") {
  feed?.close();
  shown?.leave();
  feed = shown = null;
  signOut();
  byId("dialog").close();
  byId("view").replaceChildren();
  byId("bar").hidden = byId("view").hidden = byId("notice").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-in-problem").textContent = why;
  document.title = NAME;
  byId("token").focus();
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("sign-in-problem").textContent = "";
  feed?.close();
  const token = byId("token").value.trim();
  if (/^[!-~]+$/.test(token)) enter(token);
  else byId("sign-in-problem").textContent = "This has characters that no token has, maybe unseen ones: copy the token again.";
});
byId("sign-out").addEventListener("click", () => leave());
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
addEventListener("hashchange", route);
byId("token").focus();
