"""People and programs: HTTP, WebSocket, JSON, tokens, rights, the command line.

Translates between the wire contract and the actors. `web.server.composition` builds and wires everything.
"""
