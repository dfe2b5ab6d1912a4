"""A connection that is gone is gone: nothing of it waits for the garbage collector, which seldom looks at everything.

With TLS each has buffers of half a megabyte: 400 losses left 200 MB.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from protocol import table
from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.fleet import Fleet, Table
from pyproxy.metrics import Page
from pyproxy.shard_map import Node
from pyproxy.worker.lane.lane import Backend, Lane
from pyproxy.worker.lane.outcome import PLACED
from pyproxy.worker.shard.link import Link
from tests.certificates import Authority
from tests.faults import Hop
from tests.waiting import until

TIMES = 10
HEAVY = {"Wire", "SSLProtocol", "SSLObject", "MemoryBIO", "TCPTransport", "Handshake"}


class Lost:
    """A link in this process, whose connections are made and lost."""

    def __init__(self, config: Config, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        lane = Lane(loop, lambda *_: PLACED, Page.create(1).row(0), config, 0, 1)
        lane.set_table(table.TABLE)
        node, access = Node("127.0.0.1", port), Access(config.backend)
        self.link = Link(lane, 0, "s0", node, config.timeouts, access, self._spawn, lambda *_: None)
        lane.set_shards([self.link], [0] * 16384)
        self.backend: Backend = self.link.backend(2, 0)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connected(self) -> None:
        if not self.backend.is_open and self.link.connections == 0 and not self._tasks:
            self.link.connect(self.backend)
        await until("a connection", lambda: self.backend.is_open, lambda: self.link)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet


@pytest.mark.parametrize("loss", ["by us", "by FIN", "by RST"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_lost_connection_leaves_nothing_to_the_garbage_collector(
    fleet: Fleet, tmp_path: Path, tls: bool, loss: str
) -> None:
    authority = Authority(tmp_path)
    backend: Table = {"tls": True, "tls_ca": str(authority.file)} if tls else {}
    timeouts: Table = {"reconnect_min_s": 0.01, "reconnect_max_s": 0.02}
    config = Config.parse(fleet.config("127.0.0.1:0", 1, timeouts=timeouts, backend=backend).encode())

    async def lose(hop: Hop) -> None:
        lost = Lost(config, hop.port)
        await lost.connected()
        before = heavy()
        for _ in range(TIMES):
            if loss == "by us":
                assert lost.backend.wire is not None
                lost.backend.wire.drop("lost")
            else:
                hop.cut(reset=loss == "by RST")
                await until("its loss", lambda: lost.backend.wire is None, lambda: lost.link)
            await lost.connected()
        await until("nothing to be left of those", lambda: not heavy() - before, lambda: heavy() - before)
        lost.link.close()

    with Hop(fleet.shards[0].primary.port, tls=authority.server("127.0.0.1") if tls else None) as hop:
        without_collector(lose(hop))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nor_does_one_that_could_not_be_set_up(fleet: Fleet, tmp_path: Path, tls: bool) -> None:
    authority = Authority(tmp_path)
    backend: Table = {"tls": True, "tls_ca": str(authority.file)} if tls else {}
    timeouts: Table = {"reconnect_min_s": 0.01, "reconnect_max_s": 0.02}
    config = Config.parse(fleet.config("127.0.0.1:0", 1, timeouts=timeouts, backend=backend).encode())

    async def refuse(hop: Hop) -> None:
        lost = Lost(config, hop.port)
        before = heavy()
        hop.answer(b"ECHO", b"-ERR no\r\n" * 3, times=TIMES)
        accepted = hop.accepted
        lost.link.connect(lost.backend)
        await until("it to be tried again", lambda: hop.accepted >= accepted + TIMES, lambda: hop.accepted)
        await until("one to succeed", lambda: lost.backend.is_open, lambda: lost.link)
        left = before["Wire"] + 1  # the one that is open
        await until("nothing to be left of the others", lambda: heavy()["Wire"] <= left, lambda: heavy() - before)
        lost.link.close()

    with Hop(fleet.shards[0].primary.port, tls=authority.server("127.0.0.1") if tls else None) as hop:
        without_collector(refuse(hop))


def without_collector(work: Coroutine[Any, Any, None]) -> None:
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    finally:
        gc.enable()
        gc.collect()


def heavy() -> Counter[str]:
    """Objects that are there, by their types."""
    return Counter(name for name in (type(each).__name__ for each in gc.get_objects()) if name in HEAVY)


def test_a_server_that_is_seen_again_before_the_pause_begins_is_connected_to_at_once(fleet: Fleet) -> None:
    pause: Table = {"reconnect_min_s": 600.0, "reconnect_max_s": 600.0}
    config = Config.parse(fleet.config("127.0.0.1:0", 1, timeouts=pause).encode())

    async def lose(hop: Hop) -> None:
        lost = Lost(config, hop.port)
        await lost.connected()
        wire = lost.backend.wire
        assert wire is not None
        lost.link._mark_down("a test says so")
        wire.drop("lost")
        lost.link.reconnect_now()
        await lost.connected()
        lost.link.close()

    with Hop(fleet.shards[0].primary.port) as hop:
        asyncio.run(lose(hop))
