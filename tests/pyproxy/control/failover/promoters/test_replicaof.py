"""The parent promotes: one shard of real servers, and what they say afterwards."""

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import hiredis
import msgspec
import pytest

from pyproxy import events
from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config
from pyproxy.control.failover.promoters import Promoter, PromotionFailed, PromotionPlan, make
from pyproxy.control.health.busy import BusyServers
from pyproxy.control.health.node_monitor import NodeMonitor
from pyproxy.fleet import HOST, Fleet, Server, ask
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node
from tests.faults import End, Hop, Way
from tests.waiting import until

PLAIN = Access(BackendAccess())


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A primary and two replicas of this test's own."""
    with Fleet(shards=1, replicas=2) as fleet:
        yield fleet


@pytest.fixture
def primary(fleet: Fleet) -> Server:
    return fleet.shards[0].primary


@pytest.fixture
def candidate(fleet: Fleet) -> Server:
    return fleet.shards[0].replicas[0]


@pytest.fixture
def other(fleet: Fleet) -> Server:
    return fleet.shards[0].replicas[1]


def promoter_for(fleet: Fleet, **options: bool | float) -> Promoter:
    config = Config.parse(fleet.config(promotion={"promoter": "replicaof", **options}).encode())
    return make(config.shards[0], config, PLAIN, lambda announcement: None)


async def health(address: str) -> NodeHealth:
    monitor = NodeMonitor("s0", Node.parse(address), PLAIN, BusyServers(), "", b"")
    await monitor.check_once()
    monitor.close()
    assert monitor.health.reachable, monitor.health.error
    return monitor.health


async def plan_of(primary: Server, candidate: str, *others: Server) -> PromotionPlan:
    """As it is seen now."""
    healths = [await health(each.address) for each in others]
    return PromotionPlan("s0", 1, await health(primary.address), await health(candidate), tuple(healths))


async def plan_where(so: Callable[[NodeHealth], bool], primary: Server, candidate: Server) -> PromotionPlan:
    """As it is seen once this is so of the candidate."""
    deadline = time.monotonic() + 20.0
    while not so((plan := await plan_of(primary, candidate.address)).candidate):
        assert time.monotonic() < deadline, f"seen last: {plan.candidate}"
        await asyncio.sleep(0.01)
    return plan


async def in_step(replica: Server, primary: Server) -> None:
    """Wait until the replica follows this primary and has all of it."""
    master: NodeHealth | None = None
    slave: NodeHealth | None = None

    async def seen() -> bool:
        nonlocal master, slave
        master, slave = await health(primary.address), await health(replica.address)
        return (slave.master, slave.link, slave.replid) == (primary.address, "up", master.replid) and (
            slave.offset >= master.offset
        )

    deadline = time.monotonic() + 20.0
    while not await seen():
        assert time.monotonic() < deadline, f"waited for {replica.name} to follow {primary.name}; seen: {slave}"
        await asyncio.sleep(0.01)


def role(server: Server) -> object:
    said = server.ask("ROLE")
    assert isinstance(said, list)
    return said[0]


def calls(server: Server, command: str) -> int:
    """How often the server was asked this, in vain or not."""
    said = server.ask("INFO", "commandstats")
    assert isinstance(said, bytes)
    found = re.search(rf"^cmdstat_{re.escape(command)}:calls=(\d+)", said.decode(), re.MULTILINE)
    return int(found[1]) if found else 0


def full_syncs(server: Server) -> int:
    said = server.ask("INFO", "stats")
    assert isinstance(said, bytes)
    found = re.search(r"^sync_full:(\d+)", said.decode(), re.MULTILINE)
    assert found
    return int(found[1])


Logged = Callable[[], list[str]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """The names of the events since it was asked last, sorted; of none before it was asked first."""

    def names() -> list[str]:
        events.configure()
        return sorted(line.split(" ")[0] for line in capsys.readouterr().err.splitlines())

    yield names
    logging.getLogger("pyproxy").handlers.clear()  # their stream is this test's


# --- the primary is lost ----------------------------------------------------------------------------------------------


async def test_of_a_killed_primary_the_candidate_takes_over_with_the_data_and_the_others_follow(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    for number in range(100):
        primary.ask("SET", f"key{number}", number)
    await in_step(candidate, primary)
    await in_step(other, primary)
    plan = await plan_of(primary, candidate.address, other)
    logged()
    primary.kill()
    await promoter_for(fleet).promote(plan)
    assert role(candidate) == b"master"
    assert candidate.ask("DBSIZE") == 100
    assert logged() == ["+promoted-slave", "+slave-reconf-sent"]
    candidate.ask("SET", "new", "value")
    await in_step(other, candidate)
    assert other.ask("DBSIZE") == 101
    assert full_syncs(candidate) == 0


async def test_after_a_promotion_each_server_was_asked_to_keep_its_role_over_a_restart(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    primary.kill()
    await promoter_for(fleet).promote(plan)
    assert [calls(each, "config|rewrite") for each in (candidate, other)] == [1, 1]


async def test_a_replica_that_does_not_answer_stops_no_promotion(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    logged()
    primary.kill()
    other.kill()
    await promoter_for(fleet).promote(plan)
    assert role(candidate) == b"master"
    assert logged() == ["+promoted-slave", "+step-failed"]


async def test_what_is_the_primary_already_is_not_promoted_again_but_the_others_follow(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    primary.kill()
    candidate.ask("REPLICAOF", "NO", "ONE")
    await promoter_for(fleet).promote(plan)
    await promoter_for(fleet).promote(await later(plan, candidate, other))
    assert calls(candidate, "replicaof") == 1
    await in_step(other, candidate)


async def later(plan: PromotionPlan, candidate: Server, *others: Server) -> PromotionPlan:
    """The same plan, as somebody sees it who comes later."""
    healths = [await health(each.address) for each in others]
    return PromotionPlan("s0", 1, plan.primary, await health(candidate.address), tuple(healths))


async def test_a_promotion_whose_reply_is_lost_is_a_success_and_is_not_repeated(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address)
        primary.kill()
        hop.delay(0.5, Way.REPLIES)
        promotion = asyncio.ensure_future(promoter_for(fleet).promote(plan))
        await until("the promotion", lambda: role(candidate) == b"master", lambda: role(candidate))
        hop.heal()
        hop.cut(reset=True)
        await promotion
    assert calls(candidate, "replicaof") == 1


async def test_a_promotion_that_never_arrived_is_a_failure_and_is_not_repeated(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address, other)
        primary.kill()
        hop.answer(b"REPLICAOF", b"", End.RST)
        with pytest.raises(PromotionFailed, match="is still a slave") as failed:
            await promoter_for(fleet).promote(plan)
        assert failed.value.again
        assert hop.requests.count(b"REPLICAOF") == 1
    assert calls(other, "replicaof") == 0


async def test_where_nobody_can_say_what_came_of_it_that_is_said(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address)
        primary.kill()
        hop.delay(0.5, Way.REPLIES)
        promotion = asyncio.ensure_future(promoter_for(fleet).promote(plan))
        await until("the promotion", lambda: role(candidate) == b"master", lambda: role(candidate))
        candidate.kill()
        hop.cut(reset=True)
        with pytest.raises(PromotionFailed, match="nobody knows what came of it") as failed:
            await promotion
        assert failed.value.again


async def test_a_candidate_that_is_dead_is_a_failure_and_another_may_do(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    primary.kill()
    candidate.kill()
    with pytest.raises(PromotionFailed, match=f"^{candidate.address}: connection refused$") as failed:
        await promoter_for(fleet).promote(plan)
    assert failed.value.again
    await promoter_for(fleet).promote(await later(plan, other))
    assert role(other) == b"master"


@pytest.mark.parametrize("act", ["promote", "hand_over"])
async def test_a_candidate_that_does_not_answer_is_a_failure_within_the_deadline(
    fleet: Fleet, primary: Server, candidate: Server, act: str
) -> None:
    plan = await plan_of(primary, candidate.address)
    candidate.pause()
    promoter = promoter_for(fleet, deadline_s=0.2)
    with pytest.raises(PromotionFailed, match=f"^{candidate.address}: no reply within 0"):
        await (promoter.promote(plan) if act == "promote" else promoter.hand_over(plan))
    assert primary.ask("SET", "key", "value") == b"OK"


async def test_a_candidate_that_follows_another_server_by_now_is_left_alone(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    primary.kill()
    other.ask("REPLICAOF", "NO", "ONE")
    candidate.ask("REPLICAOF", HOST, other.port)
    with pytest.raises(PromotionFailed, match=f"follows {other.address}") as failed:
        await promoter_for(fleet).promote(plan)
    assert failed.value.again
    assert role(candidate) == b"slave"


async def test_a_candidate_that_lost_its_data_since_is_left_alone(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    primary.ask("SET", "key", "value")
    plan = await plan_of(primary, candidate.address)
    primary.kill()
    candidate.kill()
    candidate.launch()
    candidate.wait_for_pong(candidate.port)
    with pytest.raises(PromotionFailed, match="another history"):
        await promoter_for(fleet).promote(plan)
    assert role(candidate) == b"slave"


async def test_a_candidate_that_is_being_sent_the_data_is_left_alone(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    for number in range(100):
        primary.ask("SET", f"key{number}", "value")
    primary.ask("CONFIG", "SET", "rdb-key-save-delay", 100_000)  # microseconds: of all, 10 s
    await make_diverge(candidate)
    candidate.ask("REPLICAOF", HOST, primary.port)
    plan = await plan_where(lambda candidate: candidate.syncing, primary, candidate)
    with pytest.raises(PromotionFailed, match="is syncing"):
        await promoter_for(fleet).promote(plan)
    assert role(candidate) == b"slave"


async def make_diverge(server: Server) -> None:
    """It becomes a primary with data that no other has."""
    server.ask("REPLICAOF", "NO", "ONE")
    server.ask("SET", "mine", "alone")


# --- the old primary meanwhile ----------------------------------------------------------------------------------------


async def test_an_old_primary_that_only_slept_takes_no_write_and_follows_once_it_is_tidied(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    primary.pause()
    promoter = promoter_for(fleet)
    await promoter.promote(plan)
    primary.resume()
    assert role(primary) == b"master"
    with pytest.raises(TimeoutError):  # its writes are paused
        ask(primary.port, "SET", "key", "lost", timeout=0.5)
    await promoter.reconfigure(await health(candidate.address), [await health(primary.address)])
    candidate.ask("SET", "key", "kept")
    await in_step(primary, candidate)
    assert primary.ask("GET", "key") == b"kept"


async def test_where_nobody_is_promoted_the_primary_takes_writes_as_before(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    plan = await plan_of(primary, candidate.address)
    candidate.kill()
    with pytest.raises(PromotionFailed):
        await promoter_for(fleet).promote(plan)
    assert calls(primary, "client|pause") == 1
    assert primary.ask("SET", "key", "value") == b"OK"


async def test_where_nobody_is_promoted_the_primary_is_told_to_take_writes_until_it_hears(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    """Else it takes none for a minute."""
    with Hop(primary.port) as hop:
        hop.answer(b"UNPAUSE", b"", times=3)  # they are lost, and nobody is told
        plan = await plan_of(primary, candidate.address)
        plan = replace(plan, primary=msgspec.structs.replace(plan.primary, node=hop.address))
        promoter = promoter_for(fleet)
        running = asyncio.create_task(promoter.run())
        candidate.kill()
        with pytest.raises(PromotionFailed):
            await promoter.promote(plan)
        await until("it to hear", lambda: calls(primary, "client|unpause") == 1, lambda: hop.requests)
        assert ask(primary.port, "SET", "key", "value", timeout=5.0) == b"OK"
        running.cancel()


async def test_a_pause_that_is_to_be_ended_is_forgotten_with_the_next_attempt(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    """Else the new primary's rival would take writes again."""
    plan = await plan_of(primary, candidate.address)
    promoter = promoter_for(fleet)
    running = asyncio.create_task(promoter.run())
    primary.pause()
    candidate.pause()
    with pytest.raises(PromotionFailed):
        await promoter.promote(plan)
    candidate.resume()
    await promoter.promote(plan)
    primary.resume()
    await until("the pause", lambda: calls(primary, "client|pause") == 2, lambda: calls(primary, "client|pause"))
    with pytest.raises(TimeoutError):
        ask(primary.port, "SET", "key", "lost", timeout=1.5)
    running.cancel()


async def test_without_its_replicas_an_old_primary_with_a_minimum_of_them_takes_no_write(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    primary.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    plan = await plan_of(primary, candidate.address, other)
    await promoter_for(fleet).promote(plan)
    primary.ask("CLIENT", "UNPAUSE")
    with pytest.raises(hiredis.ReplyError, match="NOREPLICAS"):
        primary.ask("SET", "key", "lost")


# --- all are well -----------------------------------------------------------------------------------------------------


class Writer:
    """Writes straight to one server, one value after the other, until it is refused."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.acknowledged = 0
        self.refusal = ""
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _write(self) -> None:
        reader = hiredis.Reader()
        with socket.create_connection((HOST, self._server.port), timeout=10.0) as connection:
            while not self.refusal:
                connection.sendall(hiredis.pack_command(("RPUSH", "list", str(self.acknowledged))))  # type: ignore[arg-type]
                while (reply := reader.gets()) is False:
                    data = connection.recv(65536)
                    if not data:
                        self.refusal = "closed"
                        return
                    reader.feed(data)
                if isinstance(reply, hiredis.ReplyError):
                    self.refusal = str(reply)
                else:
                    self.acknowledged += 1


async def test_a_hand_over_under_writes_loses_none_and_refuses_what_waited(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    logged()
    with Writer(primary) as writer:
        await until("writes", lambda: writer.acknowledged > 500, lambda: writer.acknowledged)
        await promoter_for(fleet).hand_over(plan)
    assert writer.refusal.startswith("READONLY")
    assert candidate.ask("LRANGE", "list", 0, -1) == [b"%d" % number for number in range(writer.acknowledged)]
    assert logged() == ["+convert-to-slave", "+promoted-slave", "+slave-reconf-sent"]
    candidate.ask("SET", "new", "value")
    for each in (primary, other):
        await in_step(each, candidate)
        assert each.ask("LLEN", "list") == writer.acknowledged
    assert full_syncs(candidate) == 0


async def test_after_a_hand_over_the_old_primary_is_not_paused(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    await promoter_for(fleet).hand_over(await plan_of(primary, candidate.address))
    with pytest.raises(hiredis.ReplyError, match="READONLY"):
        primary.ask("SET", "key", "value")
    assert calls(primary, "client|unpause") == 1


async def test_a_hand_over_whose_reply_is_lost_goes_on_to_its_end(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address)
        hop.delay(0.3, Way.REPLIES)
        handing = asyncio.ensure_future(promoter_for(fleet).hand_over(plan))
        await until("the promotion", lambda: role(candidate) == b"master", lambda: role(candidate))
        hop.heal()
        hop.cut(reset=True)
        await handing
    assert calls(candidate, "replicaof") == 1
    with pytest.raises(hiredis.ReplyError, match="READONLY"):
        primary.ask("SET", "key", "value")


async def test_a_replica_that_hears_nothing_is_not_handed_over_to_and_the_primary_takes_writes_again(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(primary.port) as hop:
        candidate.ask("REPLICAOF", HOST, hop.port)
        plan = await plan_where(lambda candidate: candidate.link == "up", primary, candidate)
        hop.stall()
        primary.ask("SET", "key", "value")
        with pytest.raises(PromotionFailed, match=r"is \d+ bytes behind") as failed:
            await promoter_for(fleet).hand_over(plan)
        assert failed.value.again
        assert calls(primary, "client|unpause") == 1
        assert primary.ask("SET", "key", "again") == b"OK"
    assert calls(candidate, "replicaof") == 1  # that of this test


async def test_a_hand_over_that_cannot_be_acknowledged_is_undone(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address)
        hop.answer(b"REPLICAOF", b"-NOPERM this user may not\r\n")
        with pytest.raises(PromotionFailed, match="NOPERM"):
            await promoter_for(fleet).hand_over(plan)
    assert (role(primary), role(candidate)) == (b"master", b"slave")
    assert primary.ask("SET", "key", "value") == b"OK"


async def test_a_hand_over_that_is_given_up_leaves_the_primary_writable(
    fleet: Fleet, primary: Server, candidate: Server
) -> None:
    with Hop(candidate.port) as hop:
        plan = await plan_of(primary, hop.address)
        hop.delay(0.3, Way.REPLIES)
        handing = asyncio.ensure_future(promoter_for(fleet).hand_over(plan))
        await until("the pause", lambda: calls(primary, "client|pause") == 1, lambda: hop.requests)
        handing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handing
    assert primary.ask("SET", "key", "value") == b"OK"
    assert role(candidate) == b"slave"


@pytest.mark.parametrize("wrong", ["primary", "role", "history", "link"])
async def test_what_does_not_follow_the_primary_is_not_handed_over_to_and_nothing_is_paused(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, wrong: str
) -> None:
    plan = await plan_of(primary, candidate.address, other)
    if wrong == "primary":
        primary.ask("REPLICAOF", HOST, other.port)
    if wrong == "role":
        await make_diverge(candidate)
    if wrong == "history":
        await make_diverge(other)
        candidate.ask("REPLICAOF", HOST, other.port)
        await in_step(candidate, other)
    if wrong == "link":
        candidate.ask("REPLICAOF", HOST, 1)
    with pytest.raises(PromotionFailed):
        await promoter_for(fleet).hand_over(plan)
    assert calls(primary, "client|pause") == 0


# --- afterwards -------------------------------------------------------------------------------------------------------


async def test_a_returned_primary_is_made_a_replica_and_its_own_data_is_gone(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    promoter = promoter_for(fleet)
    plan = await plan_of(primary, candidate.address, other)
    await promoter.promote(plan)
    candidate.ask("SET", "key", "value")
    primary.ask("CLIENT", "UNPAUSE")
    primary.ask("SET", "diverged", "value")
    now, replica = await health(candidate.address), await health(primary.address)
    logged()
    with socket.create_connection((HOST, primary.port), timeout=5.0) as client:
        client.sendall(b"PING\r\n")
        client.recv(100)
        await promoter.reconfigure(now, [replica])
        assert client.recv(100) == b""
    assert logged() == ["+convert-to-slave"]
    await in_step(primary, candidate)
    assert primary.ask("KEYS", "*") == [b"key"]
    assert calls(primary, "config|rewrite") == 1


async def test_a_replica_of_a_replica_is_made_one_of_the_primary(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    other.ask("REPLICAOF", HOST, candidate.port)
    now, replica = await health(primary.address), await health(other.address)
    logged()
    await promoter_for(fleet).reconfigure(now, [replica])
    assert logged() == ["+fix-slave-config"]
    await in_step(other, primary)


async def test_a_replica_that_follows_the_primary_is_left_alone(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, logged: Logged
) -> None:
    now, *replicas = [await health(each.address) for each in (primary, candidate, other)]
    syncs = full_syncs(primary)
    logged()
    await promoter_for(fleet).reconfigure(now, replicas)
    assert logged() == []
    assert [calls(each, "replicaof") for each in (candidate, other)] == [0, 0]
    assert full_syncs(primary) == syncs


@pytest.mark.parametrize("what", ["is a replica", "restarted", "is dead"])
async def test_nobody_is_made_a_replica_of_what_is_not_the_primary_that_was_seen(
    fleet: Fleet, primary: Server, candidate: Server, other: Server, what: str
) -> None:
    await make_diverge(other)
    seen = await health(primary.address)
    if what == "is a replica":
        primary.ask("REPLICAOF", HOST, candidate.port)
    else:
        primary.kill()
    if what == "restarted":
        primary.start()
    await promoter_for(fleet).reconfigure(seen, [await health(other.address)])
    assert (role(other), other.ask("GET", "mine")) == (b"master", b"alone")


async def test_a_server_that_cannot_be_tidied_is_said_once_and_is_tidied_when_it_can_be(
    fleet: Fleet, primary: Server, candidate: Server, logged: Logged
) -> None:
    promoter = promoter_for(fleet)
    await make_diverge(candidate)
    now, replica = await health(primary.address), await health(candidate.address)
    candidate.ask("ACL", "SETUSER", "default", "-replicaof")
    logged()
    for _ in range(3):
        await promoter.reconfigure(now, [replica])
    assert logged() == ["+step-failed"]
    assert role(candidate) == b"master"
    candidate.ask("ACL", "SETUSER", "default", "+replicaof")
    await promoter.reconfigure(now, [replica])
    assert logged() == ["+convert-to-slave"]
    await in_step(candidate, primary)


# --- another proxy promotes -------------------------------------------------------------------------------------------


async def test_where_another_proxy_promotes_this_one_touches_no_server(
    fleet: Fleet, primary: Server, candidate: Server, other: Server
) -> None:
    follower = promoter_for(fleet, promote=False)
    assert not follower.acts
    assert promoter_for(fleet).acts
    await make_diverge(other)
    await follower.reconfigure(await health(primary.address), [await health(other.address)])
    with pytest.raises(PromotionFailed) as failed:
        await follower.promote(await plan_of(primary, candidate.address))
    assert not failed.value.again
    assert (role(primary), role(other)) == (b"master", b"master")
