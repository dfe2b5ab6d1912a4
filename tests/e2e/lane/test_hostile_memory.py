"""What servers say and do not end costs no more memory than the budget; who asked gets an error that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyproxy.fleet import HOST, Fleet, wait_until
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, PATIENT, Connection, Keys, error, wait_for_line
from tests.hostile_server import HostileServer

MIB = 1 << 20
BUDGET = 16 * MIB
ROOM = 24 * MIB
"""What a worker may take beyond the budget: what it reads at a time, copies, what the allocator keeps."""

CONNECTIONS = 4
"""To each server: two protocols, two databases."""

BULK = b"$%d\r\n" % (15 * MIB), b"x" * (14 * MIB), b"x" * MIB + b"\r\n"

ENDLESS = {
    "a bulk": (BULK[0] + BULK[1], BULK[2]),
    "an array of small ones": (b"*%d\r\n" % (15 * 1024) + (b"$1016\r\n" + b"x" * 1016 + b"\r\n") * 14336,
                               (b"$1016\r\n" + b"x" * 1016 + b"\r\n") * 1024),
    "an array of a large one": (b"*2\r\n" + BULK[0] + BULK[1], BULK[2] + b":1\r\n"),
    "an array in an array, of a large one": (b"*1\r\n*2\r\n:1\r\n" + BULK[0] + BULK[1], BULK[2]),
}  # fmt: skip


def peak(pid: int) -> int:
    """Bytes that a process had in memory at most."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


@contextmanager
def lied_to(fleet: Fleet, says: tuple[bytes, ...]) -> Iterator[tuple[BareWorker, list[HostileServer]]]:
    with ExitStack() as open_:
        servers = [open_.enter_context(HostileServer({b"GET": says})) for _ in fleet.shards]
        nodes = {place: Node(HOST, server.port) for place, server in enumerate(servers)}
        limits = {"memory_bytes": BUDGET, "bulk_bytes": 8 * MIB}
        yield open_.enter_context(BareWorker(fleet, nodes, "", timeouts=PATIENT, limits=limits)), servers


def asking(worker: BareWorker, clients: ExitStack) -> Iterator[Connection]:
    """A client for each connection to each server: they have asked, and nothing is answered yet."""
    keys = Keys(worker)
    for number in range(CONNECTIONS):
        for shard in range(3):
            conn = clients.enter_context(Connection(worker.port))
            conn.ask("HELLO", 2 + number % 2)
            conn.ask("SELECT", number // 2)
            conn.send(("GET", keys.one(shard)), ("SET", keys.one(shard), "x"))
            yield conn


@pytest.mark.parametrize("says", ENDLESS.values(), ids=ENDLESS.keys())
def test_replies_that_do_not_end_are_kept_within_the_budget(fleet: Fleet, says: tuple[bytes, ...]) -> None:
    with lied_to(fleet, says) as (worker, servers), ExitStack() as clients:
        with Connection(worker.port) as conn:
            assert conn.ask("PING") == b"PONG"
        pid, wanted = worker.pid, CONNECTIONS * len(says[0])
        before = peak(pid)
        talks = list(asking(worker, clients))
        for server in servers:
            wait_until("all to be said", lambda: server.said == wanted, lambda: f"{server.said}", PATIENCE_S)  # noqa: B023
        wait_for_line(worker, r"\+reply-discarded shard=s\d node=\S+ bytes=\d+ limit=16777216 ")
        for server in servers:
            server.go_on(CONNECTIONS)
        answers = [conn.read() for conn in talks]
        assert peak(pid) - before < BUDGET + ROOM, "with 168 MiB of answers"
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        assert {error(answer) for answer in refused} == {
            f"ERR the answer is beyond the memory budget of the proxy (limits.memory_bytes, {BUDGET}), alone or with "
            "others that came at the same time; it was done all the same"
        }
        assert [conn.read() for conn in talks] == [b"OK"] * len(talks)
        log = worker.log.read_text()
        assert "+link-lost" not in log and "+bug" not in log


def test_a_line_that_does_not_end_ends_its_connection_and_is_not_asked_for_again(fleet: Fleet) -> None:
    with lied_to(fleet, (b"+" + b"x" * (14 * MIB),)) as (worker, servers), ExitStack() as clients:
        talks = list(asking(worker, clients))
        wait_for_line(worker, r"\+link-lost shard=s\d .*beyond the memory budget of the proxy \(limits.memory_bytes\)")
        del talks
        asked = sum(len(re.findall(rb"GET\r\n\$\d\r\nk", server.heard)) for server in servers)
        assert asked <= CONNECTIONS * len(servers)
        assert "+bug" not in worker.log.read_text()


@pytest.mark.parametrize("cut", [0, 1, 2], ids=["in one piece", "before its last byte", "before its end"])
def test_a_bulk_that_is_thrown_away_ends_where_its_header_says_or_its_connection_does(fleet: Fleet, cut: int) -> None:
    """Else what follows would be the answer to somebody else's request."""
    said = b"$%d\r\n" % (20 * MIB) + b"x" * (20 * MIB) + b"\rX"
    with lied_to(fleet, (said[: len(said) - cut], said[len(said) - cut :])) as (worker, servers):
        with Connection(worker.port) as conn:
            servers[0].go_on()
            answer = error(conn.ask("GET", Keys(worker).one(0)))
            assert answer.startswith("TRYAGAIN shard s0 (")
            assert "broke the protocol" in answer
        assert "+bug" not in worker.log.read_text()
