"""The commands of `avicenna-live`, one file each: `add_to` declares its options, `run` carries it out.

Those that talk to a running server know it as any client does, through HTTP and WebSocket (`client`, `tail`).
"""
