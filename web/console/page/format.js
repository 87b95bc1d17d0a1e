/** Numbers, sizes and times as people read them. Pure. */

const GROUPED = new Intl.NumberFormat("en");

/** 12,345; large ones shortened: 1.2 M. */
export function count(number) {
  if (number < 1e6) return GROUPED.format(Math.round(number));
  return number < 1e9 ? `${(number / 1e6).toFixed(1)} M` : `${(number / 1e9).toFixed(1)} G`;
}

/** How many of something: "1 event", "2 events". */
export function many(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function bytes(number) {
  for (const [unit, size] of [["GB", 2 ** 30], ["MB", 2 ** 20], ["KB", 2 ** 10]]) {
    if (number >= size) return `${(number / size).toFixed(number >= 100 * size ? 0 : 1)} ${unit}`;
  }
  return `${number} B`;
}

/** A time that something takes: 0.42 ms, 12 ms, 1.3 s. */
export function took(seconds) {
  const ms = seconds * 1000;
  if (ms >= 1000) return `${seconds.toFixed(1)} s`;
  return ms >= 10 ? `${Math.round(ms)} ms` : `${ms >= 1 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** For how long: 4 s, 12 min, 3 h 20 min, 5 d 2 h. */
export function span(seconds) {
  const [d, hours, min] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (d) return `${d} d ${hours} h`;
  if (hours) return `${hours} h ${min} min`;
  return min ? `${min} min` : `${Math.floor(seconds)} s`;
}

/** A time of the server as the clock on the wall has it here: today without the date. */
export function when(text) {
  const at = new Date(text);
  const pad = (number) => String(number).padStart(2, "0");
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}`;
}

/**
 * What a histogram has counted since it was last looked at.
 * @returns {{count: number, mean: number, p99: number} | null} null: nothing.
 */
export function since(now, before) {
  if (!now) return null;
  const counts = now.counts.map((one, index) => one - (before?.counts[index] ?? 0));
  const total = counts.reduce((sum, one) => sum + one, 0);
  if (total <= 0) return null;
  let below = 0;
  const at = counts.findIndex((one) => (below += one) >= total * 0.99);
  const p99 = now.bounds[at] ?? now.bounds.at(-1);
  return { count: total, mean: (now.sum - (before?.sum ?? 0)) / total, p99 };
}

/** What a row of a trail says of before or after: `owner amira, viewers 2`. */
export function state(value) {
  if (value === null) return "";
  return Object.entries(value)
    .map(([name, one]) => `${name} ${typeof one === "string" || typeof one === "number" ? one : JSON.stringify(one)}`)
    .join(", ");
}

/** What an act was done to: its name, or for an object as `state` has it. */
export function target(text) {
  try {
    return text.startsWith("{") ? state(JSON.parse(text)) : text;
  } catch {
    return text; // a name that only begins so
  }
}
