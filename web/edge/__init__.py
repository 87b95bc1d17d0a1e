"""The edge: connections, from the listening socket to the route, and the sockets of WebSockets from there on."""
