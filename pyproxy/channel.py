"""How a message gets from one process to the other.

One connected AF_UNIX stream socket, inherited by the worker. A frame is its length (4 bytes, big endian) and the
message in MessagePack; what the messages are is messages.py's. A peer that does not read costs bounded memory: past
the high-water mark of the transport only the newest message of each kind waits (see messages.py: each carries its
whole state). The end of the other process is the end of the stream, and is told once.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Self, cast

import msgspec

from pyproxy.messages import Complaint, Configured, Message, Script, ScriptKnown
from pyproxy.scripts import digest_of

FRAME_LIMIT = 16 << 20
"""Bytes of one message. A topology with every command of a server learned is below 1 MiB; more is a broken peer."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encoded(message: Message) -> bytes:
    return _encoder.encode(message)


class Channel(asyncio.Protocol):
    """One end. `on_message` gets each message, `on_closed` once: the other end is gone or broke the framing."""

    def __init__(self, on_message: Callable[[Message], None], on_closed: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._begun = False
        self._congested = False
        self._waiting: dict[tuple[type, str], Message] = {}

    @classmethod
    async def open(
        cls, sock: socket.socket, on_message: Callable[[Message], None], on_closed: Callable[[], None]
    ) -> Self:
        """Take over a connected socket; from here on it is closed by the channel."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_message, on_closed), sock=sock)
        loop.call_soon(channel._begin)  # nothing is told before the caller has the channel
        return channel

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def congested(self) -> bool:
        """The other end does not read at the moment."""
        return self._congested

    def send(self, message: Message, body: bytes = b"") -> None:
        """Send, or let it wait for a peer that does not read; to a closed channel nothing is sent.

        `body`: the same `encoded`, for who sends it to many.
        """
        if self._transport is None or self._transport.is_closing():
            return
        if self._congested:
            self._waiting[type(message), _about(message)] = message
            return
        body = body or encoded(message)
        self._transport.write(len(body).to_bytes(4) + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def _begin(self) -> None:
        self._begun = True
        self._deliver()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._begun:
            self._deliver()

    def _deliver(self) -> None:
        while len(self._received) >= 4:
            length = int.from_bytes(self._received[:4])
            if length > FRAME_LIMIT:
                self.close()
                return
            if len(self._received) < 4 + length:
                return
            body = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            try:
                message = _decoder.decode(body)
            except msgspec.MsgspecError:
                self.close()
                return
            self._on_message(message)

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        waiting, self._waiting = self._waiting, {}
        for message in waiting.values():
            self.send(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._waiting.clear()
        self._on_closed()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "congested" if self._congested else "open"
        return f"<Channel {state}, {len(self._waiting)} waiting>"


def _about(message: Message) -> str:
    """Messages of one kind about different things do not make each other needless."""
    match message:
        case Complaint(shard=about) | Configured(name=about):
            return about
        case Script(text=text):
            return digest_of(text)[:1].decode()  # so that no more than 16 wait; one that is lost is loaded again
        case ScriptKnown(digest=digest):
            return digest.decode()
    return ""
