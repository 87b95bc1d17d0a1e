"""The durable outbox: streams of opaque payloads under a string key, and what belongs to them.

Knows diagnoses (owner, viewers), their events, the cursors of their subscribers, idempotency keys and
audit rows. Knows no HTTP, no JSON and no actors. The composition root and the offline commands open a store; everybody
else is handed one and talks to it through the Protocols in `storage.store`.

    store      the contract of every engine
    records    what it is told and answers; `errors`: what can go wrong
    memory     the twin: an engine without a disk, for tests; its handles share a `memory_engine`
    sqlite/    the engine: one file, one writer
    disk/      files, whatever is in them

The other files are rules that all engines share: time (`belief`, `clock`), damage (`damage`), what can be stored
(`checks`), how long a page is (`pages`), what is heard of others (`news`, `bus`), a disk that does
not answer (`stall`), an answer that is not there yet (`pending`).
"""
