"""Several processes on one port and one database: the parent, the process of the store, and the workers.

The parent holds the listeners, starts the others and ends them. It serves nobody itself.
"""
