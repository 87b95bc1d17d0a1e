/** The token, and requests with it. It is kept here, in memory, and nowhere else. */

let token = null;

/** An answer that is no success. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function signIn(given) {
  token = given;
}

export function signOut() {
  token = null;
}

export function isSignedIn() {
  return token !== null;
}

/** Headers that carry the token. */
export function bearer() {
  return { Authorization: `Bearer ${token}` };
}

/**
 * What the server answers. A path is given in parts, which are escaped.
 * @param {string} method
 * @param {string[]} path
 * @param {{query?: Record<string, unknown>, body?: unknown}} [more] empty values of the query are left out.
 */
export async function ask(method, path, { query = {}, body } = {}) {
  const wanted = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(wanted.map(([name, value]) => [name, String(value)])).toString();
  const url = `/${path.map(encodeURIComponent).join("/")}${search ? `?${search}` : ""}`;
  const headers = body === undefined ? bearer() : { ...bearer(), "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  } catch {
    throw new Problem(0, "the server does not answer");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, found.detail ?? `the server answered ${answer.status}`);
  return found;
}
