"""Following a diagnosis: over a WebSocket or an event stream, from admission to the last receipt."""
