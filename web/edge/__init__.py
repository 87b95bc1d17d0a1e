"""The edge: connections, from the listening socket to the route and, for a WebSocket, to whoever adopts it."""
