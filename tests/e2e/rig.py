"""What the end-to-end tests share: a blocking client, a proxy behind hops, keys that live on a given shard.

Nothing is asserted here but that what must come does come: `Connection` waits up to PATIENCE_S, then says what it saw.
"""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import hiredis

from protocol import request
from pyproxy.config import Config
from pyproxy.fleet import HOST, Fleet, Process, Proxy, Server, Table, Value, wait_until
from tests.faults import Hop

PATIENCE_S = 20.0
"""How long a test waits for what must come; a loaded machine is slow. Nothing is asserted about time."""

PATIENT = {"connect_s": PATIENCE_S, "reply_s": PATIENCE_S, "silence_s": PATIENCE_S}
"""Deadlines that do not pass by themselves: for tests of something else."""

Argument = str | bytes | int

_NOTHING = object()


class Connection:
    """One client connection, in blocking calls. Error replies are returned, as hiredis.ReplyError."""

    def __init__(self, port: int, *, receive_buffer: int = 0, patience_s: float = PATIENCE_S) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(patience_s)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((HOST, port))
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)

    def send(self, *commands: Sequence[Argument]) -> None:
        """All of them in one write, without waiting for a reply."""
        self.socket.sendall(b"".join(packed(*command) for command in commands))

    def read(self) -> object:
        """The next reply; AssertionError if it does not come."""
        while (reply := self._reader.gets()) is _NOTHING:
            try:
                received = self.socket.recv(1 << 20)
            except TimeoutError:
                raise AssertionError(f"waited {self.socket.gettimeout():g} s for a reply in vain") from None
            assert received, "the connection was closed where a reply was expected"
            self._reader.feed(received)
        return reply

    def reads(self, count: int) -> list[object]:
        return [self.read() for _ in range(count)]

    def ask(self, *argv: Argument) -> object:
        self.send(argv)
        return self.read()

    def until_end(self) -> bytes:
        """What is still sent before the FIN; a reset raises ConnectionResetError."""
        received = b""
        while more := self.socket.recv(1 << 20):
            received += more
        return received

    def reset(self) -> None:
        """Leave by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def packed(*argv: Argument) -> bytes:
    return request.encode([str(each).encode() if not isinstance(each, bytes) else each for each in argv])


def error(reply: object) -> str:
    """The text of an error reply; AssertionError for any other."""
    assert isinstance(reply, hiredis.ReplyError), f"expected an error reply, got {reply!r}"
    return str(reply)


@contextlib.contextmanager
def behind(fleet: Fleet, hops: Mapping[int, Hop], workers: int = 1, **tables: Table | Value) -> Iterator[Proxy]:
    """A proxy that reaches the primaries of the shards with these indexes through hops."""
    proxy = Proxy(fleet, None, workers, **tables)
    text = proxy.config.read_text()
    for index, hop in hops.items():
        text = text.replace(fleet.shards[index].primary.address, hop.address)
    proxy.config.write_text(text)
    with proxy:
        yield proxy


def of_a_worker(first: bytes) -> bool:
    """Whether a connection to a server, by its first bytes, is one that carries requests: those begin with set-up."""
    return b"ECHO" in first


class Configured(Protocol):
    config: Path


class Keys:
    """Keys by the shard they live on."""

    def __init__(self, proxy: Configured) -> None:
        self._map = Config.load(proxy.config).shard_map()
        self._names = {shard.name: index for index, shard in enumerate(self._map.shards)}

    def on(self, shard: int, count: int = 1, prefix: str = "k") -> list[str]:
        """`count` different keys that live on the shard with this index."""
        found: list[str] = []
        number = 0
        while len(found) < count:
            key = f"{prefix}{number}"
            number += 1
            if self.shard_of(key) == shard:
                found.append(key)
        return found

    def shard_of(self, key: str) -> int:
        """The index of the shard where this key lives."""
        return self._names[self._map.shard_of(key.encode()).name]

    def one(self, shard: int, prefix: str = "k") -> str:
        return self.on(shard, 1, prefix)[0]


def wait_for_line(proxy: Process, pattern: str) -> None:
    wait_until(f"the log to say {pattern!r}", lambda: bool(re.search(pattern, proxy.log.read_text())), proxy.tail)


def proxy_info(conn: Connection) -> dict[str, str]:
    """The fields of INFO's sections about the proxy itself. Its numbers are up to 20 ms old."""
    text = conn.ask("INFO", "proxy", "clients", "stats")
    assert isinstance(text, bytes)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def wait_for_info(conn: Connection, what: str, done: Callable[[dict[str, str]], bool]) -> None:
    """Return once INFO says so; FleetError with what it said last."""
    seen: dict[str, str] = {}

    def health() -> bool:
        seen.update(proxy_info(conn))
        return done(seen)

    wait_until(what, health, lambda: f"INFO says {seen}", PATIENCE_S)


@contextlib.contextmanager
def killed(server: Server, *proxies: Proxy) -> Iterator[None]:
    """That server is dead inside, and these proxies know it; after it, it is back and they use it again.

    For a server and proxies that later tests use as well: those would otherwise meet the end of this outage. The parent
    sees a server again by its own connection, so a worker may still wait before it connects when the shard is back.
    """
    with contextlib.ExitStack() as clients:
        talks = [clients.enter_context(Connection(proxy.port)) for proxy in proxies]
        server.kill()
        try:
            for conn in talks:
                wait_for_info(conn, "the shard to be down", lambda info: info["shards_down"] == "1")
            yield
        finally:
            server.start()
        for conn in talks:
            wait_for_info(conn, "the shard to be back", lambda info: info["shards_down"] == "0")
            wait_for_all_primaries(conn)


def wait_for_all_primaries(conn: Connection) -> None:
    """Wait until this worker is connected to the primary of each shard."""
    said: object = None

    def all_answer() -> bool:
        nonlocal said
        said = conn.ask("SCRIPT", "EXISTS", "nosuch")
        return bool(said == [0])

    wait_until("the primaries to answer", all_answer, lambda: repr(said))


@contextlib.contextmanager
def one_on_each_worker(proxy: Proxy, workers: int = 2) -> Iterator[dict[str, Connection]]:
    """A connection to each worker, by its index; a worker that is late takes none, so more may be opened."""
    found: dict[str, Connection] = {}
    with contextlib.ExitStack() as opened:

        def all_are_there() -> bool:
            conn = opened.enter_context(Connection(proxy.port))
            found.setdefault(proxy_info(conn)["worker"], conn)
            return len(found) == workers

        wait_until("a connection to each worker", all_are_there, lambda: f"there is one to {sorted(found)}", PATIENCE_S)
        yield found
