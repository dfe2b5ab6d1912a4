"""Nothing that one client sends disturbs another that shares its connections to the servers.

A culprit says something; beside it bystanders, in RESP2 and RESP3, go on with what they do on all shards. None of them
may see an error or an answer that is not its own, and each connection that the proxy had to its servers is still there.
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import pytest

from protocol.request import encode
from protocol.scan import ProtocolError, Replies
from protocol.table import TABLE
from pyproxy.fleet import HOST, Fleet, Proxy
from tests.e2e.rig import PATIENCE_S, PATIENT, Argument, Connection, Keys, packed
from tests.e2e.twin.examples import ALONE, EXAMPLES, FAILING, Example
from tests.servers import KINDS, servers_of

MIB = 1 << 20
LONG = 70_000
"""More than what a line of RESP had to fit into once: 64 KiB."""


@dataclass
class Bystander:
    """A client whose answers are all known beforehand."""

    conn: Connection
    keys: Sequence[str]
    counted: int = 0

    def begin(self, proto: int) -> Self:
        self.conn.ask("HELLO", proto)
        self.conn.ask("DEL", *self.keys)
        return self

    def goes_on(self) -> None:
        """A write and a read on each shard, one behind the other."""
        self.conn.send(*[(name, key) for key in self.keys for name in ("INCR", "GET")])
        self.counted += 1
        expected = [each for _ in self.keys for each in (self.counted, b"%d" % self.counted)]
        assert self.conn.reads(len(expected)) == expected


@dataclass
class Scene:
    """Two shards and a proxy in front; `shared` are the ids of its connections at each server."""

    fleet: Fleet
    proxy: Proxy
    keys: Keys
    bystanders: list[Bystander] = field(default_factory=list)
    shared: list[set[bytes]] = field(default_factory=list)

    def prepare(self) -> None:
        mine = [self.keys.one(shard, "bystander") for shard in range(2)]
        for proto in (2, 3):
            keys = [f"{{{key}}}:{proto}" for key in mine]
            self.bystanders.append(Bystander(Connection(self.proxy.port), keys).begin(proto))
        self.go_on()
        self.shared = self.connections(b" cmd=get ")
        assert [len(ids) for ids in self.shared] == [2, 2], "one for each protocol"

    def go_on(self) -> None:
        for each in self.bystanders:
            each.goes_on()

    def connections(self, what: bytes = b"") -> list[set[bytes]]:
        """The ids of the clients of each server, of whom this is said."""
        found = []
        for server in self.fleet.servers:
            lines = server.ask("CLIENT", "LIST")
            assert isinstance(lines, bytes)
            found.append({line.split()[0] for line in lines.splitlines() if what in line})
        return found

    def survives(self, sent: bytes, *, wanted: int = 1, proto: int = 2) -> bytes:
        """What the culprit is answered; whatever it was, the others are well."""
        said = exchange(self.proxy.port, encode([b"HELLO", b"%d" % proto]) + sent, 1 + wanted)
        self.go_on()
        self.undisturbed(f"the culprit got {said[:200]!r}")
        return said

    def undisturbed(self, what: str) -> None:
        gone = [before - now for before, now in zip(self.shared, self.connections(), strict=True)]
        assert gone == [set(), set()], f"connections that all clients share were closed: {what}"


def exchange(port: int, sent: bytes, wanted: int) -> bytes:
    """So many replies, or what came before the connection was closed."""
    replies, said, count = Replies(True, 1 << 28), b"", 0
    with socket.create_connection((HOST, port), PATIENCE_S) as connection:
        connection.sendall(sent)
        while count < wanted and (more := connection.recv(1 << 20)):
            said += more
            pushed = b"*" + more[1:] if more[:1] == b">" else more
            with contextlib.suppress(ProtocolError):  # of what the proxy says itself, before HELLO, nothing is wanted
                count += len(replies.feed(pushed.replace(b"\n>", b"\n*")))
    return said


@contextlib.contextmanager
def scene_of(fleet: Fleet, proxy: Proxy) -> Iterator[Scene]:
    scene = Scene(fleet, proxy, Keys(proxy))
    try:
        scene.prepare()
        yield scene
    finally:
        for each in scene.bystanders:
            each.conn.close()


@pytest.fixture(scope="module", params=KINDS)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with (
        servers_of(request.param),
        Fleet(2, 0) as fleet,
        Proxy(fleet, timeouts=PATIENT) as proxy,
        scene_of(fleet, proxy) as scene,
    ):
        yield scene


# --- whatever stands in the place of an argument ----------------------------------------------------------------------

WORDS = {
    "70 KB": b"x" * LONG,
    "70 KB, a number": b"9" * LONG,
    "CR LF and a reply": b"a\r\n+forged\r\n-ERR forged\r\n",
    "LF": b"\n",
    "NUL": b"\0a\0",
    "empty": b"",
    "no UTF-8": b"\xff\xfe",
    "negative": b"-1",
    "the greatest": b"9223372036854775807",
}

CALLS = [*EXAMPLES, *(each for examples in (*FAILING.values(), *ALONE.values()) for each in examples)]


def with_word(example: Example, word: bytes) -> list[bytes]:
    """The example's commands, then its call with the word in the place of each argument in turn."""
    calls = [[*example.call[:place], word, *example.call[place + 1 :]] for place in range(len(example.call))]
    return [encode(step) for step in (*example.steps[:-1], *calls, [*example.call, word])]


# What ends or silences the culprit's connection, or waits: they have cases of their own.
ENDING = {
    "quit",
    "subscribe",
    "psubscribe",
    "ssubscribe",
    "client|reply",
    "reset",
    "monitor",
    "unsubscribe",
    "punsubscribe",
    "sunsubscribe",
    "flushall",
    "flushdb",
}
WAITING = {name.decode() for name, command in TABLE.items() if command.may_wait} | {"wait", "waitaof"}


@pytest.mark.parametrize("name", sorted({example.name for example in CALLS} - ENDING - WAITING))
def test_no_argument_of_any_command_disturbs_others(scene: Scene, name: str) -> None:
    for word in WORDS.values():
        lines = [line for example in CALLS if example.name == name for line in with_word(example, word)]
        scene.survives(b"".join(lines), wanted=len(lines), proto=3)


# --- what is no argument ----------------------------------------------------------------------------------------------

Said = Sequence[Sequence[Argument]]
BROKEN = b"a\r\n+forged\r\n-ERR forged\r\n"
SPOILS = """
local said = {}
for _, call in ipairs({
    {'select', '9'}, {'client', 'kill', 'type', 'normal'}, {'client', 'no-evict', 'on'}, {'client', 'reply', 'off'},
    {'config', 'set', 'timeout', '1'}, {'subscribe', 'c'}, {'ssubscribe', 'c'}, {'monitor'}, {'hello', '3'}, {'reset'},
    {'quit'}, {'auth', 'x'}, {'multi'}, {'watch', KEYS[1]}, {'debug', 'jmap'}, {'acl', 'whoami'}, {'wait', '1', '0'},
    {'blpop', KEYS[1], '0'}, {'shutdown', 'abort'}, {'replicaof', 'no', 'one'}, {'sync'}, {'asking'},
}) do
    said[#said + 1] = tostring(redis.pcall(unpack(call)))
end
return said
"""
TYPES = """
redis.setresp(3)
redis.call('hset', KEYS[1], 'f', 'v')
return {
    redis.call('hgetall', KEYS[1]), true, false, {double=1.5}, {map={a={set={x=true}}}}, {big_number='123'},
    {verbatim_string={string='s', format='txt'}}, {err='E x'}, {ok='fine'}, {{{{}}}}, redis.call('get', 'none')
}
"""

SAID: dict[str, Said] = {
    "a script text with an identifier of 70 KB": [["SCRIPT", "LOAD", b"x " + b"y" * LONG]],
    "a script text with a line break in what is quoted": [["SCRIPT", "LOAD", b'return 1 "' + BROKEN + b'"']],
    "a script text with an escaped line break in what is quoted": [["SCRIPT", "LOAD", r'return 1 "\r\n+forged\r\n"']],
    "a library with a name of 70 KB": [["FUNCTION", "LOAD", b"#!lua name=" + b"y" * LONG + b"\nx"]],
    "a library with an error of its own": [["FUNCTION", "LOAD", "#!lua name=a\nlocal x = nil + '\\r\\n+forged\\r\\n'"]],
    "an error of 70 KB in a block": [["MULTI"], ["XPENDING", "k" * LONG, "g"], ["EXEC"]],
    "a script that returns an error with a line break": [["EVAL", rb"return {err='a\r\n+forged'}", 1, "k"]],
    "a script that returns a status with a line break": [["EVAL", rb"return {ok='a\r\n+forged'}", 1, "k"]],
    "a script that returns an error of 70 KB": [["EVAL", "return {err=string.rep('x', 70000)}", 1, "k"]],
    "a script that raises an error with a line break": [["EVAL", r"error('a\r\n+forged')", 1, "k"]],
    "a script that returns a megabyte a hundred times": [
        ["EVAL", "local s = string.rep('x', 1048576); local t = {}; for i = 1, 50 do t[i] = s end; return t", 1, "k"]
    ],
    "a script that returns all types of RESP3": [["EVAL", TYPES, 1, "k"]],
    "a script that tries to spoil its connection": [["EVAL", SPOILS, 1, "k"], ["GET", "k"]],
    "the same in a block": [["MULTI"], ["EVAL", SPOILS, 1, "k"], ["EVAL", TYPES, 1, "k"], ["EXEC"]],
    "what changes a connection in a block": [
        ["MULTI"],
        ["HELLO", 3],
        ["RESET"],
        ["MULTI"],
        ["SELECT", 1],
        ["CLIENT", "REPLY", "OFF"],
        ["SUBSCRIBE", "c"],
        ["EXEC"],
    ],
    "what waits, in a block": [["MULTI"], ["BLPOP", "k", 0], ["XREAD", "BLOCK", 0, "STREAMS", "k", "$"], ["EXEC"]],
    "ten thousand commands in a block": [["MULTI"], *[["SET", "k", "v"]] * 10_000, ["EXEC"]],
    "a million arguments": [["SADD", "k", *map(str, range(1_000_000))], ["DEL", "k"]],
    "a hundred thousand keys": [["MGET", *map(str, range(100_000))]],
    "more arguments than there may be": [["SADD", "k", *[1] * 1_048_575]],
    "a value of 32 MiB": [["SET", "k", b"x" * (32 << 20)], ["GET", "k"], ["DEL", "k"]],
    "a key of 8 MiB": [["SET", b"k" * (8 << 20), "v"], ["DEL", b"k" * (8 << 20)]],
    "what administers a server": [
        ["DEBUG", "SLEEP", 0],
        ["SHUTDOWN"],
        ["MONITOR"],
        ["CLIENT", "KILL", "TYPE", "normal"],
    ],
    "channels of 70 KB": [
        ["PUBLISH", "c" * LONG, "m"],
        ["SPUBLISH", "c" * LONG, b"m" * LONG],
        ["PUBSUB", "NUMSUB", "c" * LONG],
    ],
    "a subscription with a line break": [["SUBSCRIBE", BROKEN]],
    "a pattern of 70 KB": [["PSUBSCRIBE", b"*" * LONG]],
    "a settings' value with a line break": [["CONFIG", "SET", "notify-keyspace-events", BROKEN]],
    "a database that there is not": [["SELECT", 9999], ["GET", "k"]],
    "QUIT with something behind it": [["QUIT"], ["GET", "k"]],
    "an end in the middle": [["GET", "k"], ["*"]],
}


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
def test_whatever_a_client_says_disturbs_no_other(scene: Scene, said: Said, proto: int) -> None:
    lines = [packed(*line) for line in said]
    scene.survives(b"".join(lines), wanted=len(lines), proto=proto)


LEFT: dict[str, Said] = {
    "it does not read what it has asked for": [["SET", "k", b"x" * MIB], *[["GET", "k"]] * 200],
    "it waits": [["BLPOP", "nothing", 0]],
    "it waits, in other words": [["xReAd", "bLoCk", 0, "count", 1, "STREAMS", "nothing", "$"]],
    "it waits for a group": [
        ["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"],
        ["XREADGROUP", "GROUP", "g", "me", "BLOCK", 0, "STREAMS", "s", ">"],
    ],
    "it waits for replicas": [["SET", "k", "v"], ["WAIT", 3, 0]],
    "it watches": [["WATCH", "k"], ["MULTI"], ["GET", "k"]],
    "it is subscribed": [["SUBSCRIBE", "c"], ["PSUBSCRIBE", "*"]],
    "it has not said all": [["SET", "k"]],
}


@pytest.mark.parametrize("said", LEFT.values(), ids=LEFT.keys())
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_a_client_that_leaves_in_the_middle_disturbs_no_other(scene: Scene, said: Said, reset: bool) -> None:
    culprit = Connection(scene.proxy.port, receive_buffer=4096)
    culprit.send(*said)
    culprit.socket.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\nhalf")
    scene.go_on()
    culprit.reset() if reset else culprit.close()
    scene.go_on()
    scene.undisturbed("it left")


# --- what a server limits ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(kind: str, *options: str) -> Iterator[Scene]:
    with (
        servers_of(kind),
        Fleet(2, 0, options=options) as fleet,
        Proxy(fleet, timeouts=PATIENT) as proxy,
        scene_of(fleet, proxy) as scene,
    ):
        yield scene


BOTH = pytest.mark.parametrize("kind", ["the backend", "redis-server"])
WITHOUT = ["--user", "default", "on", "nopass", "~*", "&*", "+@all"]
TOO_LARGE = b"-ERR Protocol error: invalid bulk length\r\n"


@BOTH
@pytest.mark.parametrize("option", ["--proto-max-bulk-len", "--client-query-buffer-limit"])
def test_what_is_too_large_for_a_server_is_answered_as_by_it_and_not_sent(kind: str, option: str) -> None:
    with limited(kind, option, "2mb") as scene:
        key = scene.keys.one(0)
        for size in (2 * MIB + 1, 3 * MIB):
            for line in (
                ["SET", key, b"x" * size],
                ["GET", b"x" * size],
                ["EVAL", "return 1", 1, key, b"x" * size],
                ["PUBLISH", "c", b"x" * size],
                ["MGET", key, b"x" * size],
            ):
                assert scene.survives(packed(*line)).endswith(TOO_LARGE)
        assert scene.survives(packed("SET", key, b"x" * (2 * MIB - 70_000))).endswith(b"+OK\r\n")
        assert "+server-limit" in scene.proxy.log.read_text()


@BOTH
def test_a_large_request_waits_until_it_is_known_what_its_server_takes(kind: str) -> None:
    """It is the first that is said to that server in its database."""
    with limited(kind, "--proto-max-bulk-len", "1mb") as scene:
        key = scene.keys.one(1)
        lines = [packed("SELECT", 5), packed("SET", key, b"x" * (2 * MIB))]
        assert scene.survives(b"".join(lines), wanted=2).endswith(TOO_LARGE)
        lines = [packed("SELECT", 6), packed("SET", key, b"x" * (MIB - 10)), packed("STRLEN", key)]
        assert scene.survives(b"".join(lines), wanted=3).endswith(b"+OK\r\n+OK\r\n:1048566\r\n")


@BOTH
def test_a_block_that_is_too_large_for_a_server_is_refused_and_not_sent(kind: str) -> None:
    """Valkey counts what waits for EXEC in its query buffer."""
    with limited(kind, "--client-query-buffer-limit", "2mb") as scene:
        key = scene.keys.one(0)
        for value, count, wanted in ((b"x", 18, b"*18\r\n" + b"+OK\r\n" * 18), (b"y", 30, b"-EXECABORT ")):
            lines = [packed("MULTI"), *[packed("SET", key, value * 100_000)] * count, packed("EXEC")]
            said = scene.survives(b"".join(lines), wanted=len(lines))
            assert said.rpartition(b"+QUEUED\r\n")[2].startswith(wanted)
        assert scene.survives(packed("GET", key)).endswith(b"x\r\n")


@BOTH
def test_an_idle_connection_is_not_closed_by_the_timeout_of_a_server(kind: str) -> None:
    with limited(kind, "--timeout", "2") as scene:
        idle = [Connection(server.port) for server in scene.fleet.servers]
        for each in idle:
            assert each.ask("PING") == b"PONG"
        for each in idle:
            assert each.until_end() == b"", "the server has closed what was idle for so long"
            each.close()
        scene.undisturbed("nothing was said")
        scene.go_on()


@BOTH
def test_connections_of_the_proxy_are_not_closed_for_the_memory_of_all(kind: str) -> None:
    with limited(kind, "--maxmemory-clients", "4mb") as scene:
        key = scene.keys.one(0)
        lines = [packed("SET", key, b"x" * MIB)] + [packed("GET", key)] * 20
        assert scene.survives(b"".join(lines), wanted=21).count(b"x\r\n") == 20
        lines = [packed("SET", key, b"x" * (8 * MIB))] * 3
        assert scene.survives(b"".join(lines), wanted=3).endswith(b"+OK\r\n" * 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--client-output-buffer-limit", "normal 10mb 5mb 30"], "setting=client-output-buffer-limit"),
        (["--maxmemory-clients", "4mb", *WITHOUT, "-client|no-evict"], "setting=maxmemory-clients"),
        (["--proto-max-bulk-len", "1mb"], "setting=limits.bulk_bytes value=1048576"),
    ],
    ids=["output buffers", "memory of clients", "arguments"],
)
def test_a_limit_that_cannot_be_kept_is_told_to_the_operator(options: list[str], said: str) -> None:
    with limited("the backend", *options) as scene:
        assert said in scene.proxy.log.read_text()


def test_a_server_that_refuses_config_is_taken_for_one_without_limits() -> None:
    with limited("the backend", *WITHOUT, "-config", "-client|no-evict") as scene:
        key = scene.keys.one(0)
        assert scene.survives(packed("SET", key, b"x" * (8 * MIB))).endswith(b"+OK\r\n")
        assert "+server-limit" not in scene.proxy.log.read_text()
