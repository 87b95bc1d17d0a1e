// `ws` on Node.js, with Node's own HTTP server: the server of its examples.
//
// The figures of our Python peers are of one thread, and so is this one's JavaScript.

import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const POST_PATH = "/ws/broadcast-feedback-update";
const followers = new Map();

/** The frame of a broadcast: the envelope of our own server without its number. */
function frame({ diagnosis_id, ...data }) {
  return JSON.stringify({ type: "feedback_update", diagnosis_id, timestamp: new Date().toISOString(), data });
}

function broadcast(body) {
  const text = frame(body);
  const mine = followers.get(body.diagnosis_id) ?? new Set();
  for (const socket of mine) socket.send(text, { binary: false });
  return { status: "broadcasted", clients_notified: mine.size };
}

const server = createServer((request, response) => {
  if (request.method !== "POST" || request.url !== POST_PATH) {
    response.writeHead(404, { "Content-Length": 0 }).end();
    return;
  }
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const answer = JSON.stringify(broadcast(JSON.parse(Buffer.concat(chunks))));
    response.writeHead(200, { "Content-Type": "application/json", "Content-Length": answer.length }).end(answer);
  });
});
server.keepAliveTimeout = 0; // a publisher that pauses between two measurements keeps its connection

new WebSocketServer({ server }).on("connection", (socket, request) => {
  const diagnosis = request.url.split("?")[0].replace("/ws/", "");
  if (!followers.has(diagnosis)) followers.set(diagnosis, new Set());
  followers.get(diagnosis).add(socket);
  socket.on("close", () => followers.get(diagnosis).delete(socket));
  socket.on("error", () => {}); // `close` follows
});

server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () =>
  console.error(`listening on http://127.0.0.1:${server.address().port}`),
);
