"""What is done for a client with very many channels, in bounded slices; and who waits for whom. At real servers.

Clients are stand-ins: what the compiled ones do of it is seen in tests/e2e/pubsub/test_pubsub.py.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyproxy.access import Access
from pyproxy.config import Config, ShardTable, Timeouts
from pyproxy.fleet import Fleet
from pyproxy.messages import GateDirective
from pyproxy.shard_map import Node, Shard
from pyproxy.slices import BATCH, PARTS, Slices
from pyproxy.worker.lane.outcome import PLACED, Later
from pyproxy.worker.pubsub.hub import Hub
from pyproxy.worker.pubsub.registry import ChannelKind, Registry
from pyproxy.worker.pubsub.wanted import WantedName
from tests.waiting import until

MANY = 6000
PATIENT = Timeouts(connect_s=20.0, reply_s=20.0, silence_s=20.0)


@pytest.fixture(scope="module")
def fleet3() -> Iterator[Fleet]:
    with Fleet(shards=3, replicas=0) as fleet:
        yield fleet


class Client:
    """A stand-in for a connection; `heard`: what it was given, `replies`: its answers."""

    def __init__(self, turn: "Turn") -> None:
        self.proto = 2
        self.commands = 0
        self.last_active = 0.0
        self.reply_mode = 0
        self.subscriber: Any = None
        self.heard: list[bytes] = []
        self.replies: list[bytes] = []
        self.charged = 0
        self._turn = turn

    def converse(self, conversation: object) -> Later:
        self.commands += 1
        return PLACED

    def answer(self, reply: bytes) -> None:
        self.replies.append(reply)

    def settled(self) -> bool:
        return True

    def push(self, frame: bytes) -> int:
        self._turn.parts += sum(map(frame.count, (b"$9\r\nsubscribe", b"$11\r\nunsubscribe", b"message")))
        self.heard.append(frame)
        return 0

    def charge(self, size: int) -> None:
        self.charged += size


class Turn:
    """How much was done in the present turn of the loop, and in the one that had most."""

    def __init__(self) -> None:
        self.parts = 0
        self.most = 0
        self.ended = False
        self._next()

    def _next(self) -> None:
        self.most = max(self.most, self.parts)
        self.parts = 0
        if not self.ended:
            asyncio.get_running_loop().call_soon(self._next)


class Counting(Registry[Any]):
    """A registry that says how often it is written to in a turn."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self._turn = turn

    def add(self, kind: ChannelKind, name: bytes, client: Any) -> None:
        self._turn.parts += 1
        super().add(kind, name, client)

    def remove(self, kind: ChannelKind, name: bytes, client: Any) -> bool:
        self._turn.parts += 1
        return super().remove(kind, name, client)

    def replace(self, kind: ChannelKind, name: bytes, old: Any, new: Any) -> None:
        self._turn.parts += 1
        super().replace(kind, name, old, new)


class World:
    """A hub that listens to these servers. `others_know`: what it tells is known to the other workers, if there are."""

    def __init__(self, fleet: Fleet, alone: bool = True, others_know: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.turn = Turn()
        self.fleet = fleet
        self.others_know = others_know
        self.tasks: set[asyncio.Task[None]] = set()
        nodes = [Node.parse(shard.primary.address) for shard in fleet.shards]
        tables = tuple(ShardTable(name=f"s{at}", primary=node, slots=()) for at, node in enumerate(nodes))
        config = Config(shards=tables, timeouts=PATIENT)
        lane: Any = SimpleNamespace(
            loop=loop, shard_of=lambda text: len(text) % len(nodes), count_partial_message=self._charged
        )
        self.registry = Counting(self.turn)
        access = Access(config.backend)
        self.hub = Hub(lane, config, access, self._spawn, Slices(), self.registry, alone, self._notified)
        self.hub.interest.want = self._counted(self.hub.interest.want)  # type: ignore[assignment, method-assign]
        self._shards = [Shard(f"s{at}", node, (), ((at, at),)) for at, node in enumerate(nodes)]
        self.apply_topology(1)
        self.hub.open()

    def _charged(self, change: int) -> None:
        """Of the budget of memory, which is not looked at here."""

    def _counted(self, want: Callable[[ChannelKind, bytes], WantedName]) -> Callable[[ChannelKind, bytes], WantedName]:
        def counted(kind: ChannelKind, text: bytes) -> WantedName:
            self.turn.parts += 1
            return want(kind, text)

        return counted

    def apply_topology(self, epoch: int) -> None:
        """All primaries are of this epoch."""
        self.hub.apply_topology(self._shards, [GateDirective(shard.name, epoch) for shard in self._shards])

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work, name=name))

    def _notified(self) -> None:
        while self.others_know and self.registry.has_changes:
            asyncio.get_running_loop().call_soon(self.hub.on_acknowledged, self.registry.next_update().number)

    def client(self) -> Client:
        return Client(self.turn)

    def ask(self, client: Client, *argv: bytes) -> None:
        command: Any = SimpleNamespace(name=argv[0].lower())
        reply = self.hub.serve(client, None, command, argv)  # type: ignore[arg-type]
        if isinstance(reply, bytes):
            client.answer(reply)

    async def answered(self, client: Client, replies: int) -> None:
        await until("the answer", lambda: len(client.replies) == replies, lambda: client.replies)

    async def at_the_servers(self, channels: int) -> None:
        """Until each has so many."""

        def counted() -> list[int]:
            listed = [shard.primary.ask("PUBSUB", "CHANNELS") for shard in self.fleet.shards]
            return [len(each) for each in listed if isinstance(each, list)]

        await until(f"{channels} channels", lambda: set(counted()) == {channels}, counted)


@contextlib.asynccontextmanager
async def world(fleet: Fleet, **more: Any) -> AsyncIterator[World]:
    made = World(fleet, **more)
    try:
        await until("connections", lambda: made.hub.connections == len(fleet.shards), lambda: made.hub.connections)
        yield made
    finally:
        made.turn.ended = True
        made.hub.close()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await asyncio.sleep(0)


NAMES = [b"slice:%d" % number for number in range(MANY)]
BOUND = 2 * PARTS + 4 * BATCH  # what is left of the share of one turn, and that of the next, and the last step of each


async def unsubscribes(context: World, client: Client) -> None:
    context.ask(client, b"UNSUBSCRIBE")
    await context.answered(client, 2)
    assert b"".join(client.heard).count(b"$11\r\nunsubscribe\r\n") == MANY
    assert client.charged == 0


async def resets(context: World, client: Client) -> None:
    assert context.hub.reset(client, lambda: b"+RESET\r\n") is PLACED  # type: ignore[arg-type]
    await context.answered(client, 2)
    assert client.replies == [b"", b"+RESET\r\n"]
    assert client.charged == 0


async def leaves(context: World, client: Client) -> None:
    client.subscriber.on_left()


async def is_left_by_the_servers(context: World, client: Client) -> None:
    for shard in context.fleet.shards:
        shard.primary.ask("CLIENT", "KILL", "TYPE", "pubsub")
    await until("the loss", lambda: context.hub.connections == 0, lambda: context.hub.connections)
    await context.at_the_servers(MANY)
    client.subscriber.on_left()


@pytest.mark.parametrize("alone", [True, False], ids=["one worker", "several"])
@pytest.mark.parametrize("end", [unsubscribes, resets, leaves, is_left_by_the_servers])
async def test_no_turn_does_more_than_its_share_for_a_client_with_very_many_channels(
    fleet3: Fleet, end: Callable[[World, Client], Coroutine[Any, Any, None]], alone: bool
) -> None:
    async with world(fleet3, alone=alone, others_know=True) as context:
        client = context.client()
        context.ask(client, b"SUBSCRIBE", *NAMES)
        await context.answered(client, 1)
        assert b"".join(client.heard).count(b"$9\r\nsubscribe\r\n") == MANY
        await context.at_the_servers(MANY)
        await end(context, client)
        await until(
            "nothing",
            lambda: not context.registry.names(ChannelKind.CHANNEL),
            lambda: context.registry.total(ChannelKind.CHANNEL),
        )
        await context.at_the_servers(0)
        assert 0 < context.turn.most <= BOUND


async def test_a_message_for_very_many_clients_is_handed_out_in_slices_and_in_order(fleet3: Fleet) -> None:
    async with world(fleet3) as context:
        clients = [context.client() for _ in range(MANY)]
        for client in clients:
            context.ask(client, b"SUBSCRIBE", b"all")
        for client in clients:
            await context.answered(client, 1)
        for text in ("one", "two"):
            context.fleet.shards[0].primary.ask("PUBLISH", "all", text)
        await until("both", lambda: len(clients[-1].heard) == 3, lambda: clients[-1].heard)
        for client in clients:
            assert [b"one" in client.heard[1], b"two" in client.heard[2]] == [True, True]
        assert 0 < context.turn.most <= BOUND


async def test_what_a_server_had_sent_before_another_takes_its_place_is_heard_however_late_the_worker_is(
    fleet3: Fleet,
) -> None:
    """The loop does not run while it is published, so nothing of it was read when the primary is another."""
    async with world(fleet3) as context:
        client = context.client()
        context.ask(client, b"SUBSCRIBE", b"late")
        await context.answered(client, 1)
        server = context.fleet.shards[1].primary
        server.ask("EVAL", "for i = 1, 3000 do redis.call('publish', 'late', i) end return 1", "0")
        context.apply_topology(2)

        def heard() -> int:
            return sum(b"message" in frame for frame in client.heard)

        await until("all messages", lambda: heard() == 3000, heard)
        await until("the new primaries", lambda: not context.hub.unconfirmed, lambda: context.hub.unconfirmed)
        server.ask("PUBLISH", "late", "new")
        await until("one more", lambda: heard() == 3001, heard)


async def test_a_small_subscription_is_confirmed_before_a_large_one_that_came_earlier(fleet3: Fleet) -> None:
    async with world(fleet3) as context:
        large, small = context.client(), context.client()
        context.ask(large, b"SUBSCRIBE", *NAMES)
        context.ask(small, b"SUBSCRIBE", NAMES[0])
        await context.answered(small, 1)
        assert large.replies == []
        await context.answered(large, 1)


# --- the other workers ------------------------------------------------------------------------------------------------


async def test_a_subscription_is_confirmed_when_the_other_workers_know_of_it(fleet3: Fleet) -> None:
    async with world(fleet3, alone=False) as context:
        client, witness = context.client(), context.client()
        context.others_know = True
        context.ask(witness, b"SUBSCRIBE", b"a")
        await context.answered(witness, 1)
        context.others_know = False
        context.ask(client, b"SUBSCRIBE", b"a", b"b")
        await until("the numbers", lambda: context.registry.last_change == 3, lambda: context.registry.last_change)
        assert context.registry.count(ChannelKind.CHANNEL, b"a") == 2
        number = context.registry.next_update().number
        context.hub.on_acknowledged(number - 1)
        context.fleet.shards[1].primary.ask("PUBLISH", "a", "early")
        await until("the message", lambda: b"early" in witness.heard[-1], lambda: witness.heard)
        assert client.heard == []
        context.hub.on_acknowledged(number)
        await context.answered(client, 1)
        confirmation_frame, message = client.heard
        assert confirmation_frame.count(b"$9\r\nsubscribe\r\n") == 2
        assert b"early" in message
        context.ask(client, b"SUBSCRIBE", b"a")
        await context.answered(client, 2)


async def test_other_workers_that_do_not_answer_are_waited_for_once_and_again_when_they_do(fleet3: Fleet) -> None:
    async with world(fleet3, alone=False) as context:
        began, clients = time.monotonic(), [context.client() for _ in range(3)]
        now = began

        async def counted(client: Client, name: bytes) -> int:
            before = context.registry.last_change
            context.ask(client, b"SUBSCRIBE", name)
            await until(
                "the number", lambda: context.registry.last_change > before, lambda: context.registry.last_change
            )
            return context.registry.next_update().number

        await counted(clients[0], b"a")
        while not clients[0].replies and now < began + 100 * PATIENT.reply_s:
            now += 0.02
            context.hub.tick(now)
            await asyncio.sleep(0)
        assert clients[0].replies and now > began + PATIENT.reply_s / 2
        late = await counted(clients[1], b"b")
        await context.answered(clients[1], 1)
        context.hub.on_acknowledged(late)
        await counted(clients[2], b"c")
        for _ in range(10):
            context.hub.tick(now)
            await asyncio.sleep(0)
        assert clients[2].replies == []
