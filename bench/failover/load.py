"""The clients of a fault run, as a process of its own: `python -m bench.failover.load PLAN`.

In comes a Plan: where the proxies are, and names of keys by the shard that they live on. Out goes a Record of every
operation, written when SIGTERM has come and the last answers are there. No client ever repeats a request.

For each proxy and shard there is one writer (RPUSH, INCR, SET, GET of its own keys, one at a time) and one reader; for
each proxy one client that sends 50 commands at once, over all shards. Beside them, a connection to each node of the
shards to be fenced asks it PUBLISH and WAIT all the time (see history.py).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import hiredis
import msgspec
import uvloop

from bench.failover.history import Fence, Op, Reply, value_of
from pyproxy.fleet import HOST

READY = "ready"
"""The line that says that every client is connected."""

CHANNEL = "__bench:fence"
FENCE_EVERY_S = 0.05
WAIT_MS = 500
RECONNECT_S = 0.02
NAMES_PER_PROXY = 6  # of each shard: three of the writer, three of the client with the pipeline
DEPTH = 50
CHURN_RATE = 15.0  # batches of DEPTH a second
_NOTHING = object()


class Plan(msgspec.Struct):
    ports: list[int]  # of the proxies
    names: dict[str, list[str]]  # shard -> keys that live there, NAMES_PER_PROXY for each proxy
    nodes: dict[str, list[int]]  # shard to be fenced -> the ports of its nodes
    out: str  # the file for the Record
    rate: float  # operations a second of a writer, and of a reader
    batches: float  # a second, of the client with the pipeline
    echo: bool  # nutcracker closes a connection that asks it
    patience_s: float  # without an answer the client leaves, and comes again
    seed: int
    churned: list[tuple[str, str]] = []  # shards, and keys that one more client of each proxy writes to, all in turn


class Record(msgspec.Struct):
    ops: list[Op]
    fences: list[Fence]
    disconnects: list[tuple[str, float]]  # the client, and when


class Wire(asyncio.Protocol):
    """One connection: operations out, their answers into them."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.unasked: list[object] = []
        self._reader = hiredis.Reader(notEnoughData=_NOTHING, encoding="utf-8")
        self._out: deque[Op] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NOTHING:
            if not self._out:
                self.unasked.append(reply)
                continue
            op = self._out.popleft()
            op.answered_at = now
            if isinstance(reply, hiredis.ReplyError):
                op.error = str(reply)
            else:
                op.reply = _plain(reply)
        if not self._out:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        for op in self._out:
            op.error = f"connection lost: {exc or 'closed'}"
        self._out.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._wake()

    async def ask(self, ops: Sequence[Op], patience_s: float) -> None:
        """Send all at once; return when each is answered, or the connection is lost."""
        if self.closed.done():
            for op in ops:
                op.error = "not sent"
            return
        self._waiter = asyncio.get_running_loop().create_future()
        self._out.extend(ops)
        now = time.monotonic()
        for op in ops:
            op.sent_at = now
        self._transport.write(b"".join(map(packed, ops)))
        try:
            async with asyncio.timeout(patience_s):
                await self._waiter
        except TimeoutError:
            self._transport.abort()
            await self.closed

    def close(self) -> None:
        self._transport.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def packed(op: Op) -> bytes:
    argv: tuple[str, ...]
    match op.verb:
        case "SET" | "RPUSH":
            argv = (op.verb, op.key, op.value)
        case "ECHO":
            argv = (op.verb, op.value)
        case "MGET":
            argv = (op.verb, *op.key.split())
        case _:
            argv = (op.verb, op.key)
    command: bytes = hiredis.pack_command(argv)  # type: ignore[arg-type]  # its stub knows tuples of one only
    return command


def _plain(reply: object) -> Reply:
    if isinstance(reply, list):
        return [None if each is None else str(each) for each in reply]
    return reply if isinstance(reply, int) or reply is None else str(reply)


class Client:
    """One client with a name: connects, and connects again when it was lost, and keeps its operations."""

    def __init__(self, load: Load, name: str, port: int) -> None:
        self.name = name
        self.connected = asyncio.Event()
        self._load = load
        self._port = port
        self._numbers = itertools.count(1)
        self._wire: Wire | None = None

    def op(self, verb: str, key: str = "", shard: str = "") -> Op:
        number = next(self._numbers)
        value = value_of(key, self.name, number) if verb in ("SET", "RPUSH", "ECHO") else ""
        return Op(self.name, number, shard, verb, key, value, 0.0)

    async def ask(self, ops: Sequence[Op]) -> None:
        """Each has its answer afterwards, or none will come."""
        wire = await self._connection()
        await wire.ask(ops, self._load.plan.patience_s)
        self._load.record.ops += [op for op in ops if op.sent_at]
        for reply in wire.unasked:
            now = time.monotonic()
            self._load.record.ops.append(Op(self.name, next(self._numbers), "", "ECHO", "", "", now, now, str(reply)))
        wire.unasked.clear()

    async def _connection(self) -> Wire:
        if self._wire is not None and self._wire.closed.done():
            self._load.record.disconnects.append((self.name, time.monotonic()))
        while self._wire is None or self._wire.closed.done():
            try:
                _, self._wire = await asyncio.get_running_loop().create_connection(Wire, HOST, self._port)
            except OSError:
                await asyncio.sleep(RECONNECT_S)
        self.connected.set()
        return self._wire

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()


class Load:
    """All clients of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = Record([], [], [])
        self._ending = asyncio.Event()
        self._clients: list[Client] = []
        self._random = random.Random(plan.seed)

    def end(self) -> None:
        """Send nothing more."""
        self._ending.set()

    async def run(self) -> None:
        """Until `end`, and the last answers."""
        async with asyncio.TaskGroup() as tasks:
            for number, port in enumerate(self.plan.ports):
                mixed = self._client(f"p{number}-mixed", port)
                tasks.create_task(self._pipeline(mixed, number))
                if self.plan.churned:
                    churning = self._client(f"p{number}-churn", port)
                    tasks.create_task(self._churn(churning, self.plan.churned[number :: len(self.plan.ports)]))
                for shard, names in self.plan.names.items():
                    own = names[number * NAMES_PER_PROXY :]
                    tasks.create_task(self._write(self._client(f"p{number}-{shard}-writer", port), shard, own))
                    tasks.create_task(self._read(self._client(f"p{number}-{shard}-reader", port), shard, own))
            nodes = [(shard, port) for shard, ports in self.plan.nodes.items() for port in ports]
            fencing = [asyncio.create_task(self._fence(shard, port)) for shard, port in nodes]
            for client in self._clients:
                await client.connected.wait()
            print(READY, flush=True)
        for task in fencing:
            task.cancel()
        await asyncio.gather(*fencing, return_exceptions=True)

    def _client(self, name: str, port: int) -> Client:
        client = Client(self, name, port)
        self._clients.append(client)
        return client

    async def _paced(self, client: Client, batches: Iterator[list[Op]], rate: float) -> None:
        """One batch after the other, `rate` a second while they are answered fast enough."""
        await client.ask([next(batches)[0]])
        loop = asyncio.get_running_loop()
        due = loop.time() + self._random.random() / rate
        while not self._ending.is_set():
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due + 1 / rate, loop.time())
            await client.ask(next(batches))
        client.close()

    async def _write(self, client: Client, shard: str, names: Sequence[str]) -> None:
        verbs = itertools.cycle((("RPUSH", names[0]), ("INCR", names[1]), ("SET", names[2]), ("GET", names[2])))
        await self._paced(client, ([client.op(verb, key, shard)] for verb, key in verbs), self.plan.rate)

    async def _read(self, client: Client, shard: str, names: Sequence[str]) -> None:
        keys = itertools.cycle((names[2], names[5]))
        await self._paced(client, ([client.op("GET", key, shard)] for key in keys), self.plan.rate)

    async def _pipeline(self, client: Client, number: int) -> None:
        shards = list(self.plan.names)
        names = {shard: names[number * NAMES_PER_PROXY :][3:6] for shard, names in self.plan.names.items()}

        def op() -> Op:
            shard = self._random.choice(shards)
            match self._random.randrange(12):
                case 0 if self.plan.echo:
                    return client.op("ECHO")
                case 1:
                    return client.op("MGET", " ".join(names[each][2] for each in shards))
                case 2 | 3 | 4:
                    return client.op("RPUSH", names[shard][0], shard)
                case 5 | 6 | 7:
                    return client.op("INCR", names[shard][1], shard)
                case 8 | 9:
                    return client.op("SET", names[shard][2], shard)
                case _:
                    return client.op("GET", names[shard][2], shard)

        await self._paced(client, iter(lambda: [op() for _ in range(DEPTH)], []), self.plan.batches)

    async def _churn(self, client: Client, keys: Sequence[tuple[str, str]]) -> None:
        """Each key is written twice shortly after another, and then not again for long: what of it is lost on a way
        that it takes meanwhile is not mended by a later write."""

        def batches() -> Iterator[list[Op]]:
            for begin in itertools.cycle(range(0, len(keys), DEPTH)):
                for _ in range(2):
                    yield [client.op("SET", key, shard) for shard, key in keys[begin : begin + DEPTH]]

        await self._paced(client, batches(), CHURN_RATE)

    async def _fence(self, shard: str, port: int) -> None:
        """Whether it says that a replica has all that it executed so far, over and over."""
        while True:
            begun = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                self.record.fences.append(Fence(shard, str(port), begun, time.monotonic(), -1))
                await asyncio.sleep(FENCE_EVERY_S)
                continue
            try:
                await self._fence_on(f"{shard} {port}", reader, writer)
            except OSError:
                pass
            finally:
                writer.transport.abort()
            await asyncio.sleep(FENCE_EVERY_S)

    async def _fence_on(self, which: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = b"PUBLISH %b x\r\nWAIT 1 %d\r\n" % (CHANNEL.encode(), WAIT_MS)
        shard, port = which.split()
        while True:
            parser = hiredis.Reader(notEnoughData=_NOTHING)
            begun = time.monotonic()
            writer.write(asked)
            replies: list[object] = []
            while len(replies) < 2:
                data = await reader.read(4096)
                if not data:
                    return
                parser.feed(data)
                while (reply := parser.gets()) is not _NOTHING:
                    replies.append(reply)
            count = replies[1] if isinstance(replies[0], int) and isinstance(replies[1], int) else -1
            self.record.fences.append(Fence(shard, port, begun, time.monotonic(), count))
            await asyncio.sleep(FENCE_EVERY_S)


def main(plan_file: Path) -> None:
    plan = msgspec.json.decode(plan_file.read_bytes(), type=Plan)

    async def run() -> Record:
        load = Load(plan)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.end)
        await load.run()
        return load.record

    record = uvloop.run(run())
    Path(plan.out).write_bytes(msgspec.msgpack.encode(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
