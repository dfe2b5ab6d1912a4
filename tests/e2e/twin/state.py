"""All there is in the databases, read from the servers themselves, past the proxy.

What is compared is what a client could see of a key: its type, its value with all that belongs to it, how it is stored,
and when it ends. What is in no order is sorted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.reply import Error, Value, decode
from tests.e2e.twin.allowed import CLOCK_MS, SINCE_2001_MS
from tests.e2e.twin.connection import Connection, ask_all


@dataclass(frozen=True)
class Key:
    """One key: all that two servers must have in common, and its deadlines (its own, and those of its fields)."""

    type: bytes
    encoding: object
    value: object
    ends: tuple[int, ...]

    def same(self, other: Key | None) -> bool:
        """Equal, but that a deadline set as a duration began to count at another moment."""
        if other is None or (self.type, self.encoding, self.value) != (other.type, other.encoding, other.value):
            return False
        return len(self.ends) == len(other.ends) and all(map(_same_time, self.ends, other.ends))


def _same_time(one: int, other: int) -> bool:
    return one == other or (min(one, other) >= 0 and abs(one - other) <= CLOCK_MS)


def read(port: int) -> dict[tuple[int, bytes], Key]:
    """Every key of every database of one server."""
    found: dict[tuple[int, bytes], Key] = {}
    with Connection(port) as conn:
        (keyspace,) = _ask(conn, [[b"INFO", b"keyspace"]])
        assert isinstance(keyspace, bytes)
        for db in map(int, re.findall(rb"^db(\d+):", keyspace, re.MULTILINE)):
            _, names = _ask(conn, [[b"SELECT", b"%d" % db], [b"KEYS", b"*"]])
            assert isinstance(names, list)
            found |= {(db, name): key for name, key in zip(names, _keys(conn, names), strict=True)}
    return found


def _ask(conn: Connection, commands: Sequence[Sequence[bytes]]) -> list[Value]:
    return [decode(frame) for frame in ask_all(conn, commands)]


def _keys(conn: Connection, names: Sequence[bytes]) -> list[Key]:
    types = _ask(conn, [[b"TYPE", name] for name in names])
    encodings = _ask(conn, [[b"OBJECT", b"ENCODING", name] for name in names])
    ends = _ask(conn, [[b"PEXPIRETIME", name] for name in names])
    values = _ask(conn, [_reader(kind, name) for kind, name in zip(types, names, strict=True)])
    keys = []
    for name, kind, encoding, end, value in zip(names, types, encodings, ends, values, strict=True):
        assert isinstance(kind, bytes) and isinstance(end, int) and not isinstance(value, Error), (name, kind, value)
        if kind == b"hash":
            value, field_ends = _hash(conn, name, value)
            keys.append(Key(kind, encoding, value, (end, *field_ends)))
        else:
            keys.append(Key(kind, encoding, _settled(kind, value), (end,)))
    return keys


_READERS = {
    b"string": [b"GET"],
    b"list": [b"LRANGE", b"0", b"-1"],
    b"set": [b"SMEMBERS"],
    b"zset": [b"ZRANGE", b"0", b"-1", b"WITHSCORES"],
    b"hash": [b"HGETALL"],
    b"stream": [b"XINFO", b"STREAM", b"FULL", b"COUNT", b"0"],
}


def _reader(kind: Value, name: bytes) -> list[bytes]:
    assert isinstance(kind, bytes)
    words = _READERS[kind]
    at = 2 if words[0] == b"XINFO" else 1
    return [*words[:at], name, *words[at:]]


def _settled(kind: bytes, value: Value) -> object:
    """A value with what two servers need not have in common taken out: order of a set, times in a stream."""
    if kind == b"set":
        assert isinstance(value, list)
        return sorted(value)
    return _without_times(value) if kind == b"stream" else value


def _without_times(value: object) -> object:
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    return "a time" if isinstance(value, int) and value > SINCE_2001_MS else value


def _hash(conn: Connection, name: bytes, value: Value) -> tuple[list[tuple[bytes, bytes]], list[int]]:
    """Its pairs in the order of their fields, and when the fields end; before Valkey 9 they do not."""
    assert isinstance(value, list)
    pairs = sorted(zip(value[::2], value[1::2], strict=True))
    fields = [field for field, _ in pairs]
    (ends,) = _ask(conn, [[b"HPEXPIRETIME", name, b"FIELDS", b"%d" % len(fields), *fields]])
    return pairs, ends if isinstance(ends, list) else []
