"""Diagnosis actors and their supervision: who follows what, from which number on, and what happens when one crashes.

Knows neither HTTP, JSON, SQL nor sockets: it is handed a store and a `render(event) -> bytes`.
The door is `actors.registry.Registry`.
"""
