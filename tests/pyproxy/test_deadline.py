"""A process that was late does not take its lateness for the silence of another: of each kind of wait for a server.

The event loop of a test is kept busy for longer than the deadline that is waited for, and what was waited for comes
into the socket meanwhile.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.scan import Replies, Requests
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config, Timeouts
from pyproxy.control.health.node_connection import NodeConnection
from pyproxy.deadline import Deadline, within
from pyproxy.fleet import HOST, Fleet, Server
from pyproxy.shard_map import Node
from pyproxy.slices import Slices
from pyproxy.worker.commands.conversation import Conversation
from pyproxy.worker.lane.lane import Backend
from pyproxy.worker.pubsub.connection import PartialMessages
from pyproxy.worker.pubsub.upstream import Upstream
from pyproxy.worker.pubsub.wanted import WantedNames
from pyproxy.worker.shard.pool import LeaseWaiter, Quota
from tests.pyproxy.worker.shard.test_link import Lost
from tests.waiting import until

DEADLINE_S = 1.0
LATE_S = 1.5
ENOUGH_S = 20.0


class Late:
    """In front of a real server. Its first so many answers come while the event loop of the test is kept busy."""

    def __init__(self, server_port: int, answers: int = 1) -> None:
        self.answers = answers
        self._loop = asyncio.get_running_loop()
        self._server_port = server_port
        self._busy, self._answered = threading.Event(), threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self.node = Node(HOST, self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="late", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        requests, replies = Requests(), Replies(True)
        server = socket.create_connection((HOST, self._server_port), ENOUGH_S)
        with contextlib.suppress(ConnectionResetError), client, server:  # a connection that is given up is reset
            while data := client.recv(1 << 16):
                owed = len(requests.feed(data))
                server.sendall(data)
                said = b""
                while owed:
                    said += (more := server.recv(1 << 16))
                    owed -= len(replies.feed(more))
                if self.answers > 0:
                    self.answers -= 1
                    self._busy.clear()
                    self._answered.clear()
                    self._loop.call_soon_threadsafe(self._keep_busy)
                    assert self._busy.wait(ENOUGH_S)
                client.sendall(said)
                self._answered.set()

    def _keep_busy(self) -> None:
        ends_at = time.monotonic() + LATE_S
        self._busy.set()
        assert self._answered.wait(ENOUGH_S)
        time.sleep(max(0.0, ends_at - time.monotonic()))


@pytest.fixture
def late(server: Server) -> Iterator[Callable[..., Late]]:
    made: list[Late] = []

    def make(answers: int = 1) -> Late:
        made.append(Late(server.port, answers))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet


def read_by(read: Callable[[], object]) -> None:
    """Have this called once while sockets are looked at, as what comes from a client is: then timers are next."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()

    def once() -> None:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        read()

    loop.add_reader(ours, once)
    theirs.send(b"x")


def link_to(fleet: Fleet, late: Late) -> Lost:
    config = Config.parse(fleet.config("127.0.0.1:0", 1, timeouts={"connect_s": DEADLINE_S}).encode())
    return Lost(config, late.node.port)


# --- the tool itself --------------------------------------------------------------------------------------------------


async def test_what_is_in_a_socket_is_read_before_a_deadline_passes() -> None:
    loop = asyncio.get_running_loop()
    happened: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)

        def read() -> None:
            ours.recv(1)
            happened.append("read")

        def be_late() -> None:
            theirs.send(b"x")
            time.sleep(0.2)

        loop.add_reader(ours, read)
        Deadline(0.05, lambda: happened.append("passed"))
        read_by(be_late)
        await until("the deadline to pass", lambda: "passed" in happened, lambda: happened)
        loop.remove_reader(ours)
    assert happened == ["read", "passed"]


async def test_a_late_turn_leaves_others_most_of_their_time() -> None:
    """One deadline sees a turn that takes longer than all of it, and the other one begins after that turn."""
    happened: list[str] = []

    def be_late() -> None:
        time.sleep(0.6)
        Deadline(0.2, lambda: happened.append("the younger"))

    Deadline(0.4, lambda: happened.append("the older"))
    read_by(be_late)
    await until("both to pass", lambda: len(happened) == 2, lambda: happened)
    assert happened == ["the younger", "the older"]


async def test_a_deadline_that_is_cancelled_does_not_pass() -> None:
    happened: list[str] = []
    for cancel_in_s in (0.0, 0.01):
        deadline = Deadline(0.05, lambda: happened.append("cancelled"))
        asyncio.get_running_loop().call_later(cancel_in_s, deadline.cancel)
    Deadline(0.1, lambda: happened.append("passed"))
    await until("the other to pass", lambda: bool(happened), lambda: happened)
    assert happened == ["passed"]


async def test_a_block_that_takes_longer_is_ended() -> None:
    with pytest.raises(TimeoutError):
        async with within(0.01):
            await asyncio.get_running_loop().create_future()


async def test_a_block_without_a_deadline_is_not() -> None:
    async with within(None):
        await asyncio.sleep(0.01)


async def test_who_is_cancelled_within_a_block_is_told_so() -> None:
    async def wait() -> None:
        async with within(ENOUGH_S):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- those who wait for servers ---------------------------------------------------------------------------------------


async def test_a_worker_that_is_late_connects(fleet: Fleet, late: Callable[..., Late]) -> None:
    """Its set-up takes several answers, and the worker is late for each of them."""
    lost = link_to(fleet, late(answers=2))
    lost.link.connect(lost.backend)
    await until("an outcome", lambda: lost.backend.is_open or lost.link.is_down, lambda: lost.link)
    assert not lost.link.is_down, lost.link.refusal
    lost.link.close()


async def test_a_worker_that_is_late_leases_a_connection(fleet: Fleet, late: Callable[..., Late]) -> None:
    lost = link_to(fleet, late())
    backend = Backend(lost.link._lane, lost.link, 0, 3, 0)
    backend.connecting()
    reasons: list[str] = []
    await lost.link.open_leased(backend, 2, reasons.append)
    assert backend.is_open
    assert not reasons
    lost.link.close()
    assert backend.wire is not None
    backend.wire.drop("the test is over")


async def test_who_has_its_turn_in_a_late_turn_has_it() -> None:
    quota = Quota(1)
    quota.try_acquire()
    waits = asyncio.create_task(quota.acquire(LeaseWaiter(past_gate=False), 0.2))
    await asyncio.sleep(0)

    def be_late() -> None:
        time.sleep(0.4)
        read_by(quota.release)

    read_by(be_late)
    assert await waits is True


async def test_a_server_is_well_for_a_health_check_that_is_late(late: Callable[..., Late]) -> None:
    there = late(answers=0)
    connection = await NodeConnection.open(there.node, Access(BackendAccess()), DEADLINE_S)
    for _ in range(2):
        there.answers = 1
        assert await connection.ask((b"ECHO", b"a"), (b"COMMAND",), deadline_s=DEADLINE_S)
    connection.close()


class Nobody:
    """Listens to an upstream."""

    def confirmed(self, *_: Any) -> None:
        pass


async def subscribed(node: Node, silence_s: float) -> Upstream:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Any, name: str) -> None:
        tasks.add(asyncio.create_task(work, name=name))

    timeouts = Timeouts(connect_s=DEADLINE_S, silence_s=silence_s, reconnect_min_s=ENOUGH_S, reconnect_max_s=ENOUGH_S)
    listener: Any = Nobody()
    access, partial_messages = Access(BackendAccess()), PartialMessages(1 << 20, print)
    upstream = Upstream("s0", node, timeouts, access, spawn, Slices(), WantedNames(), listener, partial_messages)
    upstream.open()
    await until("an outcome", lambda: upstream.is_connected or not upstream.is_available, lambda: upstream)
    return upstream


async def test_a_worker_that_is_late_is_subscribed(late: Callable[..., Late]) -> None:
    upstream = await subscribed(late().node, ENOUGH_S)
    assert upstream.is_connected, upstream
    upstream.close()


async def test_a_subscription_is_not_lost_by_a_late_turn(server: Server) -> None:
    """The server is asked whether it lives; what it says is in the socket when the worker comes to look."""
    upstream = await subscribed(Node(HOST, server.port), silence_s=0.5)
    connection = upstream._connection
    assert connection is not None
    now = time.monotonic()
    upstream.tick(now)
    while not connection.pinged_at:
        upstream.tick(now := now + 0.5)
    upstream.tick(now + 0.9)
    assert not connection.lost.done(), connection.lost
    upstream.close()


@pytest.mark.parametrize("began_s_ago", [0.0, 60.0])
async def test_a_client_that_has_closed_its_half_is_answered_by_a_worker_that_is_late(began_s_ago: float) -> None:
    """Whether its command has to wait is known when the server has had a moment."""
    given_up: list[str] = []

    class Connection(Conversation):
        def __init__(self) -> None:
            self.lane = type("Lane", (), {"loop": asyncio.get_running_loop()})()
            self._begun_at = begun_at

        def drain(self) -> None:
            given_up.append("drained")

    answered: list[bool] = []
    begun_at = asyncio.get_running_loop().time() - began_s_ago
    conn = Connection()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asyncio.get_running_loop().add_reader(
            ours, lambda: answered.append(bool(os.read(ours.fileno(), 1)) and not given_up)
        )

        def be_late() -> None:
            conn.half_closed()
            time.sleep(0.4)
            theirs.send(b"x")

        read_by(be_late)
        await until("the moment to be over", lambda: bool(given_up and answered), lambda: (given_up, answered))
        asyncio.get_running_loop().remove_reader(ours)
    assert answered == [True]
