"""The proxy over ten shards answers as one plain server does, byte for byte.

Both are asked the same: random streams of commands, made of a seed, in random cuts and pipelines, on several
connections in turn, in RESP2 and RESP3 (tests/e2e/twin/). After each stream the databases hold the same, and each key
lies on the shard that owns its slot. Which replies may differ, and why, stands in tests/e2e/twin/allowed.py.

PYPROXY_TWIN_SEEDS says which seeds to run: numbers and ranges, "7,1000-1999" (default 1-6). A failure names its seed.
"""

import os
from collections.abc import Iterator, Sequence

import pytest

from protocol.commands import Command, Kind
from protocol.reply import decode
from protocol.request import encode
from protocol.table import TABLE
from pyproxy.config import Config
from pyproxy.fleet import Fleet, Proxy, Server
from tests.e2e.twin import allowed, state, vocabulary
from tests.e2e.twin.examples import EXAMPLES
from tests.e2e.twin.grammar import lines
from tests.e2e.twin.stream import ALL_KEYS, CONNECTIONS, Batch, Request, stream
from tests.e2e.twin.talk import Talk, Unanswered, ask_all

VARIABLE = "PYPROXY_TWIN_SEEDS"
REQUESTS = 4000  # of one seed

# Nobody here waits for a slow shard: on a busy machine a late reply must not become an error.
PATIENT = {"reply_s": 30.0, "silence_s": 60.0}


def seeds(text: str) -> list[int]:
    """"7,10-12" -> [7, 10, 11, 12]."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


@pytest.fixture(scope="module")
def proxy(fleet10: Fleet) -> Iterator[Proxy]:
    """Two workers, so that the connections of one conversation meet in the shards only."""
    with Proxy(fleet10, workers=2, timeouts=PATIENT) as proxy:
        yield proxy


@pytest.fixture
def pair(fleet10: Fleet, proxy: Proxy, server: Server) -> Iterator["Pair"]:
    """The proxy and the plain server, both without keys."""
    for each in (*fleet10.servers, server):
        each.ask("FLUSHALL")
    pair = Pair(proxy.port, server.port)
    yield pair
    pair.close()
    for each in (*fleet10.servers, server):
        each.ask("FLUSHALL")


def commands_to_shards() -> dict[str, Command]:
    """Every command and subcommand that goes to shards, by its name."""
    rows = [row for top in TABLE.values() for row in (top.subcommands.values() if top.subcommands else [top])]
    return {row.name.decode(): row for row in rows if row.kind not in (Kind.LOCAL, Kind.REFUSED)}


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

    def ask(self, batch: Batch) -> None:
        """Send the batch to both; AssertionError with the first request that is not answered alike."""
        talks = self.on(batch.connection)
        answered = [request for request in batch.requests if request.answered]
        ours, theirs = (heard(talk, batch.cuts, len(answered)) for talk in talks)
        for number, request in enumerate(answered):
            self.seen.append(request)
            self._compare(batch, request, ours[0][number : number + 1], theirs[0][number : number + 1], ours[1])
        assert (len(ours[0]), ours[1]) == (len(theirs[0]), theirs[1]), f"replies that nobody asked for: {ours}, {theirs}"
        if batch.requests[-1].last:
            assert [talk.ended() for talk in talks] == [True, True]
            for talk in self.talks.pop(batch.connection):
                talk.close()

    def _compare(self, batch: Batch, request: Request, ours: list[bytes], theirs: list[bytes], trouble: str) -> None:
        assert theirs, f"the plain server left {request.argv} unanswered"
        self.errors += theirs[0].startswith(b"-")
        if ours == theirs or (ours and allowed.may_differ(request.name, request.argv, ours[0], theirs[0])):
            return
        before = [each.argv for each in self.seen[:-1] if ALL_KEYS.intersection(each.argv, request.argv)][-8:]
        raise AssertionError(
            f"request {len(self.seen)}, on connection {batch.connection}: {short(request.argv)}\n"
            f"  sent as {request.raw[:200]!r} within a batch of {len(batch.requests)} in {len(batch.cuts)} pieces\n"
            f"  the proxy: {short(ours[0]) if ours else f'nothing: {trouble}'}\n"
            f"  one server: {short(theirs[0])}\n"
            "  some requests before it with a key in common:\n" + "\n".join(f"    {short(argv)}" for argv in before)
        )


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
        strangers = {name: shards.shard_of(name[1]).name for name in held if shards.shard_of(name[1]).name != shard.name}
        assert strangers == {}, f"{shard.name} holds keys of other shards"
        ours |= held
    assert ours.keys() == theirs.keys()
    different = {name: (ours[name], theirs[name]) for name in ours if not ours[name].same(theirs[name])}
    assert different == {}, f"left behind: {short(next(iter(different.items())))}"


@pytest.mark.parametrize("seed", seeds(os.environ.get(VARIABLE, "1-6")))
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
    spoken = {b"|".join(line.words[:length]) for text in vocabulary.DATA | vocabulary.REST for line in lines(text) for length in (1, 2)}
    assert commands_to_shards().keys() - {name.decode() for name in spoken} == set()


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
    policy = "allkeys-lfu" if name == "object|freq" else "noeviction"
    for each in (*fleet10.servers, server):
        each.ask("CONFIG", "SET", "maxmemory-policy", policy)
    payload = payloads(server)[2]
    steps = [[payload if word == b"<dump>" else word for word in step] for step in EXAMPLES[name]]
    try:
        for proto in (b"2", b"3"):
            requests = [Request(argv, encode(argv)) for argv in ([b"HELLO", proto], [b"FLUSHALL"], *steps)]
            pair.ask(Batch(0, requests, [request.raw for request in requests]))
            again = [*steps[:-1], steps[-1]]
            (*_, reply) = ask_all(pair.on(0)[0], [[b"FLUSHALL"], *again])
            assert not reply.startswith(b"-"), reply
    finally:
        for each in (*fleet10.servers, server):
            each.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    check_what_is_left(fleet10, server)
