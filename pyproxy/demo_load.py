"""The clients of the demo of moving in: they read and count all the time, and know what each answer must be.

A port and a number of keys come in; figures and whatever was wrong go out. The clients have a thread of their own, with
an event loop. What fills the server and reads it all at the end is here too, as both know how a key looks.
"""

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import cast

import hiredis
import uvloop

from pyproxy.fleet import HOST, FleetError, interrupts

CLIENTS = 20
THINK_S = 0.005
"""Of a client between an answer and its next request."""

COUNTERS = 50
"""Of each client."""

AT_ONCE = 2000
"""Commands in a pipeline that fills."""

READ_AT_ONCE = 500
"""Keys of one MGET of those that read everything."""

PATIENCE_S = 30.0

_SET = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$64\r\n%b\r\n"
_OK = b"+OK\r\n"


def _name(number: int) -> bytes:
    return b"key:%d" % number


def _value(number: int) -> bytes:
    """64 characters that are no shorter in a DUMP."""
    return blake2b(_name(number), digest_size=32).hexdigest().encode()


def fill(port: int, keys: int) -> None:
    """Give a server so many keys. Raises FleetError."""
    with socket.create_connection((HOST, port), PATIENCE_S) as connection:
        for first in range(0, keys, AT_ONCE):
            interrupts.raise_if_interrupted()
            names = [(_name(number), _value(number)) for number in range(first, min(keys, first + AT_ONCE))]
            connection.sendall(b"".join([_SET % (len(name), name, value) for name, value in names]))
            answers = b""
            while len(answers) < len(_OK) * len(names):
                answers += (received := connection.recv(1 << 16))
                if not received or answers.strip(_OK):
                    raise FleetError(f"SET was answered with {answers.replace(_OK, b'')[:60]!r}")


def different(port: int, keys: int) -> int:
    """How many keys are not what they were filled with, read through the proxy. Raises FleetError."""
    found, reader = 0, hiredis.Reader()
    with socket.create_connection((HOST, port), PATIENCE_S) as connection:
        for first in range(0, keys, READ_AT_ONCE):
            interrupts.raise_if_interrupted()
            numbers = range(first, min(keys, first + READ_AT_ONCE))
            values = _asked(connection, reader, b"MGET", *map(_name, numbers))
            if not isinstance(values, list):
                raise FleetError(f"MGET was answered with {values!r:.200}")
            found += sum(value != _value(number) for value, number in zip(values, numbers, strict=True))
    return found


def _asked(connection: socket.socket, reader: hiredis.Reader, *words: bytes) -> object:
    connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub: one word only
    while (reply := reader.gets()) is False:
        received = connection.recv(1 << 16)
        if not received:
            raise FleetError("the proxy closed a connection")
        reader.feed(received)
    return reply


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the clients, in some time."""

    requests: int
    seconds: float
    p99_s: float
    longest_s: float

    def __str__(self) -> str:
        rate = self.requests / self.seconds
        return f"{rate:,.0f} requests/s, p99 {self.p99_s * 1000:.1f} ms, longest {self.longest_s * 1000:.0f} ms"


class Load:
    """All clients."""

    def __init__(self, port: int, keys: int) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self._port = port
        self._keys = keys
        self._clients = [_Client(self, index, keys) for index in range(CLIENTS)]
        self._took: list[float] = []  # since the last measure()
        self._since = time.monotonic()
        self._ended = asyncio.Event()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Returns when no client asks any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
            self._loop.close()

    def measure(self) -> Figures:
        """What was since the last time, or since the beginning."""
        now = time.monotonic()
        took, self._took = self._took, []
        since, self._since = self._since, now
        took = sorted(took) or [0.0]
        return Figures(len(took), now - since, took[len(took) * 99 // 100], took[-1])

    def counted_wrong(self) -> int:
        """How many counters have not counted what their clients were told. After `stop`."""
        found, reader = 0, hiredis.Reader()
        with socket.create_connection((HOST, self._port), PATIENCE_S) as connection:
            for client in self._clients:
                # What was asked for last may be done without an answer that was seen.
                values = _asked(connection, reader, b"MGET", *client.counters)
                if not isinstance(values, list):
                    raise FleetError(f"MGET was answered with {values!r:.200}")
                found += sum(
                    int(value or 0) not in (count, count + (name == client.asked))
                    for name, count, value in zip(client.counters, client.counts, values, strict=True)
                )
        return found

    def note(self, began: float) -> None:
        self.answers += 1
        self._took.append(time.monotonic() - began)

    def _run(self) -> None:
        self._loop.run_until_complete(self._ask())

    async def _ask(self) -> None:
        for client in self._clients:
            try:
                await self._loop.create_connection(partial(_itself, client), HOST, self._port)
            except OSError as exc:
                self.wrong.append(f"cannot connect: {exc}")
        await self._ended.wait()


def _itself(client: "_Client") -> "_Client":
    return client


class _Client(asyncio.Protocol):
    """One client: it counts one of its own keys up, reads one of those, and reads one that is never changed."""

    def __init__(self, load: Load, index: int, keys: int) -> None:
        self.counters = [b"count:%d:%d" % (index, number) for number in range(COUNTERS)]
        self.counts = [0] * COUNTERS
        self.asked = b""  # the counter that is being counted
        self._load = load
        self._keys = keys
        self._random = random.Random(index)
        self._reader = hiredis.Reader()
        self._turn = 0
        self._number = 0
        self._expected: object = None
        self._began = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._ask()

    def _ask(self) -> None:
        assert self._transport is not None
        number, turn = self._random.randrange(COUNTERS), self._turn % 3
        self._turn += 1
        self._number, self.asked = number, b""
        if turn == 0:
            self.asked = self.counters[number]
            words, self._expected = (b"INCR", self.asked), self.counts[number] + 1
        elif turn == 1:
            count = self.counts[number]
            words, self._expected = (b"GET", self.counters[number]), b"%d" % count if count else None
        else:
            number = self._random.randrange(self._keys)
            words, self._expected = (b"GET", _name(number)), _value(number)
        self._words = words
        self._began = time.monotonic()
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub: one word only

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._reader.feed(data)
        reply = self._reader.gets()
        if reply is False:
            return
        self._load.note(self._began)
        if isinstance(reply, Exception) or reply != self._expected:
            text = b" ".join(self._words).decode()
            self._load.wrong.append(f"{text} was answered with {reply!r}, and not {self._expected!r}")
            self._transport.abort()
            self._transport = None
            return
        if self.asked:
            self.counts[self._number] += 1
            self.asked = b""
        asyncio.get_running_loop().call_later(THINK_S, self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return  # it has left after a wrong answer
        self._load.wrong.append(f"its connection was lost: {exc or 'closed by the proxy'}")
