"""The hot spots alone, in one process and without a socket: `pytest bench/test_hot.py`.

What a plain request costs between the kernel's calls. A batch of 64 commands (what one read of a client with pipeline
64 brings) is scanned, encoded, sent through a whole lane to ten shards and answered. Times are of one batch; none of
them is asserted on, only that the work was done.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from bench.bare_lane import BareLane
from protocol import request, table
from protocol.scan import Replies, Requests, elements
from pyproxy.hashing import slot
from pyproxy.worker.lane.lane import Wire

Benchmark = Callable[..., Any]  # the fixture of pytest-benchmark, which has no types

SHARDS = 10
BATCH = 64
VALUE = b"x" * 32
BULK = b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)
SEED = 1


def keys(count: int) -> list[bytes]:
    """Keys as redis-benchmark -r 100000 draws them."""
    drawn = random.Random(SEED)
    return [b"key:%012d" % drawn.randrange(100_000) for _ in range(count)]


GETS = [[b"GET", key] for key in keys(BATCH)]
SETS = [[b"SET", key, VALUE] for key in keys(BATCH)]
MGETS = [[b"MGET", *keys(10 * BATCH)[at : at + 10]] for at in range(0, 10 * BATCH, 10)]


def wire_form(commands: list[list[bytes]]) -> bytes:
    return b"".join(request.encode(argv) for argv in commands)


# --- alone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commands", [GETS, SETS, MGETS], ids=["get", "set", "mget10"])
def test_scan_64_requests(benchmark: Benchmark, commands: list[list[bytes]]) -> None:
    scanner, data = Requests(), wire_form(commands)
    assert len(benchmark(scanner.feed, data)) == BATCH


def test_scan_64_replies(benchmark: Benchmark) -> None:
    scanner = Replies()
    assert benchmark(scanner.feed, BULK * BATCH) == [BULK] * BATCH


def test_cut_a_reply_of_64_elements(benchmark: Benchmark) -> None:
    assert benchmark(elements, b"*%d\r\n" % BATCH + BULK * BATCH) == [BULK] * BATCH


@pytest.mark.parametrize("commands", [GETS, SETS, MGETS], ids=["get", "set", "mget10"])
def test_encode_64_requests(benchmark: Benchmark, commands: list[list[bytes]]) -> None:
    assert benchmark(wire_form, commands).count(b"*") == BATCH


def test_look_up_64_commands(benchmark: Benchmark) -> None:
    found = benchmark(lambda: [table.lookup(argv) for argv in GETS])
    assert {command.name for command in found} == {b"get"}


def test_hash_64_keys(benchmark: Benchmark) -> None:
    assert len(benchmark(lambda: [slot(argv[1]) for argv in GETS])) == BATCH


# --- through the lane -------------------------------------------------------------------------------------------------


class Bench(BareLane):
    """Between one client and ten shards."""

    def __init__(self) -> None:
        super().__init__(SHARDS)
        self.one, self.end = self.client()

    def warm(self, data: bytes, expected: bytes, answer: Callable[[bytes], bytes]) -> None:
        """Has `data` answered until it leaves in one turn: the lane lets few out until it knows the size of answers."""
        for _ in range(100):
            self.one.data_received(data)
            sent, turns = b"", 0
            while sent != expected:
                turns += 1
                if turns > BATCH or not expected.startswith(sent):
                    raise AssertionError(f"expected {len(expected)} bytes of replies, got {len(sent)}: {sent[-100:]!r}")
                self.turns.settle()
                sent += self.answer(self.answers(answer))
            if turns == 1:
                return
        raise AssertionError(f"{turns} turns for a batch, after 100 batches")

    def ask(self, data: bytes) -> None:
        """A batch from the client, up to what the shards are sent."""
        self.one.data_received(data)
        self.turns.settle()

    def answers(self, answer: Callable[[bytes], bytes]) -> list[tuple[Wire, bytes]]:
        """What each shard will answer to what has reached it."""
        answers = []
        for link in self.links:
            answers.append((link.wire, b"".join(answer(frame) for _, frame in Requests().feed(link.end.take()))))
        return answers

    def answer(self, answers: list[tuple[Wire, bytes]]) -> bytes:
        """The shards' answers, up to what the client is sent."""
        for wire, replies in answers:
            if replies:
                wire.data_received(replies)
        self.turns.settle()
        return self.end.take()

    def exchange(self, data: bytes, answers: list[tuple[Wire, bytes]]) -> bytes:
        """One batch there and back."""
        self.ask(data)
        for link in self.links:
            link.end.take()
        return self.answer(answers)


def as_server(frame: bytes) -> bytes:
    """What a server that has every key answers."""
    arguments = elements(frame)
    if arguments[0] == b"$4\r\nMGET\r\n":
        return b"*%d\r\n" % (len(arguments) - 1) + BULK * (len(arguments) - 1)
    return b"+OK\r\n" if arguments[0] == b"$3\r\nSET\r\n" else BULK


@pytest.mark.parametrize(
    ("commands", "expected"),
    [(GETS, BULK), (SETS, b"+OK\r\n"), (MGETS, b"*10\r\n" + BULK * 10)],
    ids=["dispatch-get", "dispatch-set", "split-mget10"],
)
def test_lane_64_requests_and_their_replies(benchmark: Benchmark, commands: list[list[bytes]], expected: bytes) -> None:
    bench, data = Bench(), wire_form(commands)
    bench.warm(data, expected * BATCH, as_server)
    bench.ask(data)
    answers = bench.answers(as_server)
    assert bench.answer(answers) == expected * BATCH
    assert benchmark(bench.exchange, data, answers) == expected * BATCH
