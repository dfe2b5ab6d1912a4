"""A relay that lies to clients and servers, once. A checker that does not go red behind it is blind.

It has a connection to the server for each client, and passes on whole requests and replies, in their order.
"""

import asyncio
import contextlib
from collections import deque
from typing import Self

from protocol import scan
from pyproxy.fleet import HOST

Expected = bytes | bool
"""Of a request that was passed on, whether its reply is to be; of another, what is said in its place."""


class HostileRelay:
    """An asynchronous context manager; `port` is where clients connect."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.told = False
        """Whether it has lied."""
        self._server_port = server_port
        self._tasks: set[asyncio.Task[None]] = set()

    def request(self, frame: bytes) -> tuple[bytes, list[Expected]]:
        """What is sent in place of this request, and what becomes of the replies."""
        return frame, [True]

    def replies(self, frames: list[bytes]) -> list[bytes]:
        """What is said in place of these."""
        return frames

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(HOST, self._server_port)
        expected: deque[Expected] = deque()
        for pump in (self._forth(reader, to_server, writer, expected), self._back(from_server, writer, expected)):
            task = asyncio.get_running_loop().create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forth(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        expected: deque[Expected],
    ) -> None:
        frames = scan.Requests()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for _, frame in frames.feed(data):
                    sent, replies = self.request(frame)
                    expected.extend(replies)
                    server.write(sent)
                client.write(self._own(expected))
        server.close()

    async def _back(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, expected: deque[Expected]
    ) -> None:
        frames = scan.Replies()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                said: list[bytes] = []
                for frame in frames.feed(data):
                    if expected.popleft():
                        said.append(frame)
                    said.append(self._own(expected))
                client.write(b"".join(self.replies([each for each in said if each])))
        client.close()

    def _own(self, expected: deque[Expected]) -> bytes:
        """What is to be said next without the server."""
        own = b""
        while expected and isinstance(expected[0], bytes):
            own += expected.popleft()  # type: ignore[operator]
        return own


class LosesAWrite(HostileRelay):
    """Says yes to one write of this command by a client of this name, and throws it away."""

    def __init__(self, server_port: int, command: bytes, client: bytes, answer: bytes, after: int = 5) -> None:
        super().__init__(server_port)
        self._command, self._client, self._answer, self._after = command, client, answer, after

    def request(self, frame: bytes) -> tuple[bytes, list[Expected]]:
        if self._command in frame and self._client in frame:
            self._after -= 1
            if self._after == 0:
                self.told = True
                return b"", [self._answer]
        return frame, [True]


class WritesTwice(HostileRelay):
    """Sends one write twice, as a retry would."""

    def __init__(self, server_port: int, command: bytes, after: int = 5) -> None:
        super().__init__(server_port)
        self._command, self._after = command, after

    def request(self, frame: bytes) -> tuple[bytes, list[Expected]]:
        if self._command in frame:
            self._after -= 1
            if self._after == 0:
                self.told = True
                return frame + frame, [False, True]
        return frame, [True]


class SwapsReplies(HostileRelay):
    """Gives one reply to the request before its own. `of_a_kind`: both begin with this."""

    def __init__(self, server_port: int, of_a_kind: bytes) -> None:
        super().__init__(server_port)
        self._kind = of_a_kind

    def replies(self, frames: list[bytes]) -> list[bytes]:
        for index in range(len(frames) - 1):
            one, two = frames[index : index + 2]
            if not self.told and one != two and one[:1] == two[:1] == self._kind:
                self.told = True
                frames[index : index + 2] = two, one
        return frames
