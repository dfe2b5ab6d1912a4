"""Random writes of all kinds to one server, drawn from a seed, and how two servers are compared afterwards."""

import asyncio
import random
from collections.abc import Callable, Iterable

from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Timeouts
from pyproxy.fleet import HOST, Server
from pyproxy.hashing import slot
from pyproxy.mover.connection import Connection
from pyproxy.mover.pages import pages
from pyproxy.shard_map import Node
from tests.waiting import until

ACCESS = Access(BackendAccess())
TIMEOUTS = Timeouts(connect_s=10.0)
DATABASES = (0, 3)
WRITERS = 4

SHORT_MS = (1, 80)
LONG_MS = (3_600_000, 7_200_000)
"""A key has either so little time that it is over before the servers are compared, or so much that it is not."""

_SCRIPT = b"""
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[3], ARGV[1])
return redis.call('TYPE', KEYS[1])
"""


def node_of(server: Server) -> Node:
    return Node(HOST, server.port)


async def connect(server: Server, database: int = 0) -> Connection:
    return await Connection.open(node_of(server), ACCESS, TIMEOUTS, database=database)


class Storm:
    """`hot` names are written all the time, `wide` ones seldom. `begin`, then `stop`; `written` counts commands."""

    def __init__(self, server: Server, seed: int, hot: int = 30, wide: int = 20_000) -> None:
        self.written = 0
        self._server = server
        self._seed = seed
        self._hot = [b"hot:%d" % number for number in range(hot)]
        self._wide = wide
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._stopping = False
        for number in range(WRITERS):
            draw = random.Random(self._seed * 100 + number)
            self._seed += 1
            self._tasks.append(asyncio.create_task(self._write(draw, DATABASES[number % len(DATABASES)])))

    async def stop(self) -> None:
        """Every write has its answer."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def wrote(self, more: int) -> None:
        """Go on until so many more commands were written."""
        enough = self.written + more
        await until(f"{more} more writes", lambda: self.written >= enough, lambda: self.written, 60.0)

    async def _write(self, draw: random.Random, database: int) -> None:
        connection = await connect(self._server, database)
        try:
            while not self._stopping:
                commands = [self.command(draw, database) for _ in range(draw.randint(1, 12))]
                await connection.ask(*commands)
                self.written += len(commands)
                await asyncio.sleep(0)
        finally:
            connection.close()

    def _name(self, draw: random.Random) -> bytes:
        return draw.choice(self._hot) if draw.random() < 0.5 else b"wide:%d" % draw.randrange(self._wide)

    def command(self, draw: random.Random, database: int) -> list[bytes]:
        name, other, third = self._name(draw), self._name(draw), self._name(draw)
        value = b"%x" % draw.getrandbits(draw.choice((8, 64, 2000)))
        few = b"%d" % draw.randrange(10)
        forms: list[Callable[[], list[bytes]]] = [
            lambda: [b"SET", name, value],
            lambda: [b"SET", name, value],
            lambda: [b"SET", name, value, b"PX", b"%d" % draw.randint(*SHORT_MS)],
            lambda: [b"SET", name, value, b"PX", b"%d" % draw.randint(*LONG_MS)],
            lambda: [b"APPEND", name, value],
            lambda: [b"SETRANGE", name, few, value],
            lambda: [b"RPUSH", name, value, few],
            lambda: [b"LPOP", name],
            lambda: [b"LSET", name, b"0", value],
            lambda: [b"HSET", name, few, value],
            lambda: [b"HDEL", name, few],
            lambda: [b"SADD", name, few, value],
            lambda: [b"SREM", name, few],
            lambda: [b"ZADD", name, few, value, few, few],
            lambda: [b"ZPOPMIN", name],
            lambda: [b"XADD", name, b"MAXLEN", b"20", b"*", few, value],
            lambda: [b"XGROUP", b"CREATE", name, b"group", b"0"],
            lambda: [b"XREADGROUP", b"GROUP", b"group", b"me", b"COUNT", b"1", b"STREAMS", name, b">"],
            lambda: [b"PFADD", name, value],
            lambda: [b"DEL", name],
            lambda: [b"UNLINK", name, other],
            lambda: [b"RENAME", name, other],
            lambda: [b"COPY", name, other, b"REPLACE"],
            lambda: [b"MOVE", name, b"%d" % draw.choice([each for each in DATABASES if each != database])],
            lambda: [b"PEXPIRE", name, b"%d" % draw.randint(*(SHORT_MS if draw.random() < 0.3 else LONG_MS))],
            lambda: [b"PERSIST", name],
            lambda: [b"EVAL", _SCRIPT, b"3", name, other, third, value],
            lambda: [b"SORT", name, b"BY", b"nosort", b"STORE", other],
            lambda: [b"SUNIONSTORE", name, other, third],
            lambda: [b"GETDEL", name],
        ]
        return draw.choice(forms)()


# --- comparing --------------------------------------------------------------------------------------------------------


async def names_of(connection: Connection, wanted: Callable[[bytes], bool] = lambda _: True) -> set[bytes]:
    """Of the database that the connection is in."""
    return {name async for page in pages(connection) for name in page if wanted(name)}


async def _read(connection: Connection, names: Iterable[bytes]) -> dict[bytes, object]:
    """What each key is, by commands of its type, and when it expires."""
    found: dict[bytes, object] = {}
    listed = list(names)
    for start in range(0, len(listed), 500):
        some = listed[start : start + 500]
        kinds = await connection.ask(*((b"TYPE", name) for name in some))
        questions = [_question(name, kind) for name, kind in zip(some, kinds, strict=True)]
        answers = await connection.ask(*(each for one in questions for each in one))
        for index, (name, kind) in enumerate(zip(some, kinds, strict=True)):
            value, expires = answers[2 * index], answers[2 * index + 1]
            found[name] = (kind, _settled(kind, value), expires)
    return found


def _question(name: bytes, kind: Value) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    value = {
        b"string": (b"GET", name),
        b"list": (b"LRANGE", name, b"0", b"-1"),
        b"hash": (b"HGETALL", name),
        b"set": (b"SMEMBERS", name),
        b"zset": (b"ZRANGE", name, b"0", b"-1", b"WITHSCORES"),
        b"stream": (b"XINFO", b"STREAM", name, b"FULL", b"COUNT", b"0"),
    }.get(kind if isinstance(kind, bytes) else b"", (b"EXISTS", name))
    return value, (b"PEXPIRETIME", name)


def _settled(kind: Value, value: Value) -> object:
    """Without an order where there is none, and of a stream without the shape of its tree and the times of now."""
    if kind == b"hash" and isinstance(value, list):
        return sorted(zip(value[::2], value[1::2], strict=True))
    if kind == b"set" and isinstance(value, list):
        return sorted(value)
    if kind == b"stream" and isinstance(value, list):
        said = dict(zip(value[::2], value[1::2], strict=True))
        groups = said.get(b"groups")
        assert isinstance(groups, list)
        pending = [
            {name: each for name, each in zip(group[::2], group[1::2], strict=True) if name != b"consumers"}
            for group in groups
        ]
        names = (b"length", b"last-generated-id", b"max-deleted-entry-id", b"entries-added", b"entries")
        return [*(said.get(name) for name in names), pending]
    return value


async def differences(
    source: Server,
    destination: Server,
    owns: Callable[[int], bool] = lambda _: True,
    databases: Iterable[int] = DATABASES,
) -> list[str]:
    """A line for each key in these slots that is not the same at both. What has little time left is waited for."""

    def wanted(name: bytes) -> bool:
        return owns(slot(name))

    found: list[str] = []
    for database in databases:
        one, other = await connect(source, database), await connect(destination, database)
        try:
            for connection in (one, other):
                await _until_lasting(connection, wanted)
            here, there = await names_of(one, wanted), await names_of(other, wanted)
            found += [f"db {database} {name!r}: only at the source" for name in sorted(here - there)]
            found += [f"db {database} {name!r}: only at the destination" for name in sorted(there - here)]
            both = here & there
            values, copies = await _read(one, both), await _read(other, both)
            found += [
                f"db {database} {name!r}: {str(values[name])[:200]} became {str(copies[name])[:200]}"
                for name in sorted(both)
                if values[name] != copies[name]
            ]
        finally:
            one.close()
            other.close()
    return found


async def _until_lasting(connection: Connection, wanted: Callable[[bytes], bool]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30.0
    while True:
        names = sorted(await names_of(connection, wanted))
        left = await connection.ask(*((b"PTTL", name) for name in names)) if names else []
        short = [name for name, ms in zip(names, left, strict=True) if isinstance(ms, int) and 0 <= ms < 1_000_000]
        if not short:
            return
        assert loop.time() < deadline, f"waited for the end of keys with little time left; there are {short[:5]}"
        await asyncio.sleep(0.02)


def said(answers: Iterable[Value]) -> list[str]:
    """The errors among answers."""
    return [str(each) for each in answers if isinstance(each, Error)]
