"""Publishing: an update that a service sends becomes an event of its diagnosis."""
