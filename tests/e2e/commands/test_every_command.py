"""Every command and subcommand of the servers' COMMAND, asked of the proxy over ten shards and of one plain server.

Each has an example that succeeds (tests/e2e/twin/examples.py): it is answered alike, leaves the same keys, in RESP2 and
RESP3, pipelined and one by one. What the table refuses is answered with the table's words; its example is tried at the
plain server, and compared from the day on which it is served. All of it against the backend, Valkey as a rule, and
against the Redis of this machine, if there is one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from protocol import errors
from protocol.commands import BadKeys, Kind, rows_of
from protocol.reply import decode
from protocol.request import encode
from protocol.table import TABLE, lookup
from pyproxy.fleet import Fleet, Proxy, Server
from tests.e2e.twin.connection import Connection, ask_all
from tests.e2e.twin.examples import ALONE, DUMP, EXAMPLES, FAILING, FUNCTIONS, LIBRARY, Example, Step
from tests.e2e.twin.pair import Pair, check_what_is_left
from tests.e2e.twin.stream import Batch, Request
from tests.servers import KINDS, servers_of

# Nobody here waits for a slow shard: on a busy machine a late reply must not become an error.
PATIENT = {"reply_s": 30.0, "silence_s": 60.0}

PROTOCOLS = (b"2", b"3")

# Redis knows them in cluster mode only, and Valkey takes them. The proxy answers as its servers do (test_surface.py).
OF_VALKEY = ("readonly", "readwrite")

COMPARED = [*EXAMPLES, *(each for examples in FAILING.values() for each in examples)]
REFUSED_ALONE = [each for examples in ALONE.values() for each in examples]


def named(example: Example) -> str:
    return example.name


# --- where they are asked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Ten shards with the proxy in front, and one plain server, all of the same version; none has keys."""

    fleet: Fleet
    proxy: Proxy
    server: Server
    payloads: dict[bytes, bytes]

    def steps(self, example: Example) -> list[Step]:
        """The steps with this version's payloads in them."""
        return [[self.payloads.get(word, word) for word in step] for step in example.steps]

    def knows(self, name: str) -> bool:
        """Whether its servers have the command; versions differ."""
        return self.server.ask("COMMAND", "INFO", name) != [None]


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with (
        servers_of(request.param),
        Fleet(10, 0) as fleet,
        Fleet(1, 0) as alone,
        Proxy(fleet, timeouts=PATIENT) as proxy,
    ):
        server = alone.servers[0]
        yield Place(fleet, proxy, server, payloads(server))


def payloads(server: Server) -> dict[bytes, bytes]:
    server.ask("HSET", "hash", "field1", "1", "field2", "two")
    server.ask("FUNCTION", "LOAD", LIBRARY)
    found = {DUMP: server.ask("DUMP", "hash"), FUNCTIONS: server.ask("FUNCTION", "DUMP")}
    server.ask("FUNCTION", "FLUSH")
    server.ask("FLUSHALL")
    return {name: payload for name, payload in found.items() if isinstance(payload, bytes)}


@contextmanager
def counting_use(wanted: bool, place: Place) -> Iterator[None]:
    """OBJECT FREQ is an error unless the servers count how often keys are used."""
    servers = (*place.fleet.servers, place.server) if wanted else ()
    try:
        for each in servers:
            each.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
        yield
    finally:
        for each in servers:
            each.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


# --- none is missing --------------------------------------------------------------------------------------------------


def test_no_command_of_the_servers_is_without_an_example(place: Place) -> None:
    reply = decode(asked(place.server.port, b"2", [[b"COMMAND"]])[0])
    assert isinstance(reply, list)
    theirs = {row.name: row.arity for entry in reply for row in rows_of(entry)}
    containers = {name.partition("|")[0] for name in theirs if "|" in name}
    calls = {name for name, arity in theirs.items() if name not in containers or arity == -1}
    assert len(calls) > 300
    assert calls - {example.name for example in (*COMPARED, *REFUSED_ALONE)} == set()


def test_no_command_of_the_table_is_without_an_example() -> None:
    tops = [top for top in TABLE.values() if not top.subcommands or top.arity_ok(1)]
    subs = [sub for top in TABLE.values() for sub in top.subcommands.values()]
    assert {command.name.decode() for command in (*tops, *subs)} == {each.name for each in (*COMPARED, *REFUSED_ALONE)}


# --- served or refused ------------------------------------------------------------------------------------------------


def refusal(call: Step) -> bytes:
    """The line with which the proxy refuses it; b"" if it is served."""
    command = lookup(call)
    assert command is not None
    if command.kind is Kind.REFUSED:
        return errors.refused(command.name, command.reason)
    try:
        if command.kind is Kind.KEYED:
            command.keys(call)
    except BadKeys as bad:
        return bad.line
    return b""


@pytest.mark.parametrize("example", COMPARED, ids=named)
def test_every_command_is_answered_as_by_one_server_or_refused_with_the_reason(example: Example, place: Place) -> None:
    if not place.knows(example.name):
        pytest.skip(f"{place.fleet.backend.version} has no {example.name}")
    if example.name in OF_VALKEY and place.fleet.backend.version.startswith("redis 7.0"):
        pytest.skip("Redis 7.0 knows it in cluster mode only")
    with counting_use(example.name == "object|freq", place):
        refused = [step for step in place.steps(example) if refusal(step)]
        if refused:
            check_refused(place, refused[0])
            check_example(place, example)
        else:
            check_served(place, example)


def check_served(place: Place, example: Example) -> None:
    """In both protocols, pipelined and one by one: the same replies, and the same keys afterwards."""
    for proto in PROTOCOLS:
        requests = [
            Request(argv, encode(argv), last=argv[0].lower() == b"quit")
            for argv in ([b"HELLO", proto], [b"FLUSHALL"], *place.steps(example))
        ]
        for batches in ([requests], [[request] for request in requests]):
            replies = conversation(place, batches)
            assert_fits(example, replies)
            check_what_is_left(place.fleet, place.server)


def conversation(place: Place, batches: Sequence[list[Request]]) -> list[bytes]:
    """Sent to both on a new connection, each batch when the one before is answered -> the replies, which are alike."""
    pair = Pair(place.proxy.port, place.server.port)
    try:
        answers = [pair.ask(Batch(0, batch, [request.raw for request in batch])) for batch in batches]
        return [reply for each in answers for reply in each]
    finally:
        pair.close()


def check_example(place: Place, example: Example) -> None:
    """What is refused today is right at one server all the same."""
    for proto in PROTOCOLS:
        assert_fits(example, asked(place.server.port, proto, [[b"FLUSHALL"], *place.steps(example)]))


def assert_fits(example: Example, replies: Sequence[bytes]) -> None:
    """It succeeds, or is of those that cannot here."""
    reason = next((why for why, examples in FAILING.items() if example in examples), "")
    assert [reply for reply in replies[:-1] if reply.startswith(b"-")] == []
    assert replies[-1].startswith(b"-") == bool(reason), f"{replies[-1]!r}, {reason or 'which should succeed'}"


def check_refused(place: Place, call: Step) -> None:
    for proto in PROTOCOLS:
        assert asked(place.proxy.port, proto, [call, [b"PING"]]) == [refusal(call), b"+PONG\r\n"]


def asked(port: int, proto: bytes, steps: Sequence[Step]) -> list[bytes]:
    """The replies to these steps, one by one on a new connection of this protocol."""
    with Connection(port) as conn:
        ask_all(conn, [[b"HELLO", proto]])
        return [ask_all(conn, [step])[0] for step in steps]


@pytest.mark.parametrize("example", REFUSED_ALONE, ids=named)
def test_what_must_not_reach_a_server_is_refused_with_the_reason(example: Example, place: Place) -> None:
    assert refusal(example.call), "it is served now: move its example to those that are compared"
    check_refused(place, example.call)
