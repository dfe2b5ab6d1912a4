"""What a link says of the connections it had, with a real server, in this process."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config, ShardTable
from pyproxy.fleet import HOST, Fleet, Server
from pyproxy.metrics import Page
from pyproxy.shardmap import Node
from pyproxy.worker.lane import Lane
from pyproxy.worker.link import Link
from tests.waiting import until


@pytest.fixture
def server() -> Iterator[Server]:
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


@asynccontextmanager
async def link_to(server: Server) -> AsyncIterator[Link]:
    """With a connection in RESP2 to database 0, which is kept, and one in RESP3 to database 1."""
    node = Node(HOST, server.port)
    config = Config(shards=(ShardTable(name="s0", primary=node, slots=((0, 16383),)),))
    page, tasks = Page.create(1), set()

    def spawn(coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    lane = Lane(asyncio.get_running_loop(), lambda *_: None, page.row(0), config, 0, 1)
    link = Link(lane, 0, "s0", node, config.timeouts, Access(BackendAccess()), spawn, lambda *_: None)
    lane.set_shards([link], [0] * 16384)
    for proto, db in ((2, 0), (3, 1)):
        link.connect(link.backend(proto, db))
    try:
        await until("both connections", lambda: link.connections == 2, lambda: link)
        yield link
    finally:
        link.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def kill_the_idle_one(server: Server) -> None:
    """As a server with a `timeout` does: that in RESP3."""
    clients = server.ask("CLIENT", "LIST")
    assert isinstance(clients, bytes)
    (its,) = [line for line in clients.decode().splitlines() if " resp=3 " in line and " db=1 " in line]
    server.ask("CLIENT", "KILL", "ID", its.split()[0].removeprefix("id="))


async def test_a_connection_that_ended_for_being_idle_is_no_loss_of_the_server(server: Server) -> None:
    """Every server with a `timeout` does so, every night; a failure in the morning is as old as itself."""
    async with link_to(server) as link:
        kill_the_idle_one(server)
        await until("its end", lambda: not link.backend(3, 1).is_open, lambda: link)
        assert link.lost_at == 0.0
        killed_at = time.monotonic()
        server.kill()
        await until("the loss", lambda: link.lost_at > 0.0, lambda: link)
        assert link.lost_at >= killed_at


async def test_a_server_is_lost_with_its_last_connection_and_until_there_is_one(server: Server) -> None:
    async with link_to(server) as link:
        server.kill()
        await until("the loss", lambda: link.is_down, lambda: link)
        assert link.lost_at > 0.0
        server.launch()
        await until("its return", lambda: link.backend(2, 0).is_open, lambda: link)
        assert link.lost_at == 0.0
