"""Random names: of epochs, of requests, of the batches and inboxes of an engine of several servers."""

import secrets


def new_id() -> str:
    """A random name of 16 hexadecimal digits, which never repeats."""
    return secrets.token_hex(8)
