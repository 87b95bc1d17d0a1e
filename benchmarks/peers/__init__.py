"""Servers to compare with: each does the same broadcast job as its users would write it, in memory, for anybody.

Each is a script that listens on a free port of 127.0.0.1 and says so on stderr as our own server does. They run in an
environment of their own (`.venv-bench`).
"""
