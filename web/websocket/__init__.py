"""Adopted WebSockets: frames in and out, liveness, and the one task that serves all of them."""
