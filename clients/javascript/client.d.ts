/// <reference lib="esnext.disposable" />
/** Follows diagnoses of an Avicenna Live server: every update once and in order, or a gap that names what is missing. */

/** A value of JSON. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** An id as the server sends it: an integer where it is one that JavaScript can hold, else a text. */
export type Id = number | string;

interface Event<Type extends string, Data> {
  type: Type;
  diagnosis_id: Id;
  /** From 1, one more for each event of the diagnosis. */
  seq: number;
  /** Names the history that `seq` belongs to. */
  epoch: string;
  /** When the server stored it, RFC 3339 in UTC. */
  timestamp: string;
  data: Data;
}

export type RecommendationUpdate = Event<
  "recommendation_update",
  {
    old_data: { [name: string]: Json } | null;
    new_data: { [name: string]: Json };
    reason: string | null;
    /** Keys of `new_data` whose value differs from that in `old_data`, sorted. */
    changed_fields: string[];
  }
>;

export type EffectivenessUpdate = Event<
  "effectiveness_update",
  {
    recommendation_id: Id;
    /** 0 to 1. */
    new_effectiveness: number;
    /** 0 to 1. */
    confidence: number | null;
    sample_size: number | null;
    /** 0 to 1. */
    old_effectiveness?: number;
    herb?: string;
  }
>;

export type FeedbackUpdate = Event<
  "feedback_update",
  {
    feedback_id: Id;
    /** 1 to 5. */
    rating: number;
    /** 0 to 1. */
    effectiveness: number | null;
    recommendation_id?: Id;
    comment?: string;
  }
>;

/** These numbers can no longer be had. */
export interface Gap {
  type: "gap";
  first: number;
  last: number;
  /** `evicted`: newer ones took their place. `purged`: an operator removed them. */
  reason: "evicted" | "purged";
}

/** The history is another one (a restore): what the app has is void. What the server retains after `floor` follows. */
export interface Reset {
  type: "reset";
  epoch: string;
  floor: number;
}

/** What `getState` gave. It was asked after `seq` was reached, so it may hold more; the events after `seq` follow. */
export interface Snapshot<State> {
  type: "snapshot";
  epoch: string;
  seq: number;
  data: State;
}

export type Item<State = never> =
  | RecommendationUpdate
  | EffectivenessUpdate
  | FeedbackUpdate
  | Gap
  | Reset
  | ([State] extends [never] ? never : Snapshot<State>);

export interface Position {
  /** null: the app gave a number without it, and there was no connection since. */
  epoch: string | null;
  seq: number;
}

export interface Status {
  name: "connecting" | "live" | "offline" | "needs_auth" | "ended";
  reason: string | null;
  /** The close code that led here; null: none did. */
  code: number | null;
}

/** Where positions outlive the process. What throws here leaves the iterator. */
export interface Store {
  /** The position that was saved, null: none. */
  load(diagnosisId: Id, device: string | null): Position | null | Promise<Position | null>;
  /** Called after each finished step, before it is acknowledged. */
  save(diagnosisId: Id, position: Position, device: string | null): void | Promise<void>;
}

/** Positions in `localStorage`, for each device name its own; in memory where there is no `localStorage`. */
export class LocalStore implements Store {
  /** @param name keeps apart what would be the same: servers, or lists of one page. */
  constructor(name?: string);
  load(diagnosisId: Id, device: string | null): Position | null;
  save(diagnosisId: Id, position: Position, device: string | null): void;
}

export type Token = string | (() => string | null | Promise<string | null>);

export interface Options<State = never> {
  /** A JWT, or a function that gives one: it is asked before each connect, and before the token ends. */
  token?: Token | null;
  /**
   * Names this client's queue at the server: 1-64 of `A-Z a-z 0-9 _ . -`. Default: in a page a name of its own for each
   * tab, one of a few that this browser keeps; elsewhere none. null: none.
   */
  device?: string | null;
  /** Default: positions are kept in memory, and for a tab also across reloads. */
  store?: Store;
  /** Loads the app's state: where there is no position, after a gap, and after a reset. Its result is a `Snapshot`. */
  getState?: (diagnosisId: Id) => State | Promise<State>;
  /** Called at each change of a status. */
  onState?: (diagnosisId: Id, status: Status) => void;
  /** Seconds, 5 to 300: the server says something at least so often. Silence of 1.5 times as long ends a connection. */
  heartbeat?: number;
  /** The wait before coming back is random, up to a bound that doubles from `firstMs` (500) to `maxMs` (30000). */
  backoff?: { firstMs?: number; maxMs?: number };
  /** Random numbers from 0 up to 1, for these waits. */
  random?: () => number;
  /** The class to use where there is no global one (Node 20): that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => object;
}

export interface Start {
  /** Where a client without a position begins: `oldest` (default; with `getState`: `new`), `new`, or the newest n. */
  start?: "oldest" | "new" | number;
  /** Begin after this number, whatever is stored. */
  after?: number;
  /** The history that `after` belongs to; default: the server's current one. */
  epoch?: string;
}

/** One diagnosis that is followed. Asking for the next item says that the one before is done with. */
export interface Following<State = never> extends AsyncIterableIterator<Item<State>> {
  readonly status: Status;
  /** Up to where the consumer is done, null: unknown yet. */
  readonly position: Position | null;
  return(value?: unknown): Promise<IteratorResult<Item<State>>>;
}

/** Follows diagnoses of one server. */
export class Follower<State = never> {
  /** @param url `http://HOST[:PORT]` or `https://HOST[:PORT]`; in a page the default is where it came from. */
  constructor(url?: string, options?: Options<State>);
  /** Follow a diagnosis: as soon as the iterator is asked, until it is left, the server ends it, or `close`. */
  follow(diagnosisId: Id, options?: Start): Following<State>;
  /** The token from now on. Whoever waits for one goes on. */
  useToken(token: Token | null): void;
  /** Leave all that is followed; done within 2 s. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** What the iterator throws when the server ended it for good. */
export class Ended extends Error {
  /** A close code. */
  readonly code: number;
  readonly reason: string | null;
}
