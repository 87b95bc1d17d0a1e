// The page of the demo: it follows diagnosis 42 as any page does, with /client.js, and shows every number it gets.

import { Follower } from "/client.js";

const DIAGNOSIS = 42;
const SHOWN = { numbers: 132, points: 40, feedbacks: 6, lines: 60 };
const ACTOR_MS = 2_000;

const of = (id) => document.getElementById(id);

/* ---- what is shown ---- */

function say(text) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  line.append(time, text);
  of("lines").prepend(line);
  while (of("lines").children.length > SHOWN.lines) of("lines").lastChild.remove();
}

const count = { received: 0, late: 0, gone: 0, twice: 0, first: null, last: null };

function account() {
  const { received, late, gone, twice, first, last } = count;
  if (last === null) return;
  const holes = last - first + 1 - received - gone;
  let text = `#${first} to #${last}: ${received} received`;
  if (late) text += `, ${late} of them after an absence`;
  if (gone) text += `; ${gone} no longer kept, named in a gap`;
  text += holes || twice ? `. Missing without a word: ${holes}; twice: ${twice}.` : ". None is missing, none came twice.";
  of("account").textContent = text;
}

function mark(text, kind, title) {
  const cell = document.createElement("li");
  cell.textContent = text;
  cell.className = kind;
  cell.title = title;
  of("strip").prepend(cell);
  while (of("strip").children.length > SHOWN.numbers) of("strip").lastChild.remove();
}

function countIn(first, last, kind) {
  count.first ??= first;
  if (count.last !== null && first <= count.last) count.twice += 1;
  count.last = last;
  count[kind] += last - first + 1;
}

/** When this page was last found up to date: what is older had to wait for it. Server and page have one clock here. */
let liveSince = Infinity;

function showNumber({ seq, timestamp, type }) {
  const isLate = Date.parse(timestamp) < liveSince;
  countIn(seq, seq, "received");
  if (isLate) count.late += 1;
  mark(seq, isLate ? "late" : "live", `${type}, ${timestamp}`);
}

const points = [];

const show = {
  recommendation_update({ new_data, changed_fields, reason }) {
    for (const field of document.querySelectorAll("#recommendation [data-field]")) {
      field.textContent = new_data[field.dataset.field] ?? "–";
      field.classList.toggle("changed", changed_fields.includes(field.dataset.field));
    }
    of("reason").textContent = reason ?? "";
  },

  effectiveness_update({ new_effectiveness, sample_size }) {
    points.push(new_effectiveness);
    if (points.length > SHOWN.points) points.shift();
    const step = 320 / (SHOWN.points - 1);
    of("line").setAttribute("points", points.map((value, at) => `${at * step},${92 - value * 88}`).join(" "));
    of("effectiveness-value").textContent = `${Math.round(new_effectiveness * 100)} %`;
    of("effectiveness-sample").textContent = sample_size == null ? "" : `of ${sample_size} patients`;
  },

  feedback_update({ rating, comment }) {
    const line = document.createElement("li");
    const stars = document.createElement("span");
    stars.className = "stars";
    stars.textContent = "★".repeat(rating) + "☆".repeat(5 - rating);
    stars.setAttribute("aria-label", `${rating} of 5`);
    stars.setAttribute("role", "img");
    const words = document.createElement("span");
    words.dir = "auto";
    words.textContent = comment ?? "";
    line.append(stars, words);
    of("feedbacks").prepend(line);
    while (of("feedbacks").children.length > SHOWN.feedbacks) of("feedbacks").lastChild.remove();
  },

  gap({ first, last, reason }) {
    countIn(first, last, "gone");
    mark(first === last ? first : `${first}–${last}`, "gone", reason);
    say(`Gap: #${first} to #${last} are no longer kept (${reason}).`);
  },

  reset() {
    Object.assign(count, { received: 0, late: 0, gone: 0, twice: 0, first: null, last: null });
    of("strip").replaceChildren();
    say("The numbering began anew.");
  },
};

/* ---- following ---- */

let live = null;
let position = null;

/** The position outlives the offline button: it is what the page knows. */
const store = {
  load: () => position,
  save: (_, reached) => {
    position = reached;
  },
};

function showStatus(_, { name, reason }) {
  of("status").dataset.status = name;
  of("status").textContent = name.replace("_", " ");
  if (name === "live") {
    liveSince = Date.now();
    say("Live.");
  } else liveSince = Infinity;
  if (name === "offline") say(`Offline${reason ? `: ${reason}` : ""}. It comes back by itself.`);
}

async function follow() {
  live = new Follower(location.origin, { store, onState: showStatus, heartbeat: 10 });
  try {
    // A page that was loaded anew shows all that is kept; one that comes back goes on where it stopped.
    for await (const item of live.follow(DIAGNOSIS, position === null ? { after: 0 } : {})) {
      if ("seq" in item) showNumber(item);
      show[item.type]?.(item.data ?? item);
      account();
    }
  } catch (error) {
    say(`It ended: ${error.message}`);
  }
}

of("away").addEventListener("click", async () => {
  const isAway = of("away").getAttribute("aria-pressed") === "true";
  of("away").setAttribute("aria-pressed", String(!isAway));
  of("away").textContent = isAway ? "take it offline" : "bring it back";
  if (isAway) {
    say(`Back; going on after #${position?.seq ?? 0}.`);
    follow();
  } else {
    await live.close();
    of("status").dataset.status = of("status").textContent = "offline";
    say("Offline until you bring it back.");
  }
});

/* ---- buttons, and the actor ---- */

for (const button of document.querySelectorAll("[data-post]")) {
  const group = button.parentElement.querySelector("h3").textContent;
  button.setAttribute("aria-label", `${group}: ${button.textContent}`);
  button.addEventListener("click", async () => {
    if (button.ariaBusy === "true") return;
    // Not `disabled`: a button that is loses the focus, and who uses the keyboard begins at the top again.
    button.ariaBusy = "true";
    try {
      const answer = await fetch(button.dataset.post, { method: "POST" });
      const { numbers = [], detail } = await answer.json();
      const which = numbers.length > 1 ? `#${numbers[0]} to #${numbers.at(-1)}` : numbers.length ? `#${numbers[0]}` : "";
      say(`${group}, ${button.textContent}: ${answer.ok ? which || "done" : detail}`);
    } catch {
      say(`${group}, ${button.textContent}: the server does not answer.`);
    }
    button.ariaBusy = "false";
  });
}

async function showActor() {
  try {
    const answer = await fetch("/demo/actor");
    if (answer.ok) {
      const { state, incarnation, restarts } = await answer.json();
      const crashes = restarts === 1 ? "1 crash" : `${restarts} crashes`;
      of("actor").textContent = `actor ${state}, incarnation ${incarnation}, ${crashes}`;
    }
  } catch {
    of("actor").textContent = "no server";
  }
  setTimeout(showActor, ACTOR_MS);
}

showActor();
follow();
