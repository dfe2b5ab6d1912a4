"""A small Redis: what the histories use of it, with replicas that copy late, and moods."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from protocol import request
from tests.simulation.ledger import Done, Ledger, Log
from tests.simulation.network import End

REFUSALS = {
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "MISCONF": b"-MISCONF Redis is configured to save RDB snapshots\r\n",
    "MASTERDOWN": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
}
READS = (b"GET", b"GETRANGE", b"MGET", b"EXISTS")
WRITES = (b"SET", b"APPEND", b"MSET")
NUMBERED = 10_000_000
"""GETRANGE key 0 (this + n) is the whole value, and says which read it is."""


@dataclass(frozen=True, slots=True)
class Value:
    value: bytes = b""
    log: Log = ()


def token_of(value: bytes) -> bytes:
    """c3.17xxxx; -> c3.17"""
    return value.rstrip(b";").rstrip(b"x")


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class Connection(End):
    """One connection to a server, as the server has it."""

    def __init__(self, server: "Server", window: int, number: int) -> None:
        super().__init__(window)
        self.server = server
        self.number = number
        self.proto = 2
        self.db = 0
        self.queue: list[list[bytes]] | None = None  # since MULTI
        self.spoiled = False
        self.watched: dict[tuple[int, bytes], Log] = {}
        self.waits: tuple[int, float, list[bytes]] | None = None  # WAIT: replicas, until when, argv
        self.reader = hiredis.Reader()
        self.commands: deque[list[bytes]] = deque()
        self.last = b""  # the name of what it has done last
        self.dropped = False  # what it has not read yet it never will

    @property
    def nil(self) -> bytes:
        return b"_\r\n" if self.proto == 3 else b"$-1\r\n"


class Server:
    """`now` says what the time is. `master`: whom it copies; None: it is a primary."""

    def __init__(self, name: str, shard: str, node: tuple[str, int], ledger: Ledger, now: Callable[[], float]) -> None:
        self.name = name
        self.shard = shard
        self.node = node
        self.ledger = ledger
        self.now = now
        self.alive = True
        self.stalled = False  # it takes bytes, as its kernel does, and does nothing
        self.unreachable = False  # who connects hears nothing
        self.refuses = ""  # a code of REFUSALS
        self.master: Server | None = None
        self.replicas: list[Server] = []
        self.epoch = 0
        self.data: dict[tuple[int, bytes], Value] = {}
        self.stream: list[tuple[tuple[int, bytes], Value]] = []  # since it is a primary
        self.copied = 0  # of its master's stream
        self.connections: list[Connection] = []
        self._count = 0

    # --- what becomes of it ---

    def connect(self, window: int) -> Connection:
        self._count += 1
        connection = Connection(self, window, self._count)
        self.connections.append(connection)
        return connection

    def kill(self) -> None:
        self.alive = False
        for connection in self.connections:
            connection.reset()
        self.connections.clear()

    def restart(self) -> None:
        """With all it had; everything else is forgotten."""
        self.alive, self.stalled, self.refuses, self.unreachable = True, False, "", False

    def follow(self, master: "Server") -> None:
        """A full copy of it, now."""
        if self.master is not None:
            self.master.replicas.remove(self)
        self.master = master
        master.replicas.append(self)
        self.data, self.stream, self.epoch = dict(master.data), [], master.epoch
        self.copied = len(master.stream)

    def promote(self) -> None:
        if self.master is not None:
            self.master.replicas.remove(self)
        self.master, self.stream = None, []
        self.epoch = self.ledger.epochs[self.shard] = self.ledger.epochs[self.shard] + 1
        self.ledger.kept[self.shard, self.epoch] = {token for value in self.data.values() for token in value.log}

    def copy(self, most: int) -> None:
        """A replica goes on through its master's stream."""
        master = self.master
        if master is None or not (self.alive and master.alive) or self.epoch != master.epoch:
            return
        for key, value in master.stream[self.copied : self.copied + most]:
            self.data[key] = value
            self.copied += 1

    @property
    def lag(self) -> int:
        """Writes it has not copied."""
        return len(self.master.stream) - self.copied if self.master is not None else 0

    # --- serving ---

    def serve(self, connection: Connection, most: int) -> int:
        """Carries out some of what has come -> how much that was."""
        if not self.alive or self.stalled or connection.dropped:
            return 0
        if connection.inbox:
            connection.reader.feed(connection.read())
            while (argv := connection.reader.gets()) is not False:
                connection.commands.append([word if isinstance(word, bytes) else b"" for word in argv])
        done = 0
        while done < most and (connection.waits or connection.commands):
            if connection.waits is not None:
                if not self._wait_is_over(connection):
                    break
            else:
                argv = connection.commands.popleft()
                frame = self._run(connection, argv)
                connection.last = argv[0]
                self.ledger.note(f"{self.name} on {connection.number}", (*(each[:20] for each in argv), frame[:60]))
                connection.write(frame)
            done += 1
        if connection.is_over and not connection.commands and connection in self.connections:
            self.connections.remove(connection)
        return done

    def _wait_is_over(self, connection: Connection) -> bool:
        assert connection.waits is not None
        wanted, until, argv = connection.waits
        have = sum(replica.lag == 0 and replica.alive for replica in self.replicas)
        if have < wanted and self.now() < until:
            return False
        connection.waits = None
        aof = argv[0].upper() == b"WAITAOF"
        connection.write(b"*2\r\n:1\r\n:%d\r\n" % have if aof else b":%d\r\n" % have)
        return True

    def _run(self, connection: Connection, argv: list[bytes]) -> bytes:
        name = argv[0].upper()
        if connection.queue is not None and name not in (b"EXEC", b"DISCARD", b"MULTI", b"WATCH"):
            refusal = self._refusal(name)
            connection.spoiled |= bool(refusal)
            if not refusal:
                connection.queue.append(argv)
            return refusal or b"+QUEUED\r\n"
        handler = getattr(self, f"_{name.decode().lower()}", None)
        if handler is None:
            return b"-ERR unknown command '%b'\r\n" % name
        return self._refusal(name) or bytes(handler(connection, argv[1:]))

    def _refusal(self, name: bytes) -> bytes:
        if name in WRITES and self.master is not None:
            return REFUSALS["READONLY"]
        of_all = self.refuses in ("LOADING", "MASTERDOWN")
        if self.refuses and (name in WRITES or (of_all and name in READS)):
            return REFUSALS[self.refuses]
        return b""

    # --- commands ---

    def _hello(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        if argv:
            connection.proto = int(argv[0])
        return b"%1\r\n+proto\r\n:3\r\n" if connection.proto == 3 else b"*2\r\n+proto\r\n:2\r\n"

    def _select(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        connection.db = int(argv[0])
        return b"+OK\r\n"

    def _echo(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return bulk(argv[0])

    def _ping(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b"+PONG\r\n"

    def _config(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b"%0\r\n" if connection.proto == 3 else b"*0\r\n"

    def _spublish(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b":0\r\n"

    def _client(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b":%d\r\n" % connection.number if argv[0].upper() == b"ID" else b":0\r\n"

    def _get(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        found = self.data.get((connection.db, argv[0]))
        return bulk(found.value) if found else connection.nil

    def _getrange(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        found = self.data.get((connection.db, argv[0]), Value())
        frame = bulk(found.value)
        self.ledger.read.setdefault(int(argv[2]) - NUMBERED, []).append(self._done(frame, found.log))
        return frame

    def _mget(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b"*%d\r\n" % len(argv) + b"".join(self._get(connection, [key]) for key in argv)

    def _exists(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return b":%d\r\n" % sum((connection.db, key) in self.data for key in argv)

    def _set(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        return self._put(connection, argv[0], argv[1], argv[1], b"+OK\r\n")

    def _append(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        value = self.data.get((connection.db, argv[0]), Value()).value + argv[1]
        return self._put(connection, argv[0], argv[1], value, b":%d\r\n" % len(value))

    def _mset(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        for key, value in zip(argv[::2], argv[1::2], strict=True):
            self._put(connection, key, value, value, b"+OK\r\n")
        return b"+OK\r\n"

    def _put(self, connection: Connection, key: bytes, word: bytes, value: bytes, frame: bytes) -> bytes:
        token, place = token_of(word), (connection.db, key)
        new = Value(value, (*self.data.get(place, Value()).log, token))
        self.data[place] = new
        self.stream.append((place, new))
        self.ledger.wrote.setdefault(token, []).append(self._done(frame, new.log))
        return frame

    def _done(self, frame: bytes, log: Log) -> Done:
        self.ledger.count += 1
        return Done(self.name, self.epoch, self.master is None, frame, log, self.ledger.count)

    def _multi(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        connection.queue, connection.spoiled = [], False
        return b"+OK\r\n"

    def _exec(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        queue, connection.queue = connection.queue or [], None
        watched, connection.watched = connection.watched, {}
        if connection.spoiled or any(self._refusal(each[0].upper()) for each in queue):
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        if any(self.data.get(place, Value()).log != log for place, log in watched.items()):
            return b"_\r\n" if connection.proto == 3 else b"*-1\r\n"
        answers = [self._run(connection, each) for each in queue]
        return b"*%d\r\n" % len(answers) + b"".join(answers)

    def _watch(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        for key in argv:
            place = connection.db, key
            connection.watched.setdefault(place, self.data.get(place, Value()).log)
        return b"+OK\r\n"

    def _wait(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        connection.waits = int(argv[0]), self.now() + int(argv[1]) / 1000, [b"WAIT", *argv]
        return b""

    def _waitaof(self, connection: Connection, argv: Sequence[bytes]) -> bytes:
        connection.waits = int(argv[1]), self.now() + int(argv[2]) / 1000, [b"WAITAOF", *argv]
        return b""


def frames(*commands: Any) -> bytes:
    """Requests as bytes."""
    return b"".join(request.encode(argv) for argv in commands)
