"""One PUBLISH to many subscribers: what it costs the process that they are connected to, and when the last one has it.

Comes in: a port of 127.0.0.1 and the process behind it. Goes out: Fanout. Never decides what is compared.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.measure import REPLY_DEADLINE_S, LoadFailed, cpu_ns, expect
from pyproxy.fleet import HOST

SUBSCRIBERS = 1000
MESSAGES = 200  # of one measured run
WARM_UP = 20
CHANNEL, PAYLOAD = b"bench", b"x" * 32
SUBSCRIBE = b"*2\r\n$9\r\nSUBSCRIBE\r\n$5\r\nbench\r\n"
CONFIRMED = b"*3\r\n$9\r\nsubscribe\r\n$5\r\nbench\r\n:1\r\n"
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$32\r\n%b\r\n" % PAYLOAD
MESSAGE = b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$32\r\n%b\r\n" % PAYLOAD


@dataclass(frozen=True, slots=True)
class Fanout:
    """One run. `cpu_us`: CPU of the process per message that a subscriber got; times until the last of them had it."""

    peer: str
    round: int
    subscribers: int
    messages: int
    cpu_us: float
    p50_ms: float
    max_ms: float


def fanout(peer: str, number: int, port: int, pid: int) -> Fanout:
    """One run with the process `pid` behind `port`: each message waits until all have the one before it."""
    with _subscribed(port) as subscribers, socket.create_connection((HOST, port), REPLY_DEADLINE_S) as publisher:
        for _ in range(WARM_UP):
            _publish(publisher, subscribers)
        before = cpu_ns(pid)
        times = [_publish(publisher, subscribers) for _ in range(MESSAGES)]
        spent = cpu_ns(pid) - before
    p50, most = statistics.median(times), max(times)
    return Fanout(peer, number, SUBSCRIBERS, MESSAGES, spent / MESSAGES / SUBSCRIBERS / 1000, p50 * 1000, most * 1000)


@contextmanager
def _subscribed(port: int) -> Iterator[list[socket.socket]]:
    connections: list[socket.socket] = []
    try:
        for _ in range(SUBSCRIBERS):
            connection = socket.create_connection((HOST, port), REPLY_DEADLINE_S)
            connections.append(connection)
            connection.sendall(SUBSCRIBE)
            expect(connection, CONFIRMED)
        yield connections
    finally:
        for connection in connections:
            connection.close()


def _publish(publisher: socket.socket, subscribers: Sequence[socket.socket]) -> float:
    """Seconds until all have it. Raises LoadFailed where one gets something else."""
    began = time.perf_counter()
    publisher.sendall(PUBLISH)
    with selectors.DefaultSelector() as selector:
        for each in subscribers:
            selector.register(each, selectors.EVENT_READ)
        left = len(subscribers)
        while left:
            ready = selector.select(REPLY_DEADLINE_S)
            if not ready:
                raise LoadFailed(f"{left} of {len(subscribers)} subscribers got no message")
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                expect(connection, MESSAGE)
                selector.unregister(connection)
                left -= 1
    took = time.perf_counter() - began
    expect(publisher, b":%d\r\n" % len(subscribers))
    return took
