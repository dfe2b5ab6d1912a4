"""One connection of the watcher to one server, over TLS and with AUTH where the configuration says so.

Commands go out in one write, their replies come back as values, and all of it is bounded: in time by the caller's
deadline, in memory by REPLY_LIMIT. Framing is protocol.scan's, so nothing is allocated on a header's word; only
whole frames reach hiredis. What the server does wrong, and what the network does, is a NodeError that says so; the
connection is then of no more use.
"""

import asyncio
import socket
import struct
from typing import Self

from protocol import scan
from protocol.reply import BadFrame, Error, Value, decode
from protocol.request import Request
from pyproxy.access import Access, admitted, why
from pyproxy.deadline import within
from pyproxy.shardmap import Node

REPLY_LIMIT = 16 << 20

INFO_LIMIT = 128 << 10
"""Of what a server says of itself at each look, and what all workers are told: twenty times what one says by itself."""
"""Bytes of the replies to one call. COMMAND of Valkey 9 is 250 KB, INFO 10 KB; a sampled key may be longer."""

READ_BYTES = 256 * 1024

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s; socket(7)


class NodeError(Exception):
    """What happened instead of a reply; said to operators and, when the shard is down, to clients.

    `silent`: nothing came within the deadline, so the server may be alive.
    """

    def __init__(self, why: str, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


class NodeConnection:
    """An open connection: RESP2, database 0."""

    def __init__(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._node = node
        self._reader = reader
        self._writer = writer
        self._owed = False  # something was asked and is not answered

    @classmethod
    async def open(cls, node: Node, access: Access, deadline_s: float) -> Self:
        """Connected, and let in. Raises NodeError."""
        tls = None
        try:
            tls = access.tls()
            async with within(deadline_s):
                reader, writer = await asyncio.open_connection(node.host, node.port, ssl=tls)
        except TimeoutError:
            why_not = f"not connected{' over tls' if tls else ''} within {deadline_s:g} s"
            raise NodeError(why_not, silent=True) from None
        except OSError as exc:  # ConnectionRefusedError, gaierror, SSLError ...
            raise NodeError(why(exc)) from None
        connection = cls(node, reader, writer)
        try:
            await connection._authenticate(access, deadline_s)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _authenticate(self, access: Access, deadline_s: float) -> None:
        try:
            auths = access.auths()
            while auths:
                (answer,) = await self.ask(tuple(auths.pop(0)), deadline_s=deadline_s)
                error = answer.line if isinstance(answer, Error) else b"" if answer == b"OK" else b"?"
                if admitted(error, auths):
                    return
        except OSError as exc:
            raise NodeError(why(exc)) from None

    async def ask(
        self, *commands: tuple[bytes, ...], deadline_s: float, most: int = 0
    ) -> list[Value]:
        """The replies to these commands, in their order; an error reply is an `Error` value. Raises NodeError.

        `most`: bytes of all replies together; 0: REPLY_LIMIT.
        """
        frames: list[bytes] = []
        machine = scan.Replies()
        received = 0
        try:
            async with within(deadline_s):
                self._owed = True
                self._writer.write(b"".join(Request(argv).frame for argv in commands))
                while len(frames) < len(commands):
                    data = await self._reader.read(READ_BYTES)
                    received += len(data)
                    if not data:
                        raise NodeError("connection closed by the server")
                    if received > (most or REPLY_LIMIT):
                        raise NodeError(f"reply of more than {most or REPLY_LIMIT} bytes")
                    frames += machine.feed(data)
            self._owed = False
            if len(frames) > len(commands):
                raise NodeError("reply that nobody asked for")
            return [decode(frame) for frame in frames]
        except TimeoutError:
            raise NodeError(f"no reply within {deadline_s:g} s", silent=True) from None
        except OSError as exc:
            raise NodeError(why(exc)) from None
        except RuntimeError:  # what uvloop says of a connection that was reset while nobody looked
            raise NodeError("connection closed by the server") from None
        except (scan.ProtocolError, BadFrame):
            raise NodeError("not a redis server: it answered what is no reply") from None

    async def hears(self, within_s: float) -> bool:
        """Whether a server that was subscribed to says anything within so many seconds; what it says is dropped.

        Raises NodeError.
        """
        try:
            async with within(within_s):
                data = await self._reader.read(READ_BYTES)
        except TimeoutError:
            return False
        except OSError as exc:
            raise NodeError(why(exc)) from None
        if not data:
            raise NodeError("connection closed by the server")
        return True

    def close(self) -> None:
        if self._owed:
            # What the kernel still has of it must not arrive later, a REPLICAOF that nobody counts on any more, say.
            sock = self._writer.get_extra_info("socket")
            if sock is not None:  # else it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()  # at once: a goodbye, as TLS has one, may wait for a server that hangs

    def __repr__(self) -> str:
        return f"<NodeConnection {self._node}{' closing' if self._writer.is_closing() else ''}>"
