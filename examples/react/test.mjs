// Runs the hook in Node, in a small DOM and in strict mode (each effect runs twice), against a real server.
//
//     node test.mjs URL TOKEN
//
// It prints what the component shows, whenever that changes. `leave` on stdin unmounts it; then the process ends by itself.

import { createElement as element, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Window } from "happy-dom";
import WebSocket from "ws";

import { useDiagnosis } from "./use-diagnosis.js";

const [url, token] = process.argv.slice(2);
const window = new Window();
const { document } = window;
globalThis.window = window;

const options = { token, device: "react", WebSocket, getState: async () => ({ herb: "saffron" }) };
let shown = null;

function Diagnosis() {
  const { status, state, updates, error } = useDiagnosis(url, 42, options);
  const text = JSON.stringify({ status, state, seqs: updates.map(({ seq }) => seq), error: error && `${error}` });
  if (text !== shown) console.log((shown = text));
  return element("p", null, text);
}

const place = document.createElement("div");
document.body.append(place);
const root = createRoot(place);
root.render(element(StrictMode, null, element(Diagnosis)));

process.stdin.once("data", async () => {
  root.unmount();
  console.log(JSON.stringify({ left: place.innerHTML }));
  process.stdin.destroy();
  await window.happyDOM.close();
});
