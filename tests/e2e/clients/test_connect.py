"""What clients say first, and the replies without which they do not start.

The openings of redis-py, node_redis, node-redis, ioredis, redis-cli and redis-benchmark were recorded on the wire from
the versions named; those of coredis, valkey-glide, go-redis, Lettuce, Jedis, StackExchange.Redis and redis_exporter
follow their sources. A client waits for the replies to one list of commands before it sends the next.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Any

import hiredis
import pytest

from pyproxy.fleet import HOST, Proxy

OK = b"+OK\r\n"
SUBCOMMAND_UNKNOWN = b"-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n"
Check = Callable[[bytes, Any], bool]
Opening = list[list[tuple[str, bytes | Check]]]


def hello(raw: bytes, said: Any) -> bool:
    """A map that says proto 3 and what Lettuce reads of it; redis-py, coredis, glide and node-redis 6 ask for it."""
    wanted = {b"server": b"redis", b"proto": 3, b"mode": b"standalone", b"role": b"master", b"modules": []}
    return raw.startswith(b"%7\r\n") and wanted.items() <= said.items() and isinstance(said[b"id"], int)


def info(raw: bytes, said: Any) -> bool:
    """One text of lines that end in CRLF; node_redis and ioredis wait while it says anything but loading:0."""
    lines = said.split(b"\r\n")
    return raw[:1] in b"$=" and b"loading:0" in lines and any(each.startswith(b"redis_version:") for each in lines)


def role_master(raw: bytes, said: Any) -> bool:
    """valkey-glide finds no primary without it."""
    return raw[:1] in b"$=" and b"role:master" in said.split(b"\r\n")


def setting(name: bytes, value: bytes) -> bytes:
    """CONFIG GET of one setting, in RESP2."""
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(value), value)


def settings(raw: bytes, said: Any) -> bool:
    """Pairs of names and values; redis_exporter reads maxmemory and maxclients."""
    return raw[:1] == b"*" and {b"maxmemory", b"maxclients"} <= set(said[::2])


def every_command(raw: bytes, said: Any) -> bool:
    """Names and their documents, for the help and the hints of redis-cli."""
    documents = dict(zip(said[::2], said[1::2], strict=True))
    return {b"get", b"hset", b"zadd", b"xadd"} <= documents.keys() and b"summary" in documents[b"get"]


def refusal(raw: bytes, said: Any) -> bool:
    """Tolerated where it stands: the client goes on without."""
    return raw.startswith(b"-ERR command '") and b"' is not served by this proxy: " in raw


def subscribed(raw: bytes, said: Any) -> bool:
    return bool(said == [b"subscribe", b"__Booksleeve_MasterChanged", 1])


def unknown(raw: bytes, said: Any) -> bool:
    return raw.startswith(b"-ERR unknown command '")


def unknown_subcommand(raw: bytes, said: Any) -> bool:
    return raw.lower() == SUBCOMMAND_UNKNOWN.lower()


LIBRARY: list[tuple[str, bytes | Check]] = [
    ("CLIENT SETINFO LIB-NAME redis-py", OK),
    ("CLIENT SETINFO LIB-VER 8.1.0", OK),
]

OPENINGS: dict[str, Opening] = {
    "redis-py 8.1": [
        [("HELLO 3", hello)],
        [("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-fqdn", SUBCOMMAND_UNKNOWN)],
        [("CLIENT SETNAME web1", OK)],
        *([each] for each in LIBRARY),
        [("SELECT 5", OK)],
    ],
    "redis-py 8.1 with a password": [[("HELLO 3 AUTH default secret", hello)]],
    "redis-py 8.1 asyncio": [
        [("HELLO 3", hello)],
        [("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type internal-fqdn", SUBCOMMAND_UNKNOWN)],
        [*LIBRARY, ("SELECT 5", OK)],
    ],
    "redis-py 5, and 8 in RESP2": [[each] for each in LIBRARY],
    "node_redis 0.12.1": [[("info", info)], [("select 5", OK)]],
    "loop-server": [[("info", info)], [("config set notify-keyspace-events Ex", OK)]],
    "node-redis 4.7": [
        [("CLIENT SETINFO LIB-NAME node-redis", OK), ("CLIENT SETINFO LIB-VER 1.6.0", OK), ("SELECT 5", OK)]
    ],
    "node-redis 6.3": [
        [
            ("HELLO 3", hello),
            ("SELECT 5", OK),
            ("CLIENT SETINFO LIB-VER 6.3.1", OK),
            ("CLIENT SETINFO LIB-NAME node-redis", OK),
            ("CLIENT MAINT_NOTIFICATIONS ON moving-endpoint-type external-ip", SUBCOMMAND_UNKNOWN),
        ]
    ],
    "ioredis 5.11": [
        [("select 5", OK), ("client SETINFO LIB-NAME ioredis", OK), ("client SETINFO LIB-VER 5.11.1", OK)],
        [("info", info)],
    ],
    "ioredis 6.0": [
        [("hello 3", hello), ("client SETINFO LIB-VER 6.0.0", OK), ("client SETINFO LIB-NAME ioredis", OK)],
        [("info", info)],
    ],
    "coredis 6.9": [[("HELLO 3", hello)]],
    "valkey-glide 2.6": [
        [("HELLO 3", hello)],
        [("CLIENT SETINFO LIB-NAME GlidePy", OK), ("CLIENT SETINFO LIB-VER 2.6.0", OK)],
        [("INFO REPLICATION", role_master)],
    ],
    "go-redis 9": [
        [("hello 3 setname web1", hello)],
        [("select 5", OK)],
        [("client maint_notifications on moving-endpoint-type internal-ip", unknown_subcommand)],
        [("client setinfo lib-name go-redis(,go1.24)", OK), ("client setinfo lib-ver 9.0.0", OK)],
    ],
    "Lettuce": [
        [("HELLO 3 SETNAME web1", hello)],
        [("SELECT 5", OK), ("CLIENT SETINFO lib-name Lettuce", OK), ("CLIENT SETINFO lib-ver 7.0.0", OK)],
    ],
    "Jedis": [
        [
            ("SELECT 5", OK),
            ("CLIENT SETNAME web1", OK),
            ("CLIENT SETINFO LIB-NAME jedis", OK),
            ("CLIENT SETINFO LIB-VER 6.0.0", OK),
        ],
        [("PING", b"+PONG\r\n")],
    ],
    "StackExchange.Redis": [
        [
            ("CLIENT SETNAME web1", OK),
            ("CONFIG GET slave-read-only", setting(b"slave-read-only", b"yes")),
            ("CONFIG GET databases", setting(b"databases", b"16")),
            ("CONFIG GET timeout", setting(b"timeout", b"0")),
            ("INFO replication", role_master),
            ("CLUSTER NODES", refusal),
            ("SENTINEL MASTERS", unknown),
            ("ECHO 0123456789abcdef", b"$16\r\n0123456789abcdef\r\n"),
        ],
        [("SUBSCRIBE __Booksleeve_MasterChanged", subscribed)],
    ],
    "redis-cli on a terminal": [[("COMMAND DOCS", every_command)]],
    "redis-cli -3 -n 5": [[("SELECT 5", OK)], [("HELLO 3", hello)]],
    "redis-benchmark": [
        [("CONFIG GET save", setting(b"save", b"")), ("CONFIG GET appendonly", setting(b"appendonly", b"no"))]
    ],
    "redis_exporter": [
        [("CLIENT SETNAME redis_exporter", OK)],
        [("CONFIG GET *", settings)],
        [("INFO ALL", info)],
        [("LATENCY LATEST", refusal)],
        [("SLOWLOG LEN", refusal)],
    ],
}


class Connection:
    """A raw connection; replies come as their bytes and as what hiredis reads in them."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection((HOST, port), timeout=10)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.connection.makefile("rb")

    def say(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.connection.sendall(piece)

    def reply(self) -> tuple[bytes, Any]:
        nothing = object()
        reader, raw = hiredis.Reader(notEnoughData=nothing), bytearray()
        while (value := reader.gets()) is nothing:
            byte = self._stream.read(1)
            assert byte, f"closed after {bytes(raw)!r}"
            raw += byte
            reader.feed(byte)
        return bytes(raw), value

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.connection.close()


def encoded(words: str) -> bytes:
    """The command of these words, as every client encodes it."""
    argv = words.encode().split()
    return b"*%d\r\n" % len(argv) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in argv)


def in_one_piece(request: bytes) -> Iterable[bytes]:
    return [request]


def byte_by_byte(request: bytes) -> Iterable[bytes]:
    return (request[at : at + 1] for at in range(len(request)))


@pytest.mark.parametrize("cut", [in_one_piece, byte_by_byte])
@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_a_client_gets_what_it_needs_to_start(
    proxy10: Proxy, opening: Opening, cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    with Connection(proxy10.port) as conn:
        for commands in opening:
            conn.say(cut(b"".join(encoded(words) for words, _ in commands)))
            for words, expected in commands:
                raw, said = conn.reply()
                fits = raw == expected if isinstance(expected, bytes) else expected(raw, said)
                assert fits, f"{words} was answered by {raw[:200]!r}; expected {expected!r}"
        conn.say([encoded("PING")])
        assert conn.reply()[0] in (b"+PONG\r\n", b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")  # the latter once it is subscribed


@pytest.mark.parametrize("request_line", [b"PING\r\n", b"PING\n", b"ping\r\n"])
def test_an_inline_ping_is_answered_as_load_balancers_expect(proxy10: Proxy, request_line: bytes) -> None:
    with Connection(proxy10.port) as conn:
        conn.say([request_line])
        assert conn.reply()[0] == b"+PONG\r\n"


def test_the_protocol_asked_for_is_that_of_all_later_replies(proxy10: Proxy) -> None:
    with Connection(proxy10.port) as conn:
        conn.say([encoded("SADD connect x")])
        conn.reply()
        words = ["SMEMBERS connect", "HELLO 3", "SMEMBERS connect", "HELLO 2", "SMEMBERS connect"]
        conn.say([b"".join(map(encoded, words))])
        raw = [conn.reply()[0] for _ in range(5)]
        assert [raw[0], raw[2], raw[4]] == [b"*1\r\n$1\r\nx\r\n", b"~1\r\n$1\r\nx\r\n", b"*1\r\n$1\r\nx\r\n"]
