"""A store in another process of this machine: what serves it there, and a `Store` for each process that asks."""
