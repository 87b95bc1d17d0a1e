"""The replicated store: everything is in streams of NATS JetStream, and several processes share it."""
