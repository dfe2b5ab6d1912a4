"""What the keys of each shard are like: some of them, drawn at random, with their slots and their bytes.

RANDOMKEY and MEMORY USAGE of the primaries, a few at a time; nothing is changed, and no key is looked through.
"""

import asyncio
import contextlib
from collections.abc import Iterable

from protocol.reply import Error, Value
from pyproxy.access import Access
from pyproxy.control.growth.plan import Sample
from pyproxy.control.health import detector
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.control.health.primary import DEADLINE_S, NoPrimary, primary_of
from pyproxy.hashing import slot
from pyproxy.shard_map import Node, Shard

AT_ONCE = 100  # keys that are drawn, or measured, in one write


class CannotSample(Exception):
    """A shard does not say what is asked; the line says which, and why."""


async def sampled(shards: Iterable[Shard], access: Access, count: int) -> dict[str, Sample]:
    """So many keys of each, at most, by the name of the shard. Raises CannotSample."""
    shards = list(shards)
    samples = await asyncio.gather(*(_sampled(shard, access, count) for shard in shards))
    return {shard.name: sample for shard, sample in zip(shards, samples, strict=True)}


async def _sampled(shard: Shard, access: Access, count: int) -> Sample:
    try:
        primary = await primary_of(shard, access)
    except NoPrimary as exc:
        raise CannotSample(str(exc)) from None
    try:
        return await _drawn(primary, access, count)
    except NodeError as exc:
        raise CannotSample(f"shard {shard.name} ({primary}): {exc}") from None


async def _drawn(primary: Node, access: Access, count: int) -> Sample:
    with contextlib.closing(await NodeConnection.open(primary, access, DEADLINE_S)) as connection:
        memory, keyspace = await connection.ask((b"INFO", b"memory"), (b"INFO", b"keyspace"), deadline_s=DEADLINE_S)
        fields, _ = detector.parse_info(_text(memory))
        _, databases = detector.parse_info(_text(keyspace))
        keys = {database: counts.get("keys", 0) for database, counts in databases.items()}
        total = sum(keys.values())
        found: list[tuple[int, int]] = []
        for database, number in keys.items():
            await connection.ask((b"SELECT", b"%d" % database), deadline_s=DEADLINE_S)
            # as many as it has of all keys, and one at least: it may be few, and large
            wanted = min(number, max(1, count * number // total))
            while wanted > 0:
                found += await _some(connection, min(wanted, AT_ONCE))
                wanted -= AT_ONCE
    used = _number(fields, "used_memory") - _number(fields, "used_memory_startup")
    return Sample(total, max(0, used), tuple(found))


async def _some(connection: NodeConnection, count: int) -> list[tuple[int, int]]:
    drawn = await connection.ask(*((b"RANDOMKEY",),) * count, deadline_s=DEADLINE_S)
    names = [name for name in drawn if isinstance(name, bytes)]
    if wrong := [each for each in drawn if isinstance(each, Error)]:
        raise NodeError(f"answered RANDOMKEY with {_shown(wrong[0])}")
    if not names:
        return []
    sizes = await connection.ask(*((b"MEMORY", b"USAGE", name) for name in names), deadline_s=DEADLINE_S)
    if wrong := [each for each in sizes if isinstance(each, Error)]:
        raise NodeError(f"answered MEMORY USAGE with {_shown(wrong[0])}")
    return [(slot(name), size) for name, size in zip(names, sizes, strict=True) if isinstance(size, int)]


def _text(info: Value) -> str:
    if not isinstance(info, bytes):
        raise NodeError(f"answered INFO with {_shown(info)}")
    return info.decode(errors="replace")


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdecimal() else 0


def _shown(value: Value) -> str:
    return value.line.decode(errors="replace") if isinstance(value, Error) else f"{value!r:.60}"
