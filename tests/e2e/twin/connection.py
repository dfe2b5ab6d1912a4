"""One conversation with a server: bytes out in given cuts, whole reply frames back.

Replies are read while requests are still being sent, as a server may stop reading until its replies are taken.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Self

from protocol.request import encode
from protocol.scan import ProtocolError, Replies
from pyproxy.fleet import HOST

ANSWER_S = 30.0  # for a whole batch; a machine may be busy


class Unanswered(Exception):
    """The server closed the connection, broke the protocol, or was silent too long; `frames` came before that."""

    def __init__(self, why: str, frames: list[bytes]) -> None:
        super().__init__(f"{why}, after {len(frames)} replies")
        self.frames = frames


class Connection:
    """A connection to 127.0.0.1:`port`; a context manager."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._rest = bytearray()  # of a reply that has not fully come

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def say(self, cuts: Sequence[bytes], wanted: int) -> list[bytes]:
        """Send these pieces, each in a write of its own -> the `wanted` replies; Unanswered if they do not come."""
        frames: list[bytes] = []
        unsent = [memoryview(cut) for cut in reversed(cuts)]
        deadline = time.monotonic() + ANSWER_S
        poll = select.poll()
        while unsent or len(frames) < wanted:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise Unanswered(f"no answer within {ANSWER_S:g} s", frames)
            if ready[0][1] & ~select.POLLOUT:
                frames += self._read(frames)
            if unsent and ready[0][1] & select.POLLOUT:
                rest = unsent.pop()
                sent = self._socket.send(rest)
                if sent < len(rest):
                    unsent.append(rest[sent:])
        return frames

    def ended(self) -> bool:
        """Whether the server closes the connection now, without a further byte."""
        self._socket.settimeout(ANSWER_S)
        return self._socket.recv(1) == b""

    def _read(self, frames: list[bytes]) -> list[bytes]:
        try:
            received = self._socket.recv(1 << 20)
        except ConnectionResetError:
            raise Unanswered("the connection was reset", frames) from None
        if not received:
            raise Unanswered("the connection was closed", frames)
        self._rest += received
        whole = []
        try:
            while end := frame_end(self._rest):
                whole.append(checked(bytes(self._rest[:end])))
                del self._rest[:end]
        except (ProtocolError, ValueError) as problem:
            raise Unanswered(f"no reply is {bytes(self._rest[:60])!r}: {problem}", [*frames, *whole]) from None
        return whole


def frame_end(data: bytes | bytearray, at: int = 0) -> int:
    """Where the frame ends that begins at `at`, a push included; 0 if it is not whole. ValueError for what is none."""
    line_end = data.find(b"\r\n", at)
    kind, end = data[at : at + 1], line_end + 2
    if kind and kind not in b"+-:$*_#,(!=%~|>":
        raise ValueError(f"expected the beginning of a reply, got {bytes(kind)!r}")
    if line_end < 0:
        return 0
    if kind in b"$!=":
        size = int(data[at + 1 : line_end])
        end += size + 2 if size >= 0 else 0
        return end if end <= len(data) else 0
    if kind in b"*~>%|":
        for _ in range(int(data[at + 1 : line_end]) * (2 if kind in b"%|" else 1) + (kind == b"|")):
            end = frame_end(data, end)
            if not end:
                return 0
    return end


def checked(frame: bytes) -> bytes:
    """The frame, if it is canonical; else ProtocolError. RESP2 is read by the same rules, a push like an array."""
    Replies(True).feed(b"*" + frame[1:] if frame[:1] == b">" else frame)
    return frame


def ask_all(conn: Connection, commands: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The reply frames to these commands, in one pipeline."""
    return conn.say([b"".join(map(encode, commands))], len(commands))
