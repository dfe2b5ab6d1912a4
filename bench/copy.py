"""How fast the mover copies, beside MIGRATE between the same two servers, in one run.

    python -m bench.copy --keys 200000

MIGRATE is sent as operators do it: COPY REPLACE KEYS with 100 names each, several commands in one write. It is done
inside of the source, which serves nobody meanwhile; the mover reads and writes from outside, and lets clients between.
The CPU is of this process (which is the mover, and who sends MIGRATE), of the source and of the destination. With
`--full-speed` the mover does not slow down when the servers answer late, as they do on a machine that is busy.
"""

import argparse
import asyncio
import os
import time

import uvloop

from bench.measure import cpu_ns
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Timeouts
from pyproxy.fleet import HOST, Fleet, Server
from pyproxy.mover import pace
from pyproxy.mover.connection import Connection
from pyproxy.mover.copying import Copying
from pyproxy.mover.means import Means
from pyproxy.mover.pages import pages
from pyproxy.moves import Move, Order, Task
from pyproxy.shard_map import Node

ACCESS = Access(BackendAccess())
TIMEOUTS = Timeouts(connect_s=10.0)
MIGRATE_NAMES = 100
MIGRATE_DEPTH = 10  # commands in one write


def node_of(server: Server) -> Node:
    return Node(HOST, server.port)


async def fill(source: Connection, keys: int, size: int) -> None:
    for start in range(0, keys, 1000):
        await source.ask(
            *(
                (b"SET", b"bench:key:%d" % number, b"%d" % number * size)
                for number in range(start, min(keys, start + 1000))
            )
        )


async def migrate(source: Connection, destination: Server) -> float:
    began = time.perf_counter()
    batch: list[tuple[bytes, ...]] = []
    names: list[bytes] = []
    head = (b"MIGRATE", HOST.encode(), b"%d" % destination.port, b"", b"0", b"60000", b"COPY", b"REPLACE", b"KEYS")
    async for page in pages(source):
        names += page
        while len(names) >= MIGRATE_NAMES:
            batch.append((*head, *names[:MIGRATE_NAMES]))
            del names[:MIGRATE_NAMES]
        if len(batch) >= MIGRATE_DEPTH:
            # The next page was asked for, and is answered before these.
            await source.ask(*batch)
            batch = []
    if names:
        batch.append((*head, *names))
    if batch:
        await source.ask(*batch)
    return time.perf_counter() - began


async def copy(source: Server, destination: Server) -> float:
    means = Means(ACCESS, TIMEOUTS, lambda _: None)
    means.going.set()
    move = Move("bench", "s0", "s1", ((0, 16383),))
    began = time.perf_counter()
    copying = Copying(Order(move, Task.COPY, node_of(source), 1, node_of(destination), 1), means)
    done = asyncio.Event()
    means.notify = lambda _: done.set() if copying.scanned else None
    task = asyncio.create_task(copying.run())
    await done.wait()
    took = time.perf_counter() - began
    task.cancel()
    await asyncio.wait([task])
    return took


def cpu(fleet: Fleet) -> list[int]:
    """Of this process, the source and the destination, in ns."""
    return [cpu_ns(pid) for pid in (os.getpid(), *(server.pid for server in fleet.servers))]


async def run(keys: int, size: int, rounds: int) -> None:
    with Fleet(shards=2, replicas=0) as fleet:
        source, destination = fleet.shards[0].primary, fleet.shards[1].primary
        connection = await Connection.open(node_of(source), ACCESS, TIMEOUTS)
        await fill(connection, keys, size)
        for number in range(rounds):
            for name in ("migrate", "copy") if number % 2 else ("copy", "migrate"):
                destination.ask("FLUSHALL")
                before = cpu(fleet)
                took = await (migrate(connection, destination) if name == "migrate" else copy(source, destination))
                assert destination.ask("DBSIZE") == keys, destination.ask("DBSIZE")
                used = " ".join(
                    f"{(now - then) / keys / 1000:6.2f}" for then, now in zip(before, cpu(fleet), strict=True)
                )
                print(f"{name:8} {keys / took:10,.0f} keys/s, CPU per key: {used} us")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.copy")
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=2, help="of a value, in times its number is repeated")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--full-speed", action="store_true")
    args = parser.parse_args()
    if args.full_speed:
        pace.SLOW_S = 3600.0
    uvloop.run(run(args.keys, args.size, args.rounds))


if __name__ == "__main__":
    main()
