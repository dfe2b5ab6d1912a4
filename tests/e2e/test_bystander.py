"""Nothing that one client sends disturbs another that shares its connections to the servers.

A culprit says something; beside it bystanders, in RESP2 and RESP3, go on with what they do on all shards. None of them
may see an error or an answer that is not its own, and each connection that the proxy had to its servers is still there.
"""

import contextlib
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import pytest

from protocol.request import encode
from protocol.scan import ProtocolError, Replies
from protocol.table import TABLE
from pyproxy.fleet import HOST, VARIABLE, Fleet, Proxy, find_backend
from tests.e2e.rig import PATIENCE_S, PATIENT, Keys, Talk
from tests.e2e.twin.examples import ALONE, EXAMPLES, FAILING, Example

LONG = 70_000
"""More than what a line of RESP had to fit into once: 64 KiB."""


@dataclass
class Bystander:
    """A client whose answers are all known beforehand."""

    talk: Talk
    keys: Sequence[str]
    counted: int = 0

    def begin(self, proto: int) -> Self:
        self.talk.ask("HELLO", proto)
        self.talk.ask("DEL", *self.keys)
        return self

    def goes_on(self) -> None:
        """A write and a read on each shard, one behind the other."""
        self.talk.send(*[(name, key) for key in self.keys for name in ("INCR", "GET")])
        self.counted += 1
        expected = [each for _ in self.keys for each in (self.counted, b"%d" % self.counted)]
        assert self.talk.reads(len(expected)) == expected


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
            keys = [f"{key}:{proto}" for key in mine]
            self.bystanders.append(Bystander(Talk(self.proxy.port), keys).begin(proto))
        self.go_on()
        self.shared = self.connections()

    def go_on(self) -> None:
        for each in self.bystanders:
            each.goes_on()

    def connections(self) -> list[set[bytes]]:
        """The ids of the clients of each server."""
        found = []
        for server in self.fleet.servers:
            lines = server.ask("CLIENT", "LIST")
            assert isinstance(lines, bytes)
            found.append({line.split()[0] for line in lines.splitlines() if b"cmd=client|list" not in line})
        return found

    def survives(self, sent: bytes, *, wanted: int = 1, proto: int = 2) -> bytes:
        """What the culprit is answered; whatever it was, the others are well."""
        said = exchange(self.proxy.port, encode([b"HELLO", b"%d" % proto]) + sent, 1 + wanted)
        self.go_on()
        gone = [before - now for before, now in zip(self.shared, self.connections(), strict=True)]
        assert gone == [set(), set()], f"connections that all clients share were closed; the culprit got {said[:200]!r}"
        return said


def exchange(port: int, sent: bytes, wanted: int) -> bytes:
    """So many replies, or what came before the connection was closed."""
    replies, said, count = Replies(True, 1 << 28), b"", 0
    with socket.create_connection((HOST, port), PATIENCE_S) as connection:
        connection.sendall(sent)
        while count < wanted and (more := connection.recv(1 << 20)):
            said += more
            with contextlib.suppress(ProtocolError):    # a push
                count += len(replies.feed(more.replace(b"\n>", b"\n*")))
    return said


@contextlib.contextmanager
def scene_of(fleet: Fleet, proxy: Proxy) -> Iterator[Scene]:
    scene = Scene(fleet, proxy, Keys(proxy))
    try:
        scene.prepare()
        yield scene
    finally:
        for each in scene.bystanders:
            each.talk.close()


@contextlib.contextmanager
def servers_of(kind: str) -> Iterator[None]:
    """The servers that are started within the block are of this kind."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "redis-server":
            binary = shutil.which("redis-server")
            if binary is None or binary == find_backend().path:
                pytest.skip("no second server on this machine: install redis-server to compare with it, too")
            patch.setenv(VARIABLE, binary)
        yield


@pytest.fixture(scope="module", params=["the backend", "redis-server"])
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
ENDING = {"quit", "subscribe", "psubscribe", "ssubscribe", "client|reply", "reset", "monitor", "unsubscribe",
          "punsubscribe", "sunsubscribe", "flushall", "flushdb"}
WAITING = {name.decode() for name, command in TABLE.items() if command.may_wait} | {"wait", "waitaof"}


@pytest.mark.parametrize("name", sorted({example.name for example in CALLS} - ENDING - WAITING))
def test_no_argument_of_any_command_disturbs_others(scene: Scene, name: str) -> None:
    for word in WORDS.values():
        lines = [line for example in CALLS if example.name == name for line in with_word(example, word)]
        scene.survives(b"".join(lines), wanted=len(lines), proto=3)
