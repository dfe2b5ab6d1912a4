"""What a proxy costs that has nothing to do: `python -m bench.idle`.

Ten shards with a replica each and the proxy of `./run demo` in front of them. First nobody asks anything; then clients
wait for keys of four shards that nobody writes. What goes out is the CPU time of the proxy's processes, parent and
workers, in percent of one core; and how soon one of such waiting clients has what was written for it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import cpu_ns, raise_file_limit
from protocol.request import Request
from pyproxy.fleet import HOST, Fleet, Proxy, Table
from pyproxy.hashing import slot

SHARDS = 10
ASKED = 4
"""The shards whose keys are waited for."""

SETTLED_S = 8.0
"""Until what happens at the start is over, before anything is measured."""

LATENCY_ROUNDS = 60
PATIENCE_S = 10.0

WAITS = ("brpop", "bzpopmin", "xread", "xreadgroup")
"""What clients may wait with."""


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each load."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (%(default)g)")
    parser.add_argument("--clients", type=int, default=200, help="that wait (%(default)d)")
    parser.add_argument("--only", default="", help="some of: idle, " + ", ".join(WAITS))
    options = parser.parse_args(given)
    raise_file_limit(20_000)
    loads = options.only.split(",") if options.only else ["idle", *WAITS]
    workers = len(os.sched_getaffinity(0))
    promotion: Table = {"promoter": "replicaof", "down_after_s": 2.0}
    with Fleet(SHARDS, 1) as fleet, Proxy(fleet, None, workers, cross_shard="emulate", promotion=promotion) as proxy:
        time.sleep(SETTLED_S)  # all workers are there
        for load in loads:
            clients = [] if load == "idle" else [_waiting(proxy.port, load) for _ in range(options.clients)]
            used = _share(proxy.pid, options.seconds)
            print(f"{load:<12}{len(clients):>5} clients  {used}", flush=True)
            if clients:
                print(f"{'':<12}{_latency(proxy.port, load)}", flush=True)
            for client in clients:
                client.close()
    return 0


def _share(parent: int, seconds: float) -> str:
    """Percent of one core, of the parent, of all workers, and in all."""
    time.sleep(SETTLED_S)
    workers = _children(parent)
    before, began = [cpu_ns(pid) for pid in (parent, *workers)], time.monotonic()
    time.sleep(seconds)
    took = (time.monotonic() - began) * 1e9
    used = [(cpu_ns(pid) - was) / took * 100 for pid, was in zip((parent, *workers), before, strict=True)]
    return f"{sum(used):.3f} % (parent {used[0]:.3f} %, {len(workers)} workers {sum(used[1:]):.3f} %)"


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _keys(load: str, of: int = 0) -> list[bytes]:
    """A key on each of four shards."""
    keys: dict[int, bytes] = {}
    for number in itertools.count():
        key = b"%b:%d:%d" % (load.encode(), of, number)
        keys.setdefault(slot(key) * SHARDS // 16384, key)
        if len(keys) >= ASKED:
            return list(keys.values())[:ASKED]
    raise AssertionError


def _waiting(port: int, load: str, of: int = 0) -> socket.socket:
    """A client that waits with such a command."""
    client = socket.create_connection((HOST, port))
    client.settimeout(PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keys = _keys(load, of)
    if load == "xreadgroup":
        for key in keys:
            client.sendall(Request([b"XGROUP", b"CREATE", key, b"g", b"$", b"MKSTREAM"]).frame)
            client.recv(1024)
    client.sendall(Request(_command(load, keys)).frame)
    return client


def _command(load: str, keys: Sequence[bytes]) -> list[bytes]:
    if load == "xread":
        return [b"XREAD", b"BLOCK", b"0", b"STREAMS", *keys, *[b"$"] * len(keys)]
    if load == "xreadgroup":
        return [b"XREADGROUP", b"GROUP", b"g", b"c", b"BLOCK", b"0", b"STREAMS", *keys, *[b">"] * len(keys)]
    return [load.upper().encode(), *keys, b"0"]


def _latency(port: int, load: str) -> str:
    """From the answer of a write to that of a client that has waited for its key, while all the others wait on."""
    write = {
        "brpop": [b"LPUSH", b"KEY", b"v"],
        "bzpopmin": [b"ZADD", b"KEY", b"1", b"v"],
    }.get(load, [b"XADD", b"KEY", b"*", b"f", b"v"])
    took = []
    writer = socket.create_connection((HOST, port))
    for number in range(LATENCY_ROUNDS):
        client = _waiting(port, load, of=1)
        time.sleep(0.5 + 0.003 * number)
        key = _keys(load, of=1)[number % ASKED]
        began = time.monotonic()
        writer.sendall(Request([key if word == b"KEY" else word for word in write]).frame)
        client.recv(1 << 16)
        took.append((time.monotonic() - began) * 1000)
        writer.recv(1024)
        client.close()
    writer.close()
    return f"write to answer: median {statistics.median(took):.0f} ms, at most {max(took):.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
