"""What is done to servers, networks and proxies: a function for each fault. catalogue.py lists them.

A function gets a `Rig` in which all is well. It calls `fault_begins()` first and `fault_ends()` when nothing more is to
be expected of the fault, and leaves everything healed where that is possible. All times in it are at full length.
"""

from __future__ import annotations

import time

from bench.failover.rig import Rig
from bench.failover.servers import asks, role_of
from pyproxy.fleet import HOST, FleetError, Server
from tests.faults import End

# --- the twenty -------------------------------------------------------------------------------------------------------


def kill(rig: Rig) -> None:
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.until_written()
    rig.fault_ends()


def stop_briefly(rig: Rig) -> None:
    rig.fault_begins()
    rig.shard.primary.pause()
    rig.sleep(2)
    rig.shard.primary.resume()
    rig.until_written()
    rig.fault_ends()


def stop_long(rig: Rig) -> None:
    rig.fault_begins()
    rig.shard.primary.pause()
    rig.until_written()
    rig.sleep(60)
    rig.shard.primary.resume()
    rig.wait("the old primary to be a replica", lambda: rig.primaries() == [rig.primary()])
    rig.until_written()
    rig.fault_ends()


def cut_clients(rig: Rig) -> None:
    """Replicas still follow, so the primary lives."""
    rig.fault_begins()
    rig.cut()
    rig.wait("writes to be refused", lambda: rig.try_write() == "TRYAGAIN")
    time.sleep(max(15.0 * rig.scale, 5.0))  # longer than the proxy waits for a sign of life, and for a connection
    rig.heal()
    rig.until_written()
    rig.fault_ends()


def cut_replicas(rig: Rig) -> None:
    rig.fault_begins()
    rig.cut()
    rig.wait("writes to be refused", lambda: rig.try_write() != "OK")
    rig.sleep(10)
    rig.heal()
    rig.until_written()
    rig.fault_ends()


def cut_and_kill(rig: Rig) -> None:
    rig.fault_begins()
    rig.cut()
    time.sleep(1.0)  # less than min-replicas-max-lag allows, so that clients have their writes acknowledged
    rig.shard.primary.kill()
    rig.until_written()
    rig.fault_ends()


def demote(rig: Rig) -> None:
    """By an operator, by hand: FAILOVER waits until the new one has everything, or what was confirmed could be lost."""
    old, new, other = rig.servers
    rig.fault_begins()
    old.ask("FAILOVER", "TO", HOST, new.port)
    rig.wait("the new primary", new.says_master)
    other.ask("REPLICAOF", HOST, new.port)
    rig.until_written()
    rig.fault_ends()


def misconf(rig: Rig) -> None:
    primary = rig.shard.primary
    (rig.fleet.directory / f"{primary.name}.rdb" / "in the way").mkdir(parents=True)
    primary.ask("CONFIG", "SET", "save", "3600 1")
    rig.fault_begins()
    primary.ask("BGSAVE")
    rig.sleep(10)
    rig.until_written()
    rig.fault_ends()


def planned(rig: Rig) -> None:
    rig.fault_begins()
    done = rig.admin("promote", rig.shard.name)
    if done.returncode:
        raise FleetError(f"pyproxy promote: {done.stdout}{done.stderr}")
    rig.sleep(1)
    rig.until_written()
    rig.fault_ends()


def candidate_dies(rig: Rig) -> None:
    """It is killed when it is told to be the primary, and does not answer."""
    for hop in rig.hops.values():
        hop.answer(b"ONE", b"", End.SILENCE)
    rig.fault_begins()
    rig.shard.primary.kill()
    chosen = wait_for_choice(rig)
    chosen.kill()
    for server, hop in rig.hops.items():
        if server is not chosen:
            hop.heal()
    rig.until_written()
    rig.fault_ends()


def parent_dies(rig: Rig) -> None:
    """After REPLICAOF; the next one finishes it."""
    rig.fault_begins()
    rig.shard.primary.kill()
    chosen = wait_for_choice(rig)
    rig.restart_proxy()
    rig.until_written()
    if rig.primary() is not chosen:
        rig.problems.append(f"{rig.primary().name} was made primary after {chosen.name} had been")
    rig.fault_ends()


def deciders_away(rig: Rig) -> None:
    for each in rig.decider.sentinels:  # stopped ones wake to 30 s of TILT, and to replicas too old
        each.kill()
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.wait("writes to be refused", lambda: rig.try_write() == "TRYAGAIN")
    rig.sleep(15)
    if rig.primaries():
        rig.problems.append(f"{rig.primaries()[0].name} was made primary by nobody")
    for each in rig.decider.sentinels:
        each.launch()
    rig.until_written()
    rig.fault_ends()


def parent_sleeps(rig: Rig) -> None:
    """Just before it would act; meanwhile somebody else has, and otherwise than it would have."""
    old, new, other = rig.servers
    rig.fault_begins()
    old.kill()
    rig.sleep(2.5)
    rig.proxies[0].pause()
    if new not in rig.primaries():
        new.ask("REPLICAOF", "NO", "ONE")
        other.ask("REPLICAOF", HOST, new.port)
    rig.sleep(30)
    rig.proxies[0].resume()
    rig.until_written()
    rig.sleep(3)
    if rig.primaries() != [new]:
        rig.problems.append(f"expected {new.name} alone as primary, got {[each.name for each in rig.primaries()]}")
    rig.fault_ends()


def old_returns(rig: Rig) -> None:
    """With its old data, and as a primary."""
    rig.shard.primary.ask("SAVE")
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.until_written()
    rig.shard.primary.start()
    rig.wait("it to be a replica", lambda: role_of(rig.shard.primary) == "slave")
    rig.until_written()
    rig.fault_ends()


def returns_empty(rig: Rig) -> None:
    """So fast that its replicas may copy its emptiness before anybody has noticed."""
    asks(rig.ports[0], [("SET", f"ballast{number}", "x") for number in range(5000)])
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.sleep(0.5)
    rig.shard.primary.start()
    rig.sleep(15)
    if rig.try_write() != "TRYAGAIN" and rig.primary() is rig.shard.primary:
        rig.problems.append("a primary that lost everything is written to")
    rig.fault_ends()


def all_die(rig: Rig) -> None:
    """The replicas, then the primary."""
    rig.fault_begins()
    for each in rig.shard.replicas:
        each.kill()
    rig.sleep(5)
    if (said := rig.try_write()) != "OK":
        rig.problems.append(f"without replicas a write was answered {said}")
    rig.shard.primary.ask("SAVE")
    rig.shard.primary.kill()
    rig.sleep(5)
    for said in (rig.try_write(), rig.try_read()):
        if said != "TRYAGAIN":
            rig.problems.append(f"with no server left it was answered {said}")
    rig.fault_ends()
    rig.revive.append(rig.shard.primary)


def overflow(rig: Rig) -> None:
    """A crowd of writers that is greater than what may be held."""
    crowd = rig.crowd(round(5000 * rig.scale))
    rig.fault_begins()
    rig.shard.primary.kill()
    said = rig.each_writes(crowd)
    rig.until_written()
    limit = round(2000 * rig.scale)
    applied = sum(op.acknowledged for op in said)
    unanswered = sum(not op.answered_at for op in said)
    if not 0 < applied <= limit or unanswered:
        rig.problems.append(f"of {len(said)} writes {applied} were held and applied, {unanswered} not answered")
    rig.fault_ends()


def leaves_while_held(rig: Rig) -> None:
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.leave_held()
    rig.until_written()
    rig.fault_ends()


def flap(rig: Rig) -> None:
    """The new primary dies, too, before anybody may promote again."""
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.until_written()
    rig.sleep(5)
    rig.primary().kill()
    rig.wait("writes to be refused", lambda: rig.try_write() == "TRYAGAIN")
    rig.sleep(20)
    if (said := rig.try_write()) != "TRYAGAIN":
        rig.problems.append(f"the second promotion came at once: a write was answered {said}")
    rig.fault_ends()


def wait_for_choice(rig: Rig) -> Server:
    """The server that was told to be the primary."""
    chosen: list[Server] = []

    def told() -> bool:
        chosen.extend(server for server, hop in rig.hops.items() if b"ONE" in hop.requests)
        return bool(chosen)

    rig.wait("a candidate to be chosen", told)
    return chosen[0]


# --- and beside them ---


def peace(rig: Rig) -> None:
    rig.fault_begins()
    rig.sleep(10)
    rig.fault_ends()


def kill_for_good(rig: Rig) -> None:
    """Nobody will promote."""
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.sleep(15)
    rig.fault_ends()


def cut_off(rig: Rig) -> None:
    """The primary, from everybody; it lives, and comes back."""
    rig.fault_begins()
    rig.cut()
    rig.until_written()
    rig.sleep(10)
    rig.heal()
    rig.wait("the old primary to be a replica", lambda: role_of(rig.shard.primary) == "slave")
    rig.until_written()
    rig.fault_ends()
