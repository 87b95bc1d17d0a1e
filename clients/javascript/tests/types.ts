// What the types must let through, and what they must not (`@ts-expect-error`).
import { Ended, Follower, LocalStore, type Gap, type Item, type Status } from "avicenna-live-client";

const plain = new Follower("https://updates.example.org", { token: async () => "token", store: new LocalStore() });
for await (const item of plain.follow(42, { start: "new" })) {
  if (item.type === "recommendation_update") item.data.changed_fields.join();
  else if (item.type === "effectiveness_update") item.data.new_effectiveness.toFixed();
  else if (item.type === "feedback_update") item.data.rating.toFixed();
  else if (item.type === "gap") gone(item);
  else item.floor.toFixed();
  // @ts-expect-error without getState there is no snapshot
  if (item.type === "snapshot") break;
}

function gone({ first, last, reason }: Gap): string {
  return `${first}-${last} ${reason}`;
}

const getState = async (id: number | string) => ({ herb: `of ${id}` });
const shown = (id: number | string, { name, reason, code }: Status) => console.log(id, name, reason, code);
await using stateful = new Follower(undefined, { getState, onState: shown, backoff: { maxMs: 5000 }, device: null });
const items = stateful.follow("42", { after: 3, epoch: "first" });
for await (const item of items) {
  if (item.type === "snapshot") item.data.herb.trim();
  // @ts-expect-error the state has no such field
  if (item.type === "snapshot") item.data.rating;
  const kept: Item<{ herb: string }> = item;
  console.log(kept, items.position?.seq, items.status.name);
}

try {
  await items.next();
} catch (error) {
  if (error instanceof Ended) console.log(error.code.toFixed(), error.reason);
}
stateful.useToken("another");
// @ts-expect-error a number is no token
stateful.useToken(5);
// @ts-expect-error
plain.follow(42, { start: "yesterday" });
// @ts-expect-error
new Follower("https://updates.example.org", { heartbeat: "20" });
await plain.close();
