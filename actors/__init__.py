"""Diagnosis actors and their supervision: who follows what, from which number on, and what happens when one crashes.

Knows neither HTTP, JSON, SQL nor sockets: it is handed a store, and a function that renders an event as a text.
The door is `actors.registry.Registry`.
"""
