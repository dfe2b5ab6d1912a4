"""A server answers one of the proxy's own questions with what is a reply, but no answer to it.

Every command of which the proxy reads the answers is asked once, to see what it asks of the servers; then again,
where each of these questions is answered by each of LIES. Whatever comes of it is one reply to the client, and no
surprise of the proxy's own: no internal error, nothing in the log that nobody expected, no connection that is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import pytest

from protocol import scan
from pyproxy.fleet import HOST, Fleet, Value
from pyproxy.scripts import digest_of
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Argument, Keys, packed
from tests.hostile_server import HostileRelay, Stage

LIES = {
    2: (
        b"+OK\r\n", b"+QUEUED\r\n", b"+\r\n", b":0\r\n", b":-1\r\n", b":2\r\n", b":9223372036854775807\r\n",
        b"$-1\r\n", b"$0\r\n\r\n", b"$1\r\nx\r\n", b"$4\r\n\xff\x00\r\n\r\n",
        b"*-1\r\n", b"*0\r\n", b"*1\r\n*0\r\n", b"*1\r\n*-1\r\n", b"*1\r\n:1\r\n", b"*1\r\n$-1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"*2\r\n*0\r\n:1\r\n", b"*2\r\n:1\r\n*0\r\n", b"*2\r\n$1\r\nx\r\n*1\r\n$1\r\ny\r\n", b"*2\r\n+a\r\n+b\r\n",
        b"*2\r\n:1\r\n:2\r\n", b"*2\r\n*2\r\n*0\r\n*0\r\n*2\r\n*0\r\n*0\r\n", b"*1\r\n-ERR inside\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*1\r\n*2\r\n$9\r\nfunctions\r\n:1\r\n", b"*1\r\n*3\r\n$9\r\nfunctions\r\n*0\r\n+x\r\n",
        b"*1\r\n*2\r\n$9\r\nfunctions\r\n*1\r\n*2\r\n$4\r\nname\r\n$5\r\nreads\r\n",
        b"*1\r\n*4\r\n$9\r\nfunctions\r\n*1\r\n*2\r\n$4\r\nname\r\n$5\r\nreads\r\n$12\r\nlibrary_name\r\n:3\r\n",
        b"*1\r\n*2\r\n$12\r\nlibrary_code\r\n*0\r\n",
        b"-ERR no\r\n", b"-\r\n", b"-NOSCRIPT no\r\n", b"-EXECABORT no\r\n", b"-\xff\xfe\r\n",
    ),
    3: (
        b"_\r\n", b"#t\r\n", b",1.5\r\n", b",nan\r\n", b"(12345678901234567890123\r\n", b"=5\r\ntxt:x\r\n",
        b"!5\r\nERR x\r\n",
        b"%0\r\n", b"%1\r\n+a\r\n+b\r\n", b"%1\r\n*0\r\n:1\r\n", b"~1\r\n:1\r\n", b"*1\r\n%1\r\n+a\r\n+b\r\n",
        b"*1\r\n_\r\n",
        b"|1\r\n+a\r\n+b\r\n:1\r\n", b"*1\r\n%1\r\n$9\r\nfunctions\r\n:1\r\n", b"*2\r\n#f\r\n,inf\r\n",
        b"%2\r\n+a\r\n*0\r\n+a\r\n*1\r\n:1\r\n",
        b"*1\r\n%1\r\n$4\r\nname\r\n_\r\n", b"%1\r\n+a\r\n|1\r\n+b\r\n+c\r\n:1\r\n",
    ),
}  # fmt: skip
"""By protocol: those of RESP3 are no replies in RESP2."""

LIBRARY = (
    "#!lua name=lib\n"
    "redis.register_function{function_name='reads', callback=function() return 1 end, flags={'no-writes'}}"
)


@dataclass(frozen=True)
class Case:
    """`before` is said before each time, and may fail; what is asked then is `argv`."""

    argv: tuple[Argument, ...]
    before: tuple[tuple[Argument, ...], ...] = ()


def case(text: str, *before: str) -> Case:
    return Case(tuple(text.split()), tuple(tuple(each.split()) for each in before))


EVAL = Case(("EVAL", "return redis.error_reply('NO way')", 0))
FCALL = Case(("FCALL", "reads", 0))
DIGEST = digest_of(b"return 1").decode()
IN_EXEC = (("MULTI",), ("FCALL", "reads", 0), ("EVAL", "return 1", 0), ("EVALSHA", DIGEST, 0))

CASES = [
    EVAL,
    Case(("EVAL", "return 1", 1, "a0")),
    Case(("EVALSHA", DIGEST, 1, "a0"), (("EVAL", "return 1", 1, "a0"),)),
    FCALL,
    Case(("FCALL_RO", "reads", 1, "a0")),
    Case(("EXEC",), IN_EXEC),
    Case(("EXEC",), (("MULTI",), ("SET", "a0", 1), ("SET", "b0", 1), ("MGET", "a0", "b0"), ("DBSIZE",))),
    Case(("EXEC",), (("WATCH", "a0"), *IN_EXEC, ("SET", "a0", 1), ("SET", "b0", 1))),
    Case(("EXEC",), (("WATCH", "a0"), ("MULTI",))),
    case("WATCH a0", "UNWATCH"),
    Case(("SCRIPT", "LOAD", "return 2")),
    Case(("SCRIPT", "EXISTS", "0" * 40, "1" * 40)),
    case("SCRIPT FLUSH"),
    Case(("SCRIPT", "SHOW", "0" * 40)),
    case("SCRIPT KILL"),
    Case(("FUNCTION", "LOAD", "REPLACE", LIBRARY)),
    case("FUNCTION DELETE nolib"),
    case("FUNCTION LIST"),
    case("FUNCTION DUMP"),
    case("FUNCTION STATS"),
    case("FUNCTION KILL"),
    case("RANDOMKEY"),
    case("SCAN 0"),
    case("DBSIZE"),
    case("KEYS *"),
    case("MGET a0 b0"),
    case("MSET a0 1 b0 2"),
    case("DEL a9 b9"),
    case("MSETNX a9 1 b9 2", "DEL a9 b9"),
    case("LMPOP 2 a9 b1 LEFT", "RPUSH b1 x"),
    case("RENAME a0 b9"),
    case("RENAMENX a0 b9", "DEL b9", "SET a0 1"),
    case("COPY a0 b9 REPLACE"),
    case("COPY a0 b9 DB 1 REPLACE"),
    case("SMOVE a2 b2 x", "SADD a2 x"),
    case("LMOVE a1 b1 LEFT RIGHT", "RPUSH a1 x"),
    case("SUNION a2 b2", "SADD a2 x", "SADD b2 y"),
    case("SUNIONSTORE a3 b2 b3", "SADD b2 y"),
    case("SINTERCARD 2 a2 b2"),
    case("XREAD STREAMS a4 b4 0 0", "XADD a4 * f v", "XADD b4 * f v"),
    case("XREADGROUP GROUP g c STREAMS a4 b4 > >", "XGROUP CREATE a4 g 0 MKSTREAM", "XGROUP CREATE b4 g 0 MKSTREAM"),
    case("XREAD BLOCK 10 STREAMS a4 $"),
    case("XREAD BLOCK 10 STREAMS a4 b4 $ $"),
    case("XREAD BLOCK 10 STREAMS a4 b4 0 0"),
    case("BLPOP a1 0.03", "DEL a1"),
    case("BLPOP a1 b1 0.03", "DEL a1", "DEL b1"),
    case("BLPOP a1 b1 0.03", "RPUSH b1 x"),
    case("BZPOPMIN a5 b5 0.03", "ZADD b5 1 x"),
    case("BLMPOP 0.03 2 a1 b1 LEFT", "RPUSH b1 x"),
    case("BLMOVE a1 b1 LEFT LEFT 0.03", "RPUSH a1 x"),
    case("WAIT 0 10", "SET a0 1", "SET b0 1"),
    case("WAITAOF 0 0 10", "SET a0 1"),
    case("CONFIG SET maxmemory-samples 6"),
    case("CONFIG GET maxmemory-samples"),
    case("MEMORY DOCTOR"),
    case("MEMORY PURGE"),
    case("PUBLISH channel x"),
    case("GET a0"),
    case("OBJECT ENCODING a0"),
]
"""Keys that begin with a are on one shard, those with b on another."""


class Client:
    """One that takes whatever is a reply; clients' libraries do not understand all of them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), PATIENCE_S)
        self._replies = scan.Replies(resp3=True)

    def ask(self, *argv: Argument) -> bytes:
        """The one reply, as it came."""
        self._socket.sendall(packed(*argv))
        while not (frames := self._replies.feed(received := self._socket.recv(1 << 20))):
            assert received, f"the connection was closed where the reply to {argv} was expected"
        (frame,) = frames
        return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@dataclass
class Scene:
    worker: BareWorker
    stage: Stage
    names: dict[str, str]

    def of(self, argv: Sequence[Argument]) -> list[Argument]:
        """With keys that live where they must."""
        return [self.names.get(word, word) if isinstance(word, str) else word for word in argv]

    def client(self, proto: int) -> Client:
        client = Client(self.worker.port)
        client.ask("HELLO", proto)
        return client

    def logged(self, begin: int) -> str:
        """What the worker's log says from this byte on."""
        with self.worker.log.open() as file:
            file.seek(begin)
            return file.read()


@pytest.fixture(scope="module")
def scene(fleet: Fleet) -> Iterator[Scene]:
    for shard in fleet.shards:
        shard.primary.ask("CONFIG", "SET", "hz", "100")  # so that what blocks ends at its time, and not 0.1 s later
    stage = Stage()
    with ExitStack() as open_:
        relays = [open_.enter_context(HostileRelay(shard.primary.port, stage)) for shard in fleet.shards]
        nodes = {place: Node(HOST, relay.port) for place, relay in enumerate(relays)}
        settings = ["maxmemory-samples"]
        tables: dict[str, Value] = {"cross_shard": "emulate", "transactions": "split", "config_set": settings}
        timeouts = {"connect_s": PATIENCE_S, "reply_s": 2.0, "silence_s": PATIENCE_S}
        worker = open_.enter_context(BareWorker(fleet, nodes, "", timeouts=timeouts, **tables))
        keys = Keys(worker)
        places = [(shard, f"{letter}{number}") for number in range(10) for shard, letter in enumerate("ab")]
        names = {name: keys.one(shard, f"{name}-") for shard, name in places}
        yield Scene(worker, stage, names)


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case.argv[:2])) + f"-{len(case.before)}")
def test_a_lie_is_an_answer_or_an_error_and_no_surprise(scene: Scene, case: Case, proto: int) -> None:
    lies, stage, problems = LIES[2] + (LIES[3] if proto == 3 else ()), scene.stage, []
    with ExitStack() as clients:
        conn, other = (clients.enter_context(scene.client(proto)) for _ in range(2))
        conn.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY)

        def ask(place: int = -1, lie: bytes = b"") -> bytes:
            stage.listen()
            for line in case.before:
                conn.ask(*scene.of(line))
            stage.listen(lambda at, _: lie if at == place else None)
            return conn.ask(*scene.of(case.argv))

        ask()
        ask()  # what is asked once only is known
        for place in range(len(stage.asked)):
            for lie in lies:
                begin = scene.worker.log.stat().st_size
                said, logged = ask(place, lie), scene.logged(begin)
                asked = b" ".join(stage.asked[: place + 1])
                stage.listen()
                if b"internal error" in said or "+bug" in logged:
                    problems.append(f"{asked!r} answered with {lie!r}: {said!r}: {logged[-300:]}")
                    conn = clients.enter_context(scene.client(proto))
                assert other.ask("ECHO", "x") == b"$1\r\nx\r\n"
    assert not problems, "\n".join(problems)


UNFIT = "do not fit together"
UNWRITTEN = "-ERR the shards' answers to '%s' do not fit together, applied=no"

DIRECTED = {
    "RENAME, whose DUMP is a number": (case("RENAME a0 b9", "SET a0 1"), "DUMP", b":1\r\n", UNWRITTEN % "rename"),
    "RENAME, whose PTTL is a text": (case("RENAME a0 b9", "SET a0 1"), "PTTL", b"+x\r\n", UNWRITTEN % "rename"),
    "RENAME, whose WATCH is not taken": (case("RENAME a0 b9", "SET a0 1"), "WATCH", b":0\r\n", UNFIT),
    "RENAME, whose DEL is not counted": (case("RENAME a0 b9", "SET a0 1"), "EXEC", b"*1\r\n+x\r\n", "UNCERTAIN"),
    "COPY, whose RESTORE is a number": (case("COPY a0 b9 REPLACE", "SET a0 1"), "RESTORE", b":1\r\n", "-UNCERTAIN "),
    "SUNION, whose DUMP is a number": (case("SUNION a2 b2", "SADD a2 x", "SADD b2 y"), "EXEC", b"*1\r\n:1\r\n", UNFIT),
    "MSETNX, whose EXISTS is a text": (
        case("MSETNX a9 1 b9 2", "DEL a9 b9"),
        "EXISTS",
        b"+x\r\n",
        UNWRITTEN % "msetnx",
    ),
    "SMOVE, whose SADD is a text": (case("SMOVE a2 b2 x", "SADD a2 x"), "SADD", b"+x\r\n", "-UNCERTAIN "),
    "LMOVE, whose element is a number": (
        case("LMOVE a1 b1 LEFT LEFT", "RPUSH a1 x"),
        "LINDEX",
        b":1\r\n",
        UNWRITTEN % "lmove",
    ),
    "RANDOMKEY, whose DBSIZE is a text": (case("RANDOMKEY"), "DBSIZE", b"+x\r\n", UNFIT),
    "SCAN, whose cursor is negative": (case("SCAN 0"), "SCAN", b"*2\r\n$2\r\n-1\r\n*0\r\n", UNFIT),
    "FCALL, of whose function nothing is said": (FCALL, "FUNCTION", b"+OK\r\n", UNFIT),
    "SCRIPT EXISTS, with too few": (Case(("SCRIPT", "EXISTS", "0" * 40)), "SCRIPT", b"*0\r\n", UNFIT),
}


@pytest.mark.parametrize(("case", "name", "lie", "expected"), DIRECTED.values(), ids=DIRECTED.keys())
def test_what_is_no_answer_is_not_taken_for_one(scene: Scene, case: Case, name: str, lie: bytes, expected: str) -> None:
    with scene.client(2) as client:
        client.ask("FUNCTION", "LOAD", "REPLACE", LIBRARY)
        for line in case.before:
            client.ask(*scene.of(line))
        scene.stage.listen(lambda _, argv: lie if argv[0].upper() == name.encode() else None)
        said = client.ask(*scene.of(case.argv))
        scene.stage.listen()
        assert said.startswith(b"-")
        assert expected.encode() in said


def test_a_list_whose_elements_are_never_there_to_be_removed_is_not_moved_from_for_ever(scene: Scene) -> None:
    with scene.client(2) as client:
        source, destination = scene.of(("a7", "b7"))
        of_source = str(source).encode()
        lies = {(b"LINDEX", of_source): b"$1\r\nx\r\n", (b"LREM", of_source): b":0\r\n"}
        scene.stage.listen(lambda _, argv: lies.get((argv[0], argv[1])))
        said = client.ask("LMOVE", source, destination, "LEFT", "LEFT")
        scene.stage.listen()
        assert said.startswith(b"-TRYAGAIN shard s0 (")
        assert client.ask("LLEN", destination) == b":0\r\n"
