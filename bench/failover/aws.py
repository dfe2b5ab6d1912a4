"""Faults of shards that are replication groups of ElastiCache: the twentieth scenario, a to g."""

from __future__ import annotations

from bench.failover.deciders import Aws
from bench.failover.rig import Rig
from tests.elasticache import Fault as Failure
from tests.elasticache import Refusal
from tests.faults import End

MODIFY = "ModifyReplicationGroup"


def kill(rig: Rig, calls: int = 1) -> None:
    """`calls`: how often AWS must have been asked for a promotion."""
    rig.fault_begins()
    rig.shard.primary.kill()
    _recovers(rig, calls)


def answer_lost(rig: Rig) -> None:
    _aws(rig).api.fail(MODIFY, Failure(lost=True))
    kill(rig)


def throttled(rig: Rig) -> None:
    refusal = Refusal("Throttling", "Rate exceeded")
    rig.fault_begins()
    rig.shard.primary.kill()
    _aws(rig).api.fail("DescribeReplicationGroups", Failure(refusal=refusal), times=5)
    _recovers(rig, 1)


def modifying(rig: Rig) -> None:
    group = _aws(rig).group(rig.shard)
    group.status = "modifying"
    rig.fault_begins()
    rig.shard.primary.kill()
    rig.wait("writes to be refused", lambda: rig.try_write() == "TRYAGAIN")
    rig.sleep(40)
    group.status = "available"
    _recovers(rig, 1)


def automatic(rig: Rig) -> None:
    aws = _aws(rig)
    for group in aws.api.groups.values():
        group.automatic_failover = group.multi_az = "enabled"
    aws.api.detect_s = 8.0 * rig.scale
    kill(rig, calls=0)


def other_asks(rig: Rig) -> None:
    aws = _aws(rig)
    rig.fault_begins()
    rig.shard.primary.kill()
    group = aws.group(rig.shard)
    aws.api.promote(group, f"{group.id}-003")
    _recovers(rig, 0)
    if rig.primary() is not rig.servers[2]:
        rig.problems.append(f"{rig.primary().name} was promoted after {rig.servers[2].name} had been")


def closes(rig: Rig) -> None:
    """As ElastiCache's close-on-replica-write does; the error before it may never be read."""
    aws = _aws(rig)
    (hop,) = rig.hops.values()
    for command in (b"RPUSH", b"INCR", b"SET"):
        hop.answer(command, b"", End.FIN, times=1000)
    rig.fault_begins()
    aws.api.promote(aws.group(rig.shard), f"rg-{rig.shard.name}-002")
    _recovers(rig, 0)


def named_late(rig: Rig) -> None:
    _aws(rig).api.late_s = 20.0 * rig.scale
    kill(rig)


def kill_of_three(rig: Rig) -> None:
    """Whoever comes second finds it done, or being done."""
    aws = _aws(rig)
    kill(rig, calls=-1)
    asked = [call["PrimaryClusterId"] for call in aws.api.calls if call["Action"] == MODIFY]
    if not asked or aws.group(rig.shard).primary != asked[0]:
        rig.problems.append(f"one promotion after the other: {asked}")


def _recovers(rig: Rig, calls: int) -> None:
    rig.until_written()
    rig.sleep(5)
    rig.until_written()
    counted = _aws(rig).api.counted(MODIFY)
    if calls >= 0 and counted != calls:
        rig.problems.append(f"expected {calls} calls of {MODIFY}, got {counted}")
    rig.fault_ends()


def _aws(rig: Rig) -> Aws:
    assert isinstance(rig.decider, Aws)
    return rig.decider
