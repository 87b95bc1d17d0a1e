"""What one end of a stream has to send: frames wait here until the stream takes them."""

from __future__ import annotations

import trio

from storage.remote.frames import framed


class Outgoing:
    """The frames that one stream is to carry, in order. All that come within one turn are written at once."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes that the stream has not taken yet."""
        self._frames: list[bytes] = []
        self._stirred = trio.Event()

    def say(self, data: bytes) -> None:
        """Send a frame with this content.

        Raises:
            FrameTooLong: no frame can carry it.
        """
        self.send(framed(data))

    def send(self, frame: bytes) -> None:
        """Send a frame that is made."""
        self._frames.append(frame)
        self.size += len(frame)
        self._stirred.set()

    async def write(self, stream: trio.abc.SendStream) -> None:
        """Write what is to be sent; until cancelled.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the stream has ended.
        """
        while True:
            await self._stirred.wait()
            self._stirred = trio.Event()
            frames, self._frames = self._frames, []
            if frames:
                data = b"".join(frames)
                await stream.send_all(data)
                self.size -= len(data)
