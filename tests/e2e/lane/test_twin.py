"""The proxy over ten shards answers as one plain server does, byte for byte.

Both are asked the same: random streams of commands, made of a seed, in random cuts and pipelines, on several
connections in turn, in RESP2 and RESP3 (tests/e2e/twin/). After each stream the databases hold the same, and each key
lies on the shard that owns its slot. Which replies may differ, and why, stands in tests/e2e/twin/allowed.py.

PYPROXY_TWIN_SEEDS says which seeds to run: numbers and ranges, "7,1000-1999" (default 1-12). A failure names its seed.
"""

import os
from collections.abc import Iterator

import pytest

from protocol.commands import Command, Kind
from protocol.table import TABLE
from pyproxy.fleet import Fleet, Proxy, Server
from tests.e2e.twin import allowed, vocabulary
from tests.e2e.twin.grammar import lines
from tests.e2e.twin.pair import Pair, check_what_is_left, payloads
from tests.e2e.twin.stream import CONNECTIONS, Request, stream

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
def pair(fleet10: Fleet, proxy: Proxy, server: Server) -> Iterator[Pair]:
    """The proxy and the plain server, both without keys."""
    for each in (*fleet10.servers, server):
        each.ask("FLUSHALL")
    pair = Pair(proxy.port, server.port)
    yield pair
    pair.close()


def commands_to_shards() -> dict[str, Command]:
    """Every command that goes to shards as it is, by its name; of the others see test_every_command.py."""
    rows = [row for top in TABLE.values() for row in (top.subcommands.values() if top.subcommands else [top])]
    elsewhere = (Kind.LOCAL, Kind.REFUSED, Kind.TRANSACTION, Kind.PUBSUB, Kind.CONVERSATION)
    return {row.name.decode(): row for row in rows if row.kind not in elsewhere}


# --- random streams ---------------------------------------------------------------------------------------------------


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


# --- and a difference is found ----------------------------------------------------------------------------------------


def test_every_allowance_is_of_a_command_and_has_a_reason() -> None:
    named = {row.name for top in TABLE.values() for row in (top, *top.subcommands.values())}
    assert allowed.ALLOWED.keys() <= named
    assert [name for name, each in allowed.ALLOWED.items() if not each.reason] == []


SAME = [
    ("SMEMBERS k", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n+a\r\n"),
    ("HGETALL k", b"%2\r\n+a\r\n+1\r\n+b\r\n+2\r\n", b"%2\r\n+b\r\n+2\r\n+a\r\n+1\r\n"),
    ("SSCAN k 0", b"*2\r\n+0\r\n*2\r\n+a\r\n+a\r\n", b"*2\r\n+0\r\n*1\r\n+a\r\n"),
    ("SCAN 0", b"*2\r\n$2\r\n77\r\n*1\r\n$1\r\na\r\n", b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\nb\r\n$1\r\na\r\n"),
    ("FUNCTION LIST", b"*2\r\n*1\r\n+a\r\n+b\r\n", b"*2\r\n+b\r\n*1\r\n+a\r\n"),
    ("OBJECT HELP", b"*2\r\n+OBJECT:\r\n+Print\r\n", b"*3\r\n+OBJECT:\r\n+Prints\r\n+a\r\n"),
    ("INFO", b"$1\r\na\r\n", b"$2\r\nbb\r\n"),
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
    ("SCAN 0", b"*2\r\n$2\r\n77\r\n*1\r\n$1\r\nx\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n"),
    ("SCAN 0", b"*2\r\n$1\r\n0\r\n$1\r\na\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n"),
    ("FUNCTION LIST", b"*2\r\n+a\r\n+b\r\n", b"*2\r\n+a\r\n+a\r\n"),
    ("OBJECT HELP", b"*1\r\n+XINFO:\r\n", b"*1\r\n+OBJECT:\r\n"),
    ("INFO", b"$1\r\na\r\n", b"=5\r\ntxt:a\r\n"),
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
