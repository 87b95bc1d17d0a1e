"""The edge: connections from the listening socket to the route, and, after the upgrade, the WebSocket connections."""
