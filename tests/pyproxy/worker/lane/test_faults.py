"""What becomes of requests when the worker itself fails: no memory for one object, a transport that raises.

The lane runs alone, between clients and servers that are lists of bytes. In each run one allocation, of one call into
the lane, fails; over all runs it is each of them. Whatever it was, no client gets the answer of another, nobody waits
for ever, no write is sent twice, and all counts are back where they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from bench.bare_lane import BareLane, End, Up
from protocol import scan
from protocol.request import encode
from pyproxy.worker.lane.lane import Backend, Client, Lane, Wire

memory: Any = pytest.importorskip("_testcapi", reason="this Python was built without its test modules")

ROUNDS = 60
"""Of turns and answers; a run that is not over by then hangs."""

OWNERS = [slot >> 13 for slot in range(16384)]

LARGE = b"v" * 20_000
"""More than is copied together with others."""


class Socket(End):
    """What the lane may ask of a transport; the `fails`th write raises."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.closed = False
        self._writes_left = fails

    def write(self, data: bytes) -> None:
        self._writes_left -= 1
        if self._writes_left == 0:
            raise RuntimeError("a transport that fails")
        super().write(data)

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Server(Up):
    """A link whose connection is made anew when it is lost, and the server behind it: a key's value is its name."""

    def __init__(self, lane: Lane, index: int, bare: BareLane, fails: int = 0) -> None:
        super().__init__(lane, index)
        self._turns = bare.turns
        self.writes: Counter[bytes] = Counter()
        self._connect(fails)

    def connect(self, backend: Backend) -> None:
        backend.connecting()
        self._turns.call_soon(self._connect)

    def _connect(self, fails: int = 0) -> None:
        self.end: Socket = Socket(fails)
        self._requests = scan.Requests()
        self.wire = wire = Wire(self.backends[2, 0], lambda frame: None, self._on_lost)
        wire.connection_made(cast(Any, self.end))
        wire.ready()

    def _on_lost(self, why: str) -> None:
        backend = self.backends[2, 0]
        if backend.lost(why):
            self.connect(backend)

    def answers(self) -> bytes:
        """To all that came since the last call."""
        found = self._requests.feed(self.end.take())
        return b"".join(self._answer(scan.argv(frame)) for _, frame in found)

    def _answer(self, argv: list[bytes]) -> bytes:
        name, keys = argv[0], argv[1:]
        if name == b"MSET" or name == b"SET":
            self.writes.update(keys[::2])
        return answer(name, keys)


def answer(name: bytes, keys: list[bytes]) -> bytes:
    match name:
        case b"GET":
            return b"$%d\r\n%b\r\n" % (len(keys[0]), keys[0])
        case b"MGET":
            return b"*%d\r\n" % len(keys) + b"".join(answer(b"GET", [key]) for key in keys)
        case b"SET" | b"MSET":
            return b"+OK\r\n"
    raise AssertionError(name)


class Play:
    """One run: the same requests, calls and answers each time. In call `entry` the `nth` allocation fails."""

    def __init__(self, entry: int = 0, nth: int = 0, server_fails: int = 0, client_fails: int = 0) -> None:
        self.bare = BareLane(2)
        self.lane = self.bare.lane
        self.servers = [Server(self.lane, index, self.bare, server_fails * (index == 0)) for index in range(2)]
        self.lane.set_shards(self.servers, OWNERS)
        self.entry, self._nth = entry, nth
        self.entered = 0
        self.hit = False
        """Whether that allocation was asked for."""
        self.clients: list[tuple[Client, Socket, list[list[bytes]]]] = []
        for index in range(3):
            client, end = Client(self.lane), Socket(client_fails * (index == 0))
            client.connection_made(cast(Any, end))
            self.clients.append((client, end, requests(b"%d" % index)))

    def run(self) -> None:
        for client, _, asked in self.clients:
            frames = [encode(argv) for argv in asked]
            self._enter(client, client.data_received, b"".join(frames[:-1]) + frames[-1][:9])
        for client, _, asked in self.clients:
            self._enter(client, client.data_received, encode(asked[-1])[9:])
        for _ in range(ROUNDS):
            soon, self.bare.turns._soon = self.bare.turns._soon, []
            for callback in soon:
                self._enter(None, callback)
            for server in self.servers:
                if said := server.answers():
                    self._enter(server.wire, server.wire.data_received, said)
            self._enter(None, self.lane.tick)

    def _enter(self, who: Client | Wire | None, call: Callable[..., object], *args: object) -> None:
        """A call into the lane, as an event loop makes it: who raises in it loses the connection."""
        self.entered += 1
        fault: Exception | None = None
        chosen = self.entered == self.entry
        if chosen:
            memory.set_nomemory(self._nth, self._nth + 1)
        try:
            call(*args)
        except Exception as error:
            fault = error
        if chosen:
            self.hit = not self._is_pending()
            memory.remove_mem_hooks()
        if fault is not None and who is not None:
            for client, end, _ in self.clients:
                end.aborted = end.aborted or client is who
            who.connection_lost(fault)

    def _is_pending(self) -> bool:
        """Whether the allocation that is to fail has not been asked for yet."""
        try:
            for _ in range(self._nth):
                bytearray(64)
        except MemoryError:
            return True
        return False

    def all_is_well(self) -> None:
        for client, end, asked in self.clients:
            replies = scan.Replies().feed(end.take())
            for reply, (name, *keys) in zip(replies, asked, strict=False):
                assert reply == answer(name, keys) or reply.startswith(b"-"), (name, keys, reply)
            over = end.closed or end.aborted
            assert len(replies) == len(asked) or (over and len(replies) < len(asked)), (client, len(replies))
        for server in self.servers:
            assert set(server.writes.values()) <= {1}, server.writes
            assert server.backends[2, 0].waiting_requests == 0
        assert (self.lane.inflight, self.lane.buffered) == (0, 0)
        self._still_serves()

    def _still_serves(self) -> None:
        client, end = Client(self.lane), Socket()
        client.connection_made(cast(Any, end))
        keys = [b"late:%d" % number for number in range(8)]
        client.data_received(b"".join(encode([b"GET", key]) for key in keys))
        for _ in range(8):
            self.bare.turns.turn()
            for server in self.servers:
                if said := server.answers():
                    server.wire.data_received(said)
        assert end.take() == b"".join(answer(b"GET", [key]) for key in keys)


def requests(who: bytes) -> list[list[bytes]]:
    """What one client asks: each key is its own, and on both shards there are some."""
    keys = [b"%b:%d" % (who, number) for number in range(8)]
    return [
        [b"GET", keys[0]],
        [b"SET", keys[0], b"v"],
        [b"MGET", *keys],
        [b"SET", keys[1], LARGE],
        [b"GET", keys[2]],
        [b"MSET", *(word for key in keys[2:] for word in (key, b"v"))],
        [b"GET", keys[3]],
        [b"SET", b"%b:last" % who, LARGE],
    ]


def entries() -> int:
    play = Play()
    play.run()
    play.all_is_well()
    return play.entered


def until_missed(entry: int) -> Iterator[Play]:
    """A run for each allocation of this call."""
    for nth in range(1, 10_000):
        play = Play(entry, nth)
        play.run()
        yield play
        if not play.hit:
            return


def test_without_a_fault_all_is_answered() -> None:
    play = Play()
    play.run()
    for _, end, asked in play.clients:
        assert end.take() == b"".join(answer(name, keys) for name, *keys in asked)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whatever_allocation_fails_nobody_gets_anothers_answer_or_waits_for_ever() -> None:
    runs = 0
    for entry in range(1, entries() + 1):
        for play in until_missed(entry):
            runs += 1
            try:
                play.all_is_well()
            except AssertionError as error:
                raise AssertionError(f"allocation {play._nth} of call {entry}: {error}") from error
    assert runs > 300, "so many allocations there are at least"


@pytest.mark.parametrize("fails", range(1, 8))
def test_whatever_write_to_a_server_fails_its_writes_are_uncertain_and_all_others_are_answered(fails: int) -> None:
    play = Play(server_fails=fails)
    play.run()
    play.all_is_well()


@pytest.mark.parametrize("fails", range(1, 5))
def test_whatever_write_to_a_client_fails_it_ends_that_client_and_no_other(fails: int) -> None:
    play = Play(client_fails=fails)
    play.run()
    for _, end, asked in play.clients[1:]:
        assert end.take() == b"".join(answer(name, keys) for name, *keys in asked)
        end.write(b"".join(answer(name, keys) for name, *keys in asked))
    play.all_is_well()
