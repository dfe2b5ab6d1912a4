"""Two conversations at once: the same requests to the proxy and to a plain server, whose answers are compared.

Batches of requests go in; AssertionError comes out with the first request that is not answered alike, or with the
first key that is not the same on both sides afterwards. Which replies may differ, and why, stands in allowed.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from pyproxy.config import Config
from pyproxy.fleet import Fleet, Server
from pyproxy.shard_map import ShardMap
from tests.e2e.twin import allowed, state
from tests.e2e.twin.connection import Connection, Unanswered
from tests.e2e.twin.stream import ALL_KEYS, Batch, Request


class Pair:
    """The same connections to the proxy and to the plain server, opened when they are first used."""

    def __init__(self, ours: int, theirs: int) -> None:
        self.ports = (ours, theirs)
        self.talks: dict[int, tuple[Connection, Connection]] = {}
        self.seen: list[Request] = []
        self.errors = 0

    def close(self) -> None:
        for talks in self.talks.values():
            for conn in talks:
                conn.close()
        self.talks.clear()

    def on(self, connection: int) -> tuple[Connection, Connection]:
        if connection not in self.talks:
            self.talks[connection] = (Connection(self.ports[0]), Connection(self.ports[1]))
        return self.talks[connection]

    def ask(self, batch: Batch) -> list[bytes]:
        """Send the batch to both -> the replies; AssertionError with the first request that is not answered alike."""
        talks = self.on(batch.connection)
        answered = [request for request in batch.requests if request.answered]
        ours, theirs = (heard(conn, batch.cuts, len(answered)) for conn in talks)
        for number, request in enumerate(answered):
            self.seen.append(request)
            self._compare(batch, request, ours[0][number : number + 1], theirs[0][number : number + 1], ours[1])
        assert len(ours[0]) == len(theirs[0]) == len(answered), f"nobody asked for {short(ours[0][len(answered) :])}"
        if batch.requests[-1].last:
            assert [conn.ended() for conn in talks] == [True, True]
            for conn in self.talks.pop(batch.connection):
                conn.close()
        return ours[0]

    def _compare(self, batch: Batch, request: Request, ours: list[bytes], theirs: list[bytes], trouble: str) -> None:
        assert theirs, f"the plain server left {request.argv} unanswered"
        self.errors += theirs[0].startswith(b"-")
        if ours == theirs or (ours and alike(request, ours[0], theirs[0])):
            return
        before = [each.argv for each in self.seen[:-1] if ALL_KEYS.intersection(each.argv, request.argv)][-8:]
        raise AssertionError(
            f"request {len(self.seen)}, on connection {batch.connection}: {short(request.argv)}\n"
            f"  sent as {request.raw[:200]!r} within a batch of {len(batch.requests)} in {len(batch.cuts)} pieces\n"
            f"  the proxy: {short(ours[0]) if ours else f'nothing: {trouble}'}\n"
            f"  one server: {short(theirs[0])}\n"
            "  some requests before it with a key in common:\n" + "\n".join(f"    {short(argv)}" for argv in before)
        )


def alike(request: Request, ours: bytes, theirs: bytes) -> bool:
    """Whether two replies count as the same; those of a transaction are looked at one by one."""
    if not request.runs or allowed.header(ours) != allowed.header(theirs) or not ours.startswith(b"*"):
        return ours == theirs or allowed.may_differ(request.name, request.argv, ours, theirs)
    answers = zip(request.runs, allowed.children(ours), allowed.children(theirs), strict=True)
    return all(alike(*each) for each in answers)


def heard(conn: Connection, cuts: Sequence[bytes], wanted: int) -> tuple[list[bytes], str]:
    """The replies, and what went wrong if they are fewer than wanted."""
    try:
        return conn.say(cuts, wanted), ""
    except Unanswered as missing:
        return missing.frames, str(missing)


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 500 else f"{text[:400]} ... {text[-80:]} ({len(text)} characters)"


def payloads(server: Server) -> list[bytes]:
    """What DUMP says of a value of each type; the same bytes are restored on both sides."""
    made: list[list[str]] = [
        ["SET", "d0", "12"],
        ["SET", "d1", "text" * 20],
        ["HSET", "d2", "field1", "1", "field2", "two"],
        ["RPUSH", "d3", "item1", "item2"],
        ["SADD", "d4", "1", "2", "3"],
        ["SADD", "d5", "item1", "item2"],
        ["ZADD", "d6", "1", "item1", "2", "item2"],
        ["XADD", "d7", "1-1", "field1", "value1"],
        ["PFADD", "d8", "item1", "item2"],
    ]
    for command in made:
        server.ask(*command)
    found = [server.ask("DUMP", command[1]) for command in made]
    server.ask("FLUSHALL")
    return [payload for payload in found if isinstance(payload, bytes)]


@cache
def shard_map(config: str) -> ShardMap:
    """Kept, as reading a configuration takes longer than most conversations."""
    return Config.parse(config.encode()).shard_map()


def check_what_is_left(fleet: Fleet, server: Server, *, encodings: bool = True) -> None:
    """Each key lies where its slot says, and is what it is on the plain server, and stored as there (`encodings`)."""
    shards = shard_map(fleet.config())
    theirs = state.read(server.port)
    ours: dict[tuple[int, bytes], state.Key] = {}
    for shard in fleet.shards:
        held = state.read(shard.primary.port)
        owners = {key: shards.shard_of(key).name for _, key in held}
        assert set(owners.values()) <= {shard.name}, f"{shard.name} holds keys of other shards: {owners}"
        ours |= held
    assert ours.keys() == theirs.keys()
    if not encodings:
        ours = {name: replace(key, encoding=theirs[name].encoding) for name, key in ours.items()}
    different = {name: (ours[name], theirs[name]) for name in ours if not ours[name].same(theirs[name])}
    assert different == {}, f"left behind: {short(next(iter(different.items())))}"
