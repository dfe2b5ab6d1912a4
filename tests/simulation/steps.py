"""The steps of a history: each a word and two numbers, and what each of them does to a world.

A step that does not fit is none: so any of them may be left out, and the others still mean something.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeVar

from pyproxy.worker.lane.lane import Wire
from tests.simulation.client import Client
from tests.simulation.server import REFUSALS, Connection, Server
from tests.simulation.world import World

Any1 = TypeVar("Any1")


class Step(NamedTuple):
    name: str
    which: int
    how: int

    def __str__(self) -> str:
        return f"{self.name} {self.which} {self.how}"


Action = Callable[[World, int, int], object]
ACTIONS: dict[str, tuple[int, Action]] = {}
"""Name -> how often, and what."""

MOST_CLIENTS = 5
CUTS = (1, 3, 10, 50, 400, 5000, 1 << 30, 1 << 30, 1 << 30)
TIMES = (0.0001, 0.001, 0.03, 0.1, 0.3, 0.6, 1.2)


def action(weight: int) -> Callable[[Action], Action]:
    def known(function: Action) -> Action:
        ACTIONS[function.__name__.strip("_")] = weight, function
        return function

    return known


def take(world: World, step: Step) -> None:
    """Raises Broken."""
    ACTIONS[step.name][1](world, step.which, step.how)
    world.check()


def one(of: list[Any1], which: int) -> Any1 | None:
    return of[which % len(of)] if of else None


def _client(world: World, which: int) -> Client | None:
    return one([client for client in world.clients if client.is_open], which)


def _server(world: World, which: int) -> Server:
    return list(world.nodes.values())[which % len(world.nodes)]


def _connection(world: World, which: int) -> Connection | None:
    return one(world.connections, which)


# --- clients ---


@action(4)
def _open(world: World, which: int, how: int) -> None:
    if sum(client.is_open for client in world.clients) < MOST_CLIENTS:
        client = world.open()
        rng = Random(how)
        if rng.random() < 0.4:
            client.hello(3)
        if rng.random() < 0.3:
            client.select(1)


@action(30)
def _ask(world: World, which: int, how: int) -> None:
    """Mostly one request, and it arrives."""
    client = _client(world, which)
    if client is not None:
        rng = Random(how)
        for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
            client.draw(rng, world.setting.waits)
        if how % 4:
            world.send(client)


@action(12)
def _send(world: World, which: int, how: int) -> None:
    client = _client(world, which)
    if client is not None:
        world.send(client, CUTS[how % len(CUTS)])


@action(5)
def _read(world: World, which: int, how: int) -> None:
    client = _client(world, which)
    if client is not None:
        world.read(client, CUTS[how % len(CUTS)])


@action(2)
def _reading(world: World, which: int, how: int) -> None:
    """It stops, or begins again."""
    client = _client(world, which)
    if client is not None:
        client.is_reading = not client.is_reading
        client.since = world.loop.now


@action(3)
def _leave(world: World, which: int, how: int) -> None:
    client = _client(world, which)
    if client is not None:
        world.leave(client, "fin" if how % 2 else "reset")
        if how % 3:
            while world.send(client):
                pass


# --- servers ---


@action(20)
def _serve(world: World, which: int, how: int) -> None:
    connection = _connection(world, which)
    if connection is not None:
        connection.server.serve(connection, 1 + how % 5)


@action(20)
def _answer(world: World, which: int, how: int) -> None:
    connection = _connection(world, which)
    if connection is not None:
        world.deliver(connection, CUTS[how % len(CUTS)])


@action(15)
def _connect(world: World, which: int, how: int) -> None:
    if world.network.connecting:
        world.answer_connecting(which % len(world.network.connecting))


@action(3)
def _stall(world: World, which: int, how: int) -> None:
    """It stands still, or goes on."""
    server = _server(world, which)
    server.stalled = not server.stalled
    server.unreachable = server.stalled and how % 2 == 0


@action(2)
def _refuse(world: World, which: int, how: int) -> None:
    server = _server(world, which)
    server.refuses = "" if server.refuses else list(REFUSALS)[how % len(REFUSALS)]


@action(2)
def _kill(world: World, which: int, how: int) -> None:
    """It dies, or comes back."""
    server = _server(world, which)
    if server.alive:
        server.kill()
    else:
        server.restart()


@action(2)
def _drop(world: World, which: int, how: int) -> None:
    """A connection to a server ends."""
    connection = _connection(world, which)
    if connection is not None:
        if how % 2:
            connection.finish()
        else:
            connection.reset()
        if how % 3 == 0:
            connection.dropped = True


@action(6)
def _copy(world: World, which: int, how: int) -> None:
    _server(world, which).copy(1 + how % 3)


# --- the parent ---


def _shard(world: World, which: int) -> int:
    return which % len(world.parent.shards)


@action(2)
def _gate(world: World, which: int, how: int) -> None:
    index = _shard(world, which)
    if world.parent.gates[index].closed:
        world.parent.open(index)
    else:
        world.parent.close(index, hold=how % 3 != 0)


@action(2)
def _promote(world: World, which: int, how: int) -> None:
    """The primary is replaced; at once or in a later step the gate opens."""
    index = _shard(world, which)
    world.parent.promote(index, zombie=how % 3 == 0)
    if how % 2:
        world.loop.settle()
        world.parent.open(index)


@action(3)
def _hand_over(world: World, which: int, how: int) -> None:
    world.parent.hand_over(_shard(world, which))


@action(3)
def _health(world: World, which: int, how: int) -> None:
    world.parent.health()
    world.parent.confirm()
    if how % 2:
        world.parent.tidy()
        world.parent.tell()


# --- time, and everything at once ---


@action(20)
def _turn(world: World, which: int, how: int) -> None:
    for _ in range(1 + how % 4):
        world.loop.turn()


@action(14)
def _beats(world: World, which: int, how: int) -> None:
    """Some turns of the loop, with quick servers: what has come is read before each. Somebody may leave meanwhile."""
    rng = Random(how)
    client = _client(world, which)
    leaves_at = rng.randrange(24)
    for beat in range(1 + how % 12):
        if beat == leaves_at and client is not None:
            world.leave(client, rng.choice(("fin", "reset")))
        for connection in world.connections:
            if rng.random() < 0.8:
                connection.server.serve(connection, 1 + rng.randrange(5))
        for attempt in list(world.network.connecting):
            if rng.random() < 0.7:
                world.answer_connecting(world.network.connecting.index(attempt))
        ends = [*world.connections, *(client.end for client in world.clients)]
        rng.shuffle(ends)
        for end in ends:
            if rng.random() < 0.8:
                world.deliver(end)
        for each in world.clients:
            each.arrived()
        world.loop.turn()


@action(14)
def _time(world: World, which: int, how: int) -> None:
    world.advance(TIMES[how % len(TIMES)])


@action(1)
def _sleep(world: World, which: int, how: int) -> None:
    """The worker is stopped for a while."""
    world.loop.sleep(0.5 + how % 3)


@action(14)
def _flow(world: World, which: int, how: int) -> None:
    """For a moment all is as it mostly is."""
    world.flow(1 + how % 3)


@action(3)
def _fail(world: World, which: int, how: int) -> None:
    """Memory fails where the lane writes to a server, if faults are made at all; in a task it is the worker's end."""
    connection = _connection(world, which)
    if not world.setting.faulty or connection is None or connection.transport is None:
        return
    is_set_up = connection.last not in (b"", b"HELLO", b"SELECT", b"ECHO", b"CONFIG")
    if is_set_up and isinstance(connection.transport.protocol, Wire):
        connection.transport.fails = 1 + how % 3
