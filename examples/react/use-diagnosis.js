import { useEffect, useReducer } from "react";
import { Follower } from "avicenna-live-client";

const NOTHING = { status: "connecting", state: null, updates: [], error: null };

function next(seen, item) {
  switch (item.type) {
    case "begin":
      return NOTHING;
    case "status":
      return { ...seen, status: item.name };
    case "error":
      return { ...seen, error: item.error };
    case "snapshot": // after a gap or a reset, too: what was shown is void
      return { ...seen, state: item.data, updates: [] };
    default:
      return item.type.endsWith("_update") ? { ...seen, updates: [...seen.updates, item].slice(-100) } : seen;
  }
}

/** What a diagnosis is: `state` from `options.getState`, the `updates` since, the `status` of the connection. */
export function useDiagnosis(url, diagnosisId, options) { // make `options` once: new ones begin anew
  const [seen, tell] = useReducer(next, NOTHING);
  useEffect(() => {
    let isMounted = true;
    const say = (item) => isMounted && tell(item);
    say({ type: "begin" });
    const live = new Follower(url, { ...options, onState: (_, { name }) => say({ type: "status", name }) });
    (async () => {
      for await (const item of live.follow(diagnosisId)) say(item);
    })().catch((error) => say({ type: "error", error }));
    return () => {
      isMounted = false;
      live.close();
    };
  }, [url, diagnosisId, options]);
  return seen;
}
