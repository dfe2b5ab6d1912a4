"""The end of a history: everything heals, everybody gets what is owed and leaves, and nothing of them is left."""

from collections.abc import Callable

from tests.simulation.client import Client
from tests.simulation.oracle import Broken
from tests.simulation.setting import keys
from tests.simulation.world import TICK_S, World

REST_S = 12.0
"""In so long everybody has all answers, or nobody is left to wake them."""


def rest(world: World) -> None:
    """Everything heals; everybody gets what is owed; all have gone, and nothing of them is left. Raises Broken."""
    for server in world.nodes.values():
        if server.alive:
            server.stalled, server.refuses, server.unreachable = False, "", False
        else:
            server.restart()
    for client in world.clients:
        client.is_reading = True
        client.since = world.loop.now
    world.network.window = 1 << 24
    for end in (*world.connections, *(client.end for client in world.clients)):
        end.window = world.network.window
    world.parent.mend()
    _until(world, "everybody has all answers", lambda: not any(c.waiting for c in world.clients if c.is_there))
    readers = [client for client in world.clients if client.is_open]
    for client in readers:
        for place in list(client.writes):
            client.select(place[0])
            client.get(next(name for name, own in keys().items() if place[1] in own), place[1])
    _until(world, "everybody has read what is written", lambda: not any(c.waiting for c in readers if c.is_open))
    _check_all(world)
    for client in world.clients:
        world.leave(client, "fin")
    _until(world, "all clients are gone", lambda: not world.lane.clients)
    _until(world, "nothing is in flight", lambda: not _left_over(world))


def _until(world: World, what: str, done: Callable[[], bool]) -> None:
    until = world.loop.now + REST_S
    while True:
        world.flow(20)
        world.check()
        if done():
            return
        if world.loop.now > until:
            who = [f"{c} {c.waiting[0].name} {c.waiting[0].index} {c.protocol!r}" for c in world.clients if c.waiting]
            raise Broken(f"expected that {what} within {REST_S:g} s of rest, got {who or _left_over(world)}")
        for server in world.nodes.values():
            server.copy(1 << 30)
        world.loop.advance(TICK_S)
        world.parent.confirm()


def _check_all(world: World) -> None:
    for client in world.clients:
        for asked in client.asked:
            world.oracle.check(client, asked)
        if client.closed and not client.left and not world.setting.faulty:
            raise Broken(f"{client} was closed by the proxy, and has not done anything")
        if client.left == "fin" and client.waiting and not _was_told_to_go(world, client):
            first = client.waiting[0]
            if first.name == "wait":
                continue  # a command that waits is given up, and what is behind it
            raise Broken(f"{client} closed its half, and {first.name} {first.index} was not answered")


def _was_told_to_go(world: World, client: Client) -> bool:
    """Something of it was held, and what stands behind that is not done either; or it did not read to the end."""
    if world.setting.faulty or client.may_be_cut_off or world.worker._hold_stats.dropped_client_gone:
        return True
    replies = [asked.reply for asked in client.asked if asked.reply is not None] or [b""]
    # of a split, the line may be that of another part
    return any(b"has closed its connection" in reply for reply in replies) or replies[-1][:1] == b"-"


def _left_over(world: World) -> str:
    """What should be zero and is not."""
    holds = world.worker._hold_stats
    found = {
        "inflight": world.lane.inflight,
        "held": world.lane.buffered,
        "hold requests": holds.requests,
        "hold bytes": holds.bytes,
        "waiting": len(world.worker._context.waiting) if world.worker._context else 0,
        "leased": -world.lease_pool.idle,
    }
    for each in world.worker._routers:
        name = each.link.name
        found[f"{name} held"] = len(each.gate.held_clients)
        found[f"{name} replays"] = each.gate.replay_requests
        found[f"{name} lease waiters"] = len(each.link.lease_waiters)
        found["leased"] += len(each.link.leased)
        for backend in each.link.backends.values():
            found[f"{backend!r}"] = backend.waiting_requests
    for (link, kind), quota in world.lease_pool.quotas.items():
        found[f"leases of {link.name} {kind.name}"] = quota.acquired
    return ", ".join(f"{what}: {count}" for what, count in found.items() if count)
