"""A narrow client of NATS and JetStream, on Trio: what the replicated store needs of them, and no more."""
