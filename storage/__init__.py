"""The durable outbox: streams of opaque payloads under a string key, and what belongs to them.

Knows diagnoses (owner, viewers), their events, the cursors of their subscribers, idempotency keys and
audit rows. Knows no HTTP, no JSON and no actors. The composition root and the offline commands open a store; everybody
else is handed one and talks to it through `storage.store.Store`.
"""
