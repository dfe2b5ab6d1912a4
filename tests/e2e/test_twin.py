"""The proxy over ten shards answers as one plain server does, byte for byte.

Both are asked the same: random streams of commands, made of a seed, in random cuts and pipelines, on several
connections in turn, in RESP2 and RESP3 (tests/e2e/twin/). After each stream the databases hold the same, and each key
lies on the shard that owns its slot. Which replies may differ, and why, stands in tests/e2e/twin/allowed.py.

PYPROXY_TWIN_SEEDS says which seeds to run: numbers and ranges, "7,1000-1999" (default 1-12). A failure names its seed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from protocol.commands import Command, Kind
from protocol.request import encode
from protocol.table import TABLE
from pyproxy.config import Config
from pyproxy.fleet import Fleet, Proxy, Server
from tests.e2e.twin import allowed, state, vocabulary
from tests.e2e.twin.examples import EXAMPLES
from tests.e2e.twin.grammar import lines
from tests.e2e.twin.stream import ALL_KEYS, CONNECTIONS, Batch, Request, stream
from tests.e2e.twin.talk import Talk, Unanswered

VARIABLE = "PYPROXY_TWIN_SEEDS"
REQUESTS = 4000  # of one seed

# Nobody here waits for a slow shard: on a busy machine a late reply must not become an error.
PATIENT = {"reply_s": 30.0, "silence_s": 60.0}


def seeds(text: str) -> list[int]:
    """What a list of numbers and ranges stands for: "7,10-12" -> [7, 10, 11, 12]."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


@pytest.fixture(scope="module")
def proxy(fleet10: Fleet) -> Iterator[Proxy]:
    """Two workers, so that the connections of one conversation meet in the shards only."""
    with Proxy(fleet10, workers=2, timeouts=PATIENT, transactions="split") as proxy:
        yield proxy


@pytest.fixture
def pair(fleet10: Fleet, proxy: Proxy, server: Server) -> Iterator["Pair"]:
    """The proxy and the plain server, both without keys."""
    for each in (*fleet10.servers, server):
        each.ask("FLUSHALL")
    pair = Pair(proxy.port, server.port)
    yield pair
    pair.close()


def commands_to_shards() -> dict[str, Command]:
    """Every command and subcommand that goes to shards, by its name."""
    rows = [row for top in TABLE.values() for row in (top.subcommands.values() if top.subcommands else [top])]
    elsewhere = (Kind.LOCAL, Kind.REFUSED, Kind.TRANSACTION)
    return {row.name.decode(): row for row in rows if row.kind not in elsewhere}


def knows(server: Server, name: str) -> bool:
    """Whether this server has the command; one older than Valkey 9 lacks some."""
    return server.ask("COMMAND", "INFO", name) != [None]


# --- two conversations at once ----------------------------------------------------------------------------------------


class Pair:
    """The same connections to the proxy and to the plain server, opened when they are first used."""

    def __init__(self, ours: int, theirs: int) -> None:
        self.ports = (ours, theirs)
        self.talks: dict[int, tuple[Talk, Talk]] = {}
        self.seen: list[Request] = []
        self.errors = 0

    def close(self) -> None:
        for talks in self.talks.values():
            for talk in talks:
                talk.close()
        self.talks.clear()

    def on(self, connection: int) -> tuple[Talk, Talk]:
        if connection not in self.talks:
            self.talks[connection] = (Talk(self.ports[0]), Talk(self.ports[1]))
        return self.talks[connection]

    def ask(self, batch: Batch) -> list[bytes]:
        """Send the batch to both -> the replies; AssertionError with the first request that is not answered alike."""
        talks = self.on(batch.connection)
        answered = [request for request in batch.requests if request.answered]
        ours, theirs = (heard(talk, batch.cuts, len(answered)) for talk in talks)
        for number, request in enumerate(answered):
            self.seen.append(request)
            self._compare(batch, request, ours[0][number : number + 1], theirs[0][number : number + 1], ours[1])
        assert len(ours[0]) == len(theirs[0]) == len(answered), f"nobody asked for {short(ours[0][len(answered) :])}"
        if batch.requests[-1].last:
            assert [talk.ended() for talk in talks] == [True, True]
            for talk in self.talks.pop(batch.connection):
                talk.close()
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


def heard(talk: Talk, cuts: Sequence[bytes], wanted: int) -> tuple[list[bytes], str]:
    """The replies, and what went wrong if they are fewer than wanted."""
    try:
        return talk.say(cuts, wanted), ""
    except Unanswered as missing:
        return missing.frames, str(missing)


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 500 else f"{text[:400]} ... {text[-80:]} ({len(text)} characters)"


# --- random streams ---------------------------------------------------------------------------------------------------


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


def check_what_is_left(fleet: Fleet, server: Server) -> None:
    """Each key lies where its slot says, and is what it is on the plain server."""
    shards = Config.parse(fleet.config().encode()).shard_map()
    theirs = state.read(server.port)
    ours: dict[tuple[int, bytes], state.Key] = {}
    for shard in fleet.shards:
        held = state.read(shard.primary.port)
        owners = {key: shards.shard_of(key).name for _, key in held}
        assert set(owners.values()) <= {shard.name}, f"{shard.name} holds keys of other shards: {owners}"
        ours |= held
    assert ours.keys() == theirs.keys()
    different = {name: (ours[name], theirs[name]) for name in ours if not ours[name].same(theirs[name])}
    assert different == {}, f"left behind: {short(next(iter(different.items())))}"


@pytest.mark.parametrize("seed", seeds(os.environ.get(VARIABLE, "1-12")))
def test_a_random_stream_is_answered_as_by_one_server_and_leaves_the_same(
    seed: int, pair: Pair, fleet10: Fleet, server: Server
) -> None:
    try:
        for batch in stream(seed, REQUESTS, payloads(server)):
            pair.ask(batch)
        check_what_is_left(fleet10, server)
    except AssertionError as problem:
        raise AssertionError(f"{problem}\nagain with {VARIABLE}={seed}") from None
    assert pair.errors < len(pair.seen) / 3, f"{pair.errors} of {len(pair.seen)} replies were errors; they say little"


def test_the_streams_hold_every_command_that_goes_to_shards() -> None:
    spoken = [line.words for text in vocabulary.DATA | vocabulary.REST for line in lines(text)]
    names = {b"|".join(words[:length]).decode() for words in spoken for length in (1, 2)}
    assert commands_to_shards().keys() - names == set()


def test_a_seed_always_makes_the_same_stream() -> None:
    made = [[(batch.connection, batch.cuts) for batch in stream(7, 300, [b"payload"])] for _ in range(2)]
    assert made[0] == made[1]
    assert {connection for connection, _ in made[0]} <= set(range(CONNECTIONS))


# --- every command ----------------------------------------------------------------------------------------------------


def test_there_is_an_example_of_every_command_that_goes_to_shards() -> None:
    assert EXAMPLES.keys() == commands_to_shards().keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_command_succeeds_through_the_proxy_and_answers_as_one_server(
    name: str, pair: Pair, fleet10: Fleet, server: Server
) -> None:
    if not knows(server, name):
        pytest.skip(f"{fleet10.backend.version} has no {name}")
    payload = payloads(server)[2]
    steps = [[payload if word == b"<dump>" else word for word in step] for step in EXAMPLES[name]]
    with counting_use(name == "object|freq", (*fleet10.servers, server)):
        for proto in (b"2", b"3"):
            requests = [Request(argv, encode(argv)) for argv in ([b"HELLO", proto], [b"FLUSHALL"], *steps)]
            replies = pair.ask(Batch(0, requests, [request.raw for request in requests]))
            assert [reply for reply in replies if reply.startswith(b"-")] == []
        check_what_is_left(fleet10, server)


@contextmanager
def counting_use(wanted: bool, servers: Sequence[Server]) -> Iterator[None]:
    """OBJECT FREQ is an error unless the servers count how often keys are used."""
    try:
        for each in servers if wanted else ():
            each.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
        yield
    finally:
        for each in servers if wanted else ():
            each.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


# --- and a difference is found ----------------------------------------------------------------------------------------


def test_every_allowance_is_of_a_command_and_has_a_reason() -> None:
    named = {row.name for top in TABLE.values() for row in (top, *top.subcommands.values())}
    assert allowed.ALLOWED.keys() <= named
    assert [name for name, each in allowed.ALLOWED.items() if not each.reason] == []


SAME = [
    ("SMEMBERS k", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n+a\r\n"),
    ("HGETALL k", b"%2\r\n+a\r\n+1\r\n+b\r\n+2\r\n", b"%2\r\n+b\r\n+2\r\n+a\r\n+1\r\n"),
    ("SSCAN k 0", b"*2\r\n+0\r\n*2\r\n+a\r\n+a\r\n", b"*2\r\n+0\r\n*1\r\n+a\r\n"),
    ("SRANDMEMBER k", b"+a\r\n", b"+b\r\n"),
    ("ZRANDMEMBER k -1 WITHSCORES", b"*1\r\n*2\r\n+a\r\n,-1\r\n", b"*1\r\n*2\r\n+b\r\n,2\r\n"),
    ("TTL k", b":100\r\n", b":99\r\n"),
    ("DUMP k", b"$2\r\n\x02a\r\n", b"$2\r\n\x02b\r\n"),
    ("XPENDING k g - + 1", b"*1\r\n*4\r\n+1-1\r\n+c\r\n:5\r\n:1\r\n", b"*1\r\n*4\r\n+1-1\r\n+c\r\n:6\r\n:1\r\n"),
    ("XINFO CONSUMERS k g", b"*2\r\n$4\r\nidle\r\n:5\r\n", b"*2\r\n$4\r\nidle\r\n:6\r\n"),
    ("HELLO", b"*2\r\n$5\r\nproto\r\n:2\r\n", b"*4\r\n$2\r\nid\r\n:7\r\n$5\r\nproto\r\n:2\r\n"),
]
DIFFERENT = [
    ("GET k", b"+a\r\n", b"+b\r\n"),
    ("LRANGE k 0 -1", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n+a\r\n"),
    ("MGET k l", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n+a\r\n"),
    ("SMEMBERS k", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+a\r\n+a\r\n"),
    ("SMEMBERS k", b"~1\r\n+a\r\n", b"*1\r\n+a\r\n"),
    ("SMEMBERS k", b"*0\r\n", b"_\r\n"),
    ("HGETALL k", b"*4\r\n+a\r\n+1\r\n+b\r\n+2\r\n", b"*4\r\n+a\r\n+2\r\n+b\r\n+1\r\n"),
    ("KEYS *", b"*1\r\n+a\r\n", b"*2\r\n+a\r\n+a\r\n"),
    ("SSCAN k 0", b"*2\r\n+0\r\n*1\r\n+a\r\n", b"*2\r\n+5\r\n*1\r\n+a\r\n"),
    ("SRANDMEMBER k", b"$1\r\na\r\n", b"$-1\r\n"),
    ("SRANDMEMBER k 1000", b"*1\r\n+a\r\n", b"*1\r\n+b\r\n"),
    ("TTL k", b":-1\r\n", b":-2\r\n"),
    ("TTL k", b":100\r\n", b":200\r\n"),
    ("TTL k", b":100\r\n", b"-ERR\r\n"),
    ("DUMP k", b"$2\r\n\x00a\r\n", b"$2\r\n\x00b\r\n"),
    ("DUMP k", b"$2\r\n\x02a\r\n", b"$-1\r\n"),
    ("XPENDING k g - + 1", b"*1\r\n*4\r\n+1-1\r\n+c\r\n:5\r\n:1\r\n", b"*1\r\n*4\r\n+1-1\r\n+c\r\n:5\r\n:2\r\n"),
    ("XINFO CONSUMERS k g", b"*2\r\n$7\r\npending\r\n:5\r\n", b"*2\r\n$7\r\npending\r\n:6\r\n"),
    ("HELLO", b"*2\r\n$5\r\nproto\r\n:2\r\n", b"*2\r\n$5\r\nproto\r\n:3\r\n"),
]


@pytest.mark.parametrize(("asked", "ours", "theirs"), SAME)
def test_what_may_differ_does_not_count(asked: str, ours: bytes, theirs: bytes) -> None:
    request = Request(asked.encode().split(), b"")
    assert allowed.may_differ(request.name, request.argv, ours, theirs)


@pytest.mark.parametrize(("asked", "ours", "theirs"), DIFFERENT)
def test_what_may_not_differ_is_found(asked: str, ours: bytes, theirs: bytes) -> None:
    request = Request(asked.encode().split(), b"")
    assert not allowed.may_differ(request.name, request.argv, ours, theirs)
