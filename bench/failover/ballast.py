"""Keys that lie there while slots move: of all types, with and without a time of expiry, in two databases.

Nobody writes to them, so that afterwards each must be what it was, wherever it is. A tenth has one hash tag. What
clients write meanwhile is the load's (load.py).
"""

from __future__ import annotations

import socket

import hiredis

from bench.failover.servers import asks
from pyproxy.fleet import HOST, FleetError

DATABASES = (0, 1)
LARGE = "b:large"
VALUE = "x" * 100
GONE = None
FOREVER = -1  # of PEXPIRETIME
NO_KEY = -2
DAY_MS = 86_400_000

Contents = dict[tuple[int, str], object]


class Ballast:
    """So many keys in each of the databases, and one large value, as the proxy at `port` is told."""

    def __init__(self, port: int, keys: int, large_bytes: int) -> None:
        self.expected: Contents = {}
        self._port = port
        self._keys = keys
        self._large_bytes = large_bytes

    def write(self) -> None:
        for database in DATABASES:
            commands: list[tuple[str, ...]] = [("SELECT", str(database))]
            for number in range(self._keys):
                commands += _written(number)
            _check(asks(self._port, commands))

    def write_large(self) -> None:
        """The last of it."""
        _check(asks(self._port, [("SET", LARGE, "y" * self._large_bytes)]))
        self.expected = self.read()

    def empty_and_write_again(self) -> None:
        """The last database: every second key is there again then, and the others are gone."""
        database = DATABASES[-1]
        selected = ("SELECT", str(database))
        _check(asks(self._port, [selected, ("FLUSHDB",)]))
        again = [number for number in range(0, self._keys, 2) if ":expires:" not in _name(number)]
        _check(asks(self._port, [selected, *(command for number in again for command in _written(number))]))
        for number in set(range(self._keys)) - set(again):
            self.expected[database, _name(number)] = GONE

    def touch(self) -> None:
        """Each string has another value then. One after the other: for a server, two changes at once may be one."""
        with socket.create_connection((HOST, self._port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(self._keys):
                name = _name(number)
                if ":string:" in name:
                    connection.sendall(b"SET %b touched-%d\r\n" % (name.encode(), number))
                    answer = connection.recv(100)
                    if answer != b"+OK\r\n":
                        raise FleetError(f"expected OK for SET {name}, got {answer!r}")
                    self.expected[0, name] = b"touched-%d" % number, FOREVER

    def differences(self) -> list[str]:
        """What is not as it was written."""
        found = self.read()
        return [
            f"{name} of database {database} was {str(value)[:80]}, is {str(found[database, name])[:80]}"
            for (database, name), value in self.expected.items()
            if found[database, name] != value
        ]

    def read(self) -> Contents:
        """What is there now, by database and name."""
        found: Contents = {}
        for database in DATABASES:
            names = [_name(number) for number in range(self._keys)] + ([] if database else [LARGE])
            questions = [_question(name) for name in names]
            replies = asks(self._port, [("SELECT", str(database)), *questions], encoding=None)[1:]
            times = asks(self._port, [("SELECT", str(database)), *(("PEXPIRETIME", name) for name in names)])[1:]
            for name, question, reply, expires in zip(names, questions, replies, times, strict=True):
                value = sorted(map(repr, reply)) if question[0] in UNORDERED and isinstance(reply, list) else reply
                found[database, name] = (value, expires) if expires != NO_KEY else GONE
        return found


UNORDERED = ("HGETALL", "SMEMBERS")

_READS = {
    "hash": ("HGETALL",),
    "set": ("SMEMBERS",),
    "zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
    "list": ("LRANGE", "0", "-1"),
    "stream": ("XRANGE", "-", "+"),
}


def _name(number: int) -> str:
    """Most are strings, a tenth has the tag; `b:KIND:NUMBER`."""
    if number % 10 == 0:
        return f"b:{{tag}}:{number}"
    kinds = ("expires", *_READS)
    return f"b:{kinds[number // 3 % len(kinds)] if number % 3 == 0 else 'string'}:{number}"


def _question(name: str) -> tuple[str, ...]:
    command, *rest = _READS.get(name.split(":")[1], ("GET",))
    return (command, name, *rest)


def _written(number: int) -> list[tuple[str, ...]]:
    name = _name(number)
    match name.split(":")[1]:
        case "expires":
            return [("SET", name, VALUE, "PX", str(DAY_MS + number))]
        case "hash":
            return [("HSET", name, *(word for field in range(5) for word in (f"f{field}", f"{VALUE}{number}")))]
        case "set":
            return [("SADD", name, *(f"m{member}:{number}" for member in range(20)))]
        case "zset":
            return [("ZADD", name, *(word for rank in range(20) for word in (str(rank), f"m{rank}:{number}")))]
        case "list":
            return [("RPUSH", name, *(f"e{place}:{number}" for place in range(20)))]
        case "stream":
            return [("XADD", name, f"{entry}-1", "f", f"{number}") for entry in range(1, 4)]
        case _:
            return [("SET", name, f"{VALUE}{number}")]


def _check(replies: list[object]) -> None:
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise reply
