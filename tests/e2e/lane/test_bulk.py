"""Large values beside small ones: what takes the wire long has a connection of its own, and every client its order."""

import contextlib
import random
import re
from collections.abc import Callable, Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy, wait_until
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, of_a_worker, proxy_info, wait_for_info
from tests.faults import Hop, Way

SHARD = 1
SIZE = 8 << 20
ITEM = b"x" * 100_000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=0) as fleet:
        yield fleet


def the_nth(number: int) -> Callable[[bytes], bool]:
    """Of a worker's connections that one, from 1."""
    seen = [0]

    def is_it(first: bytes) -> bool:
        seen[0] += of_a_worker(first)
        return of_a_worker(first) and seen[0] == number

    return is_it


def is_served(port: int, key: str) -> bool:
    """Whether a new client gets its answers while the others wait for theirs."""
    with Connection(port) as conn:
        conn.socket.settimeout(0.5)
        conn.send(("SET", key, "v"), ("GET", key), ("MGET", key, key))
        try:
            return conn.socket.recv(65536) != b"" and conn.ask("PING") == b"PONG"
        except (TimeoutError, AssertionError):
            return False


@contextlib.contextmanager
def behind_a_hop(fleet: Fleet, number: int) -> Iterator[tuple[Hop, BareWorker, Connection]]:
    """A worker whose connection of this number to the shard goes through a hop, and a client of it."""
    with (
        Hop(fleet.shards[SHARD].primary.port, the_nth(number)) as hop,
        BareWorker(fleet, {SHARD: Node(HOST, hop.port)}, timeouts=PATIENT) as worker,
        Connection(worker.port) as conn,
    ):
        yield hop, worker, conn


@pytest.mark.parametrize("kind", ["value", "array"])
def test_small_requests_do_not_wait_while_a_large_reply_comes(fleet: Fleet, kind: str) -> None:
    """The connection that it comes on stands still in the middle of it."""
    with behind_a_hop(fleet, 1) as (hop, worker, asking):
        large, small = Keys(worker).on(SHARD, 2, kind)
        items = SIZE // len(ITEM)
        for _ in range(items):
            asking.send(("APPEND", large, ITEM) if kind == "value" else ("RPUSH", large, ITEM))
        asking.reads(items)
        hop.let(SIZE // 2, Way.REPLIES)
        asking.send(("GET", large) if kind == "value" else ("LRANGE", large, 0, -1))
        wait_until("others to be served", lambda: is_served(worker.port, small), lambda: "", PATIENCE_S)
        hop.heal()
        assert asking.read() == (ITEM * items if kind == "value" else [ITEM] * items)
        assert asking.ask("DEL", large, small) == 2


def test_small_requests_do_not_wait_while_a_large_request_leaves(fleet: Fleet) -> None:
    """What is too large for its kernel's buffers leaves on the second connection, which stands still."""
    with behind_a_hop(fleet, 2) as (hop, worker, asking):
        large, small = Keys(worker).on(SHARD, 2, "sent")
        hop.let(SIZE // 2, Way.REQUESTS)
        asking.send(("SET", large, b"x" * 3 * SIZE))
        wait_until("it to be in flight", lambda: worker.count("inflight") == 1, lambda: "", PATIENCE_S)
        assert is_served(worker.port, small)
        hop.heal()
        assert asking.read() == b"OK"
        assert asking.ask("STRLEN", large) == 3 * SIZE
        assert asking.ask("DEL", large, small) == 2


class Model:
    """What one client's commands do to a few keys."""

    def __init__(self, names: list[str], draw: random.Random) -> None:
        self._names = names
        self._draw = draw
        self._values: dict[str, bytes] = {}

    def command(self, number: int) -> tuple[tuple[str | bytes, ...], object]:
        """One that is drawn, and its answer."""
        name = self._draw.choice(self._names)
        value = b"%d." % number * self._draw.choice([1, 10, 1000, 1 << 19])
        match self._draw.randrange(5):
            case 0:
                self._values[name] = value
                return ("SET", name, value), b"OK"
            case 1:
                self._values[name] = self._values.get(name, b"") + value[:2000]
                return ("APPEND", name, value[:2000]), len(self._values[name])
            case 2:
                return ("DEL", name), int(self._values.pop(name, None) is not None)
            case 3:
                return ("MGET", *self._names), [self._values.get(each) for each in self._names]
            case _:
                return ("GET", name), self._values.get(name)


@pytest.mark.parametrize("seed", range(6))
def test_each_client_sees_its_own_commands_in_their_order(fleet: Fleet, seed: int) -> None:
    """Large and small ones, in pipelines, on few keys, and one of the two connections is slow."""
    draw = random.Random(seed)
    with behind_a_hop(fleet, 1 + seed % 2) as (hop, worker, conn):
        names = [*Keys(worker).on(SHARD, 2, f"order{seed}:"), Keys(worker).one(0)]
        hop.delay(0.03)
        model = Model(names, draw)
        for _ in range(15):
            drawn = [model.command(number) for number in range(draw.randint(1, 8))]
            conn.send(*[command for command, _ in drawn])
            assert conn.reads(len(drawn)) == [answer for _, answer in drawn]
        hop.heal()
        conn.ask("DEL", *names)


@pytest.mark.parametrize("kind", ["value", "array", "element", "transaction"])
def test_an_answer_beyond_the_memory_budget_is_an_error_that_says_so(fleet: Fleet, kind: str) -> None:
    """It is thrown away as it comes; others on the same connection get theirs, and nobody is closed."""
    limits = {"memory_bytes": 4 << 20, "bulk_bytes": 1 << 20}
    with (
        Proxy(fleet, timeouts=PATIENT, limits=limits) as proxy,
        Connection(proxy.port) as asking,
        Connection(proxy.port) as other,
    ):
        large, small = Keys(proxy).on(SHARD, 2, f"beyond-{kind}")
        server = fleet.shards[SHARD].primary
        if kind in ("value", "transaction"):
            server.ask("SET", large, b"x" * (9 << 20))
        else:
            server.ask("RPUSH", large, *([ITEM] * 90 if kind == "array" else [b"x" * (9 << 20), "y"]))
        get = ("GET", large) if kind in ("value", "transaction") else ("LRANGE", large, 0, -1)
        said = (
            "ERR the answer is beyond the memory budget of the proxy (limits.memory_bytes, 4194304), alone or with "
            "others that came at the same time; it was done all the same"
        )
        for _ in range(2):
            other.send(("SET", small, "v"))
            asking.send(*([("MULTI",), get, ("EXEC",)] if kind == "transaction" else [get]), ("GET", small))
            other.send(("GET", small))
            replies = asking.reads(4 if kind == "transaction" else 2)
            assert error(replies[-2]) == said
            assert replies[-1] in (b"v", None)
            assert other.reads(2) == [b"OK", b"v"]
        assert proxy_info(other)["shed"] == "0"
        assert other.ask("DEL", large, small) == 2


VALUE = b"x" * 1_000_000
SEVERAL: dict[str, list[list[str]]] = {
    "MGET": [["MGET"]],
    "MGET in a transaction": [["MULTI"], ["MGET"], ["EXEC"]],
    "a transaction that writes": [["MULTI"], ["GETSET"], ["EXEC"]],
}


@pytest.mark.parametrize("commands", SEVERAL.values(), ids=SEVERAL.keys())
@pytest.mark.parametrize("budget", [4 << 20, 12 << 20, 18 << 20], ids=["part by part", "with all parts", "as one"])
def test_an_answer_of_several_shards_beyond_the_memory_budget_is_an_error_and_nobody_is_closed(
    fleet10: Fleet, budget: int, commands: list[list[str]]
) -> None:
    """Ten shards say a megabyte each. What they said, and what is made of it, are there at the same time."""
    limits = {"memory_bytes": budget, "bulk_bytes": 1 << 20}
    with (
        Proxy(fleet10, timeouts=PATIENT, limits=limits, transactions="split") as proxy,
        Connection(proxy.port) as asking,
        Connection(proxy.port) as other,
    ):
        keys = Keys(proxy)
        names = [keys.one(shard, "several") for shard in range(10)]
        for _ in range(5):
            for name in names:
                assert other.ask("SET", name, VALUE) == b"OK"
            for command in commands:
                match command:
                    case ["MGET"]:
                        asking.send(["MGET", *names])
                    case ["GETSET"]:
                        asking.send(*(["GETSET", name, "v"] for name in names))
                    case _:
                        asking.send(command)
            asking.send(["ECHO", "after"])
            replies = []
            while (reply := asking.read()) != b"after":
                replies.append(reply)
            assert re.fullmatch(
                r"ERR (shard s\d: )?the answer is beyond the memory budget of the proxy \(limits.memory_bytes, "
                rf"{budget}\), alone or with others that came at the same time; it was done all the same",
                error(replies[-1]),
            )
            assert other.ask("GET", names[0]) == (b"v" if ["GETSET"] in commands else VALUE)
            assert proxy_info(other)["shed"] == "0"
        assert other.ask("DEL", *names) == 10
        wait_for_info(other, "nothing to be buffered", lambda info: info["buffered_bytes"] == "0")
