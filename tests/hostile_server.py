"""Servers that say something else than the truth. A `HostileRelay` asks a real server, and passes on all the rest:

    worker ──▶ HostileRelay.port ──▶ the server's port  one connection there for each here, one question at a time
           ◀── the server's answers, but for the one that is a lie ──

A `HostileServer` asks nobody.

Questions are counted from `listen()` on, over all relays of a `Stage` and all their connections: which question of a
command is lied to is so the same each time. What a connection is set up with is not counted.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from protocol import scan
from protocol.request import encode
from pyproxy.fleet import HOST

Lie = Callable[[int, list[bytes]], bytes | None]
"""The place of a question, from 0, and the question -> what is said in place of the truth; None: the truth."""


def truth(place: int, argv: list[bytes]) -> None:
    """Never a lie."""


class Stage:
    """What was asked since `listen()`, and what of it is answered by a lie."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lie: Lie = truth
        self.asked: list[bytes] = []
        """The names of the commands."""

    def listen(self, lie: Lie = truth) -> None:
        """Count anew."""
        with self._lock:
            self.asked = []
            self._lie = lie

    def answer(self, argv: list[bytes], said: bytes) -> bytes:
        """`said`: the truth."""
        with self._lock:
            if argv[0].upper() in (b"ECHO", b"PING"):
                return said
            self.asked.append(argv[0].upper())
            lie = self._lie(len(self.asked) - 1, argv)
            return said if lie is None else lie


class _Listening:
    """A context manager, which serves each connection in a thread of its own; `port` is where it listens."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name=type(self).__name__, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(client)
                self._accepted(client)

    def _accepted(self, client: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Until the client ends it."""
        raise NotImplementedError


class HostileRelay(_Listening):
    """Listens on the same host as the server."""

    def __init__(self, server_port: int, stage: Stage) -> None:
        super().__init__()
        self._server_port = server_port
        self._stage = stage

    def _serve(self, client: socket.socket) -> None:
        """Until one of them ends it. The set-up is over when the ECHO of it is answered."""
        with contextlib.suppress(OSError, scan.ProtocolError), client, self._to_server() as server:
            self._open.add(server)
            self._relay(client, server)
            self._open.discard(server)
        self._open.discard(client)

    def _to_server(self) -> socket.socket:
        server = socket.create_connection((HOST, self._server_port))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        requests, replies, is_set_up = scan.Requests(), scan.Replies(resp3=True), False
        while data := client.recv(1 << 16):
            for _, frame in requests.feed(data):
                argv = scan.argv(frame)
                server.sendall(encode(argv))
                said = self._read(server, replies)
                client.sendall(self._stage.answer(argv, said) if is_set_up else said)
                is_set_up = is_set_up or argv[0].upper() == b"ECHO"

    def _read(self, server: socket.socket, replies: scan.Replies) -> bytes:
        while True:
            data = server.recv(1 << 16)
            if not data:
                raise ConnectionError
            if frames := replies.feed(data):
                return b"".join(frames)


class HostileServer(_Listening):
    """No server at all, but it answers the set-up and PING.

    `says`: by the name of a command what is said to it, a piece at a time, and a pause until `go_on()` between them.
    Any other command is answered by `+OK`.
    """

    def __init__(self, says: Mapping[bytes, Sequence[bytes]]) -> None:
        super().__init__()
        self._says = says
        self._goes_on = threading.Semaphore(0)
        self.heard = bytearray()
        """All that was read, of all connections."""
        self.said = 0
        """Bytes that were taken by the kernel, of what there was to say."""
        self.accepted = 0

    def go_on(self, connections: int = 1) -> None:
        """So many go on with what they have to say."""
        self._goes_on.release(connections)

    def _accepted(self, client: socket.socket) -> None:
        self.accepted += 1
        super()._accepted(client)

    def _serve(self, client: socket.socket) -> None:
        requests = scan.Requests()
        with contextlib.suppress(OSError, scan.ProtocolError), client:
            while data := client.recv(1 << 16):
                self.heard += data
                for _, frame in requests.feed(data):
                    argv = scan.argv(frame)
                    for place, piece in enumerate(self._says.get(argv[0].upper(), ())):
                        if place:
                            self._goes_on.acquire()
                        client.sendall(piece)
                        self.said += len(piece)
                    if argv[0].upper() not in self._says:
                        client.sendall(ordinary(argv))
        self._open.discard(client)


def ordinary(argv: Sequence[bytes]) -> bytes:
    match argv[0].upper():
        case b"ECHO":
            return b"$%d\r\n%b\r\n" % (len(argv[1]), argv[1])
        case b"HELLO":
            return b"%1\r\n+proto\r\n:3\r\n"
        case b"CONFIG":
            return b"*0\r\n"
        case b"PING":
            return b"+PONG\r\n"
    return b"+OK\r\n"
