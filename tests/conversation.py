"""Raw bytes to a server or proxy in any cut, and all that comes back, without guessing how long to wait.

A second connection is the clock: servers and workers have one thread, so once it is answered, all that was sent before
has been read. DBSIZE is asked twice for the end: through the proxy it goes to every shard behind the earlier commands.
"""

import socket
from collections.abc import Iterable
from typing import Self

from pyproxy.fleet import HOST
from tests.protocol.framing_cases import End, Outcome

PATIENCE_S = 5.0


def connect(port: int) -> socket.socket:
    """A connection that sends each piece at once and gives up after PATIENCE_S."""
    connection = socket.create_connection((HOST, port), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_line(connection: socket.socket) -> bytes:
    """Up to the first CRLF."""
    line = b""
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError(f"closed after {line!r}")
        line += byte
    return line


def read_to_end(connection: socket.socket) -> Outcome:
    """All that comes until the other side closes; KEEPS if it has not after PATIENCE_S without a byte."""
    received = b""
    while True:
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return Outcome(received, End.RESET)
        except TimeoutError:
            return Outcome(received, End.KEEPS)
        if not more:
            return Outcome(received, End.CLOSES)
        received += more


class Conversation:
    """A connection to talk on, and one to know when what was said has been heard; a context manager."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._clock = connect(port)
        self.connection = connect(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._clock.close()

    def heard(self) -> None:
        """Return when all that was sent has been read."""
        self._ask(b"PING")

    def answered(self) -> None:
        """Return when all that was sent has been answered, if it ever is."""
        self._ask(b"DBSIZE")
        self._ask(b"DBSIZE")

    def _ask(self, command: bytes) -> None:
        self._clock.sendall(command + b"\r\n")
        read_line(self._clock)

    def say(self, pieces: Iterable[bytes]) -> None:
        """Send each piece after the one before it has been read."""
        for piece in pieces:
            self.connection.sendall(piece)
            self.heard()

    def outcome(self, expected: Outcome) -> Outcome:
        """What came, and what became of the connection; `expected` says what is worth waiting for.

        An open connection is said to be as expected: whether it waits or takes another command, only another one tells.
        """
        if expected.end is End.CLOSES:
            return read_to_end(self.connection)
        received = b""
        try:
            while len(received) < len(expected.answer):
                more = self.connection.recv(65536)
                if not more:
                    return Outcome(received, End.CLOSES)
                received += more
            self.answered()
            more, closed = self._more()
        except ConnectionResetError:
            return Outcome(received, End.RESET)
        except TimeoutError:
            return Outcome(received, expected.end)
        return Outcome(received + more, End.CLOSES if closed else expected.end)

    def _more(self) -> tuple[bytes, bool]:
        """What has come already, and whether the other side has closed."""
        received = b""
        self.connection.setblocking(False)
        try:
            while more := self.connection.recv(65536):
                received += more
            return received, True
        except BlockingIOError:
            return received, False
        finally:
            self.connection.settimeout(PATIENCE_S)
