"""A client of the proxy: what it asks, in what it is answered, and how it behaves meanwhile.

Each write carries a token that no other has, each read a number; so an answer that belongs to somebody else is seen.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from protocol import request, scan
from tests.simulation.network import End
from tests.simulation.server import NUMBERED

FOR_EVER = float("inf")


@dataclass(slots=True)
class Write:
    token: bytes
    shard: str
    place: tuple[int, bytes]  # database and key
    asked: "Asked"


@dataclass(slots=True)
class Read:
    number: int
    shard: str
    place: tuple[int, bytes]


@dataclass(slots=True)
class Asked:
    """One request. `shape`: how its answer is made of its parts; see oracle.py."""

    index: int
    name: str
    shape: str
    frame: bytes
    expects: bytes = b""
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    parts: list[Write | Read] = field(default_factory=list)  # in their order
    end: int = 0  # how much the client had sent, with this
    came_at: float = FOR_EVER  # when the proxy had all of it
    reply: bytes | None = None
    verdict: str = ""  # done, no, uncertain; empty: not answered


class Client:
    """`keys`: shard -> its keys. Whoever reads its replies has them judged; see `World.read`."""

    def __init__(self, number: int, end: End, keys: dict[str, list[bytes]], now: Callable[[], float]) -> None:
        self.number = number
        self.end = end
        self.protocol: Any = None  # the proxy's
        self.keys = keys
        self.now = now
        self.db, self.proto = 0, 2
        self.asked: list[Asked] = []
        self.waiting: deque[Asked] = deque()
        self.arriving: deque[Asked] = deque()
        self.writes: dict[tuple[int, bytes], list[Write]] = {}
        self.missed: dict[bytes, str] = {}  # token of an unresolved write -> the server of a read that did not see it
        self.forgiven: dict[str, int] = {}  # shard -> the WAIT that has said that its writes may be gone
        self.is_reading = True
        self.since = 0.0  # when it began to read, or was answered last
        self.left = ""  # how: fin, reset
        self.may_be_cut_off = False  # it did not read when it closed its half, and is not waited for long
        self.closed = False  # by the proxy
        self.sent = 0
        self._tokens = 0
        self._replies = scan.Replies(True)

    def __str__(self) -> str:
        return f"c{self.number}"

    @property
    def is_open(self) -> bool:
        return not self.left and not self.closed

    @property
    def is_there(self) -> bool:
        """To be answered; it may have closed its half."""
        return self.left != "reset" and not self.closed

    # --- asking ---

    def ask(
        self, name: str, shape: str, *argv: bytes, parts: Iterable[Write | Read] = (), expects: bytes = b""
    ) -> Asked:
        """One request more, which stands in its outgoing bytes then."""
        asked = Asked(len(self.asked), name, shape, request.encode(argv), expects)
        asked.parts = list(parts)
        for part in asked.parts:
            if isinstance(part, Write):
                part.asked = asked
                asked.writes.append(part)
                self.writes.setdefault(part.place, []).append(part)
            else:
                asked.reads.append(part)
        self.end.write(asked.frame)
        self.sent += len(asked.frame)
        asked.end = self.sent
        self.asked.append(asked)
        self.waiting.append(asked)
        self.arriving.append(asked)
        return asked

    def arrived(self) -> None:
        """Some of what it sent was read by the proxy."""
        there = self.sent - len(self.end.outbox)
        while self.arriving and self.arriving[0].end <= there:
            self.arriving.popleft().came_at = self.now()

    def _write(self, shard: str, key: bytes) -> Write:
        self._tokens += 1
        return Write(b"%b.%d" % (str(self).encode(), self._tokens), shard, (self.db, key), None)  # type: ignore[arg-type]

    def _read(self, shard: str, key: bytes) -> Read:
        self._tokens += 1
        return Read(self.number * 10000 + self._tokens, shard, (self.db, key))

    def set(self, shard: str, key: bytes, padding: int = 0) -> Asked:
        part = self._write(shard, key)
        return self.ask("set", "one", b"SET", key, part.token + b"x" * padding + b";", parts=[part])

    def append(self, shard: str, key: bytes) -> Asked:
        part = self._write(shard, key)
        return self.ask("append", "one", b"APPEND", key, part.token + b";", parts=[part])

    def get(self, shard: str, key: bytes) -> Asked:
        """The whole value, and the request says which read it is."""
        part = self._read(shard, key)
        return self.ask("get", "one", b"GETRANGE", key, b"0", b"%d" % (NUMBERED + part.number), parts=[part])

    def mset(self, keys: Iterable[tuple[str, bytes]]) -> Asked:
        parts = [self._write(shard, key) for shard, key in keys]
        words = [word for part in parts for word in (part.place[1], part.token + b";")]
        return self.ask("mset", "all", b"MSET", *words, parts=parts)

    def mget(self, keys: Iterable[tuple[str, bytes]]) -> Asked:
        return self.ask("mget", "values", b"MGET", *(key for _, key in keys))

    def block(self, shard: str, keys: list[bytes], watch: bool = False) -> Asked:
        """MULTI ... EXEC; with `watch` behind a WATCH, and then EXEC may be nil."""
        if watch:
            self.ask("watch", "ok or no", b"WATCH", keys[0])
        self.ask("multi", "exact", b"MULTI", expects=b"+OK\r\n")
        parts: list[Write | Read] = []
        for key in keys:
            write, read = self._write(shard, key), self._read(shard, key)
            parts += [write, read]
            self.ask("queued", "queued", b"APPEND", key, write.token + b";")
            self.ask("queued", "queued", b"GETRANGE", key, b"0", b"%d" % (NUMBERED + read.number))
        return self.ask("exec", "block or nil" if watch else "block", b"EXEC", parts=parts)

    def select(self, db: int) -> Asked:
        asked = self.ask("select", "exact", b"SELECT", b"%d" % db, expects=b"+OK\r\n")
        self.db = db
        return asked

    def hello(self, proto: int) -> Asked:
        self.proto = proto
        return self.ask("hello", "map", b"HELLO", b"%d" % proto)

    def wait(self, replicas: int, timeout_ms: int, aof: bool = False) -> Asked:
        argv = [b"WAITAOF", b"0"] if aof else [b"WAIT"]
        return self.ask("wait", "count", *argv, b"%d" % replicas, b"%d" % timeout_ms)

    def ping(self) -> Asked:
        self._tokens += 1
        word = b"p%d.%d" % (self.number, self._tokens)
        return self.ask("ping", "exact", b"PING", word, expects=b"$%d\r\n%b\r\n" % (len(word), word))

    def draw(self, rng: Random, waits: int = 1) -> None:
        """Something, of all that it knows; `waits`: how often what takes more than one question."""
        shard = rng.choice(list(self.keys))
        key = rng.choice(self.keys[shard])
        pairs = [(name, rng.choice(keys)) for name, keys in self.keys.items()]
        match rng.choices(range(12), (10, 10, 22, 5, 5, 4, 2 * waits, 2, 2, 2 * waits, 4, 2))[0]:
            case 0:
                self.set(shard, key)
            case 1:
                self.append(shard, key)
            case 2:
                self.get(shard, key)
            case 3:
                self.mset(pairs)
            case 4:
                self.mget(pairs)
            case 5:
                self.block(shard, rng.sample(self.keys[shard], rng.randint(1, 2)))
            case 6:
                self.block(shard, [key], watch=True)
            case 7:
                self.select(rng.randint(0, 1))
            case 8:
                self.hello(rng.choice((2, 3)))
            case 9:
                self.wait(rng.randint(0, 1), rng.choice((50, 300)), aof=rng.random() < 0.3)
            case 10:
                self.set(shard, key, rng.choices((100, 3000, 16500, 40000, 300_000), (3, 3, 3, 2, 1))[0])
            case 11:
                self.ping()

    # --- being answered ---

    def read(self, most: int = 1 << 30) -> list[bytes]:
        """Takes what is there -> whole replies."""
        data = self.end.read(most)
        frames = self._replies.feed(data) if data else []
        if self.end.saw_reset or (self.end.saw_fin and not self.end.inbox):
            self.closed = True
        return list(frames)
