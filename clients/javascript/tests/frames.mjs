// Frames of a server, as text.
export const EPOCH = "first";

export function frame(type, data = null, more = {}) {
  return JSON.stringify({ type, diagnosis_id: 42, timestamp: "2026-01-01T00:00:00.000Z", data, ...more });
}

export function connect(fields) {
  const data = { epoch: EPOCH, head: 0, floor: 0, resume: "fresh", missed: 0, queued: 0, ack: "app", ...fields };
  return frame("connect", data);
}

export function event(seq) {
  return frame("feedback_update", { feedback_id: seq, rating: 5 }, { seq });
}
