"""A load of whole transactions, which redis-benchmark cannot send: MULTI, EXPIREs on random keys, EXEC, in one write.

Comes in: a port of 127.0.0.1 and a Scenario. Goes out: requests per second, p50 and p99 in ms. A request is a
whole block; every answer is compared byte for byte.
"""

import random
import selectors
import socket
import statistics
import sys
import time

from bench.scenarios import CLIENTS, SCENARIOS, Scenario
from pyproxy.fleet import HOST

DEADLINE_S = 120.0
TTL_S = 2592000  # what loop-server gives the keys of a session


class BlockFailed(RuntimeError):
    """Another answer than the expected one."""


class Sender:
    """One client: a block at a time."""

    def __init__(self, port: int, scenario: Scenario, rng: random.Random) -> None:
        self.socket = socket.create_connection((HOST, port), DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._scenario = scenario
        self._rng = rng
        each = scenario.each
        self._expected = b"+OK\r\n" + b"+QUEUED\r\n" * each + b"*%d\r\n" % each + b":1\r\n" * each
        self._got = b""
        self._sent_at = 0.0

    def send(self) -> None:
        keys = (self._rng.randrange(self._scenario.keys) for _ in range(self._scenario.each))
        expire = b"*3\r\n$6\r\nEXPIRE\r\n$16\r\nkey:%012d\r\n$7\r\n%d\r\n"
        commands = b"".join(expire % (key, TTL_S) for key in keys)
        self._got = b""
        self._sent_at = time.perf_counter()
        self.socket.sendall(b"*1\r\n$5\r\nMULTI\r\n" + commands + b"*1\r\n$4\r\nEXEC\r\n")

    def receive(self) -> float | None:
        """Milliseconds from the block to the end of its answer; None: it is not all here. Raises BlockFailed."""
        more = self.socket.recv(65536)
        self._got += more
        if not more or not self._expected.startswith(self._got):
            raise BlockFailed(f"expected {self._expected!r}, got {self._got!r}")
        if len(self._got) < len(self._expected):
            return None
        return (time.perf_counter() - self._sent_at) * 1000


def run(port: int, scenario: Scenario, requests: int) -> tuple[float, float, float]:
    """Requests per second, p50 and p99 in milliseconds, of so many blocks from CLIENTS clients. Raises BlockFailed."""
    rng = random.Random(requests)
    took: list[float] = []
    begun = CLIENTS
    with selectors.DefaultSelector() as selector:
        senders = [Sender(port, scenario, rng) for _ in range(CLIENTS)]
        for sender in senders:
            selector.register(sender.socket, selectors.EVENT_READ, sender)
        start = time.perf_counter()
        for sender in senders:
            sender.send()
        while len(took) < requests:
            ready = selector.select(DEADLINE_S)
            if not ready:
                raise BlockFailed(f"expected an answer within {DEADLINE_S:g} s, got none")
            for key, _ in ready:
                done = key.data.receive()
                if done is None:
                    continue
                took.append(done)
                if begun < requests:
                    begun += 1
                    key.data.send()
        elapsed = time.perf_counter() - start
        for sender in senders:
            sender.socket.close()
    cuts = statistics.quantiles(took, n=100)
    return len(took) / elapsed, statistics.median(took), cuts[98]


if __name__ == "__main__":
    (chosen,) = [each for each in SCENARIOS if each.name == sys.argv[2]]
    print(run(int(sys.argv[1]), chosen, int(sys.argv[3])))
