"""Benchmarks of the whole server beside its peers: the same load generator, the same message, in one run.

`python -m benchmarks` (`make bench`) runs them; docs/BENCHMARKS.md says what the figures mean. Nothing here is
imported by the server.
"""
