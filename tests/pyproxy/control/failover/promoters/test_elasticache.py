"""The promoter against an API like AWS', real boto3, and real servers that refuse what AWS' servers refuse."""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.promoters import (
    Announcement,
    Promoter,
    PromotionFailed,
    PromotionPlan,
    elasticache,
    make,
    replication_groups,
)
from pyproxy.fleet import HOST, VARIABLE, Fleet, FleetError, Server, reserve_port
from pyproxy.messages import NodeHealth
from pyproxy.shard_map import Node
from tests.certificates import Authority
from tests.elasticache import FakeElastiCache, Fault, Refusal, admin, options, pretend_credentials
from tests.faults import Hop
from tests.waiting import until

MODIFY, DESCRIBE = "ModifyReplicationGroup", "DescribeReplicationGroups"
FIRST, SECOND, THIRD = "rg-s0-001", "rg-s0-002", "rg-s0-003"
REQUEST_TIMEOUT_S = 0.4
TOKEN = "the-auth-token-of-the-group"

THROTTLED = Refusal("Throttling", "Rate exceeded")
UNAVAILABLE = Refusal("ServiceUnavailable", "try again", 503)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of seconds are fractions of one here."""
    pretend_credentials(monkeypatch)
    monkeypatch.setattr(elasticache, "CHECK_S", 0.02)
    monkeypatch.setattr(elasticache, "REQUEST_TIMEOUT_S", REQUEST_TIMEOUT_S)
    monkeypatch.setattr(elasticache, "IN_STEP_S", 0.3)
    monkeypatch.setattr(replication_groups, "DESCRIBE_ATTEMPTS", 1)
    monkeypatch.setattr(replication_groups, "MODIFY_S", 0.3)


@pytest.fixture
def aws() -> Iterator[FakeElastiCache]:
    """One replication group: a primary and two replicas. Nothing is tried on its servers that AWS forbids."""
    with Fleet(shards=1, replicas=2, options=options()) as fleet, FakeElastiCache(fleet) as fake:
        yield fake
        assert fake.denied() == []


@dataclass
class Following:
    promoter: Promoter
    announced: list[Announcement]
    task: asyncio.Task[None]

    @property
    def primaries(self) -> list[Node]:
        return [each.node for each in self.announced]

    async def sees(self, *nodes: Node) -> None:
        """These were announced, in this order, and no others."""
        await until(f"{nodes} to be announced", lambda: len(self.announced) >= len(nodes), lambda: self.announced)
        assert self.primaries == list(nodes)
        assert not self.task.done()


@contextlib.asynccontextmanager
async def following(
    aws: FakeElastiCache, *, promote: bool = True, poll_s: float = 0.05, backend: str = "", url: str = ""
) -> AsyncIterator[Following]:
    """A promoter that runs; for its end nothing may have gone wrong with it."""
    shards = "\n".join(
        f'[[shards]]\nname = "{group.removeprefix("rg-")}"\nreplication_group = "{group}"\n'
        f'primary = "{aws.address(known.members[known.primary])}"\nslots = ["0-16383"]\n'
        for group, known in aws.groups.items()
    )
    config = Config.parse(
        f"""
        [promotion]
        promoter = "elasticache"
        promote = {str(promote).lower()}
        [elasticache]
        region = "eu-west-1"
        endpoint_url = "{url or aws.url}"
        poll_s = {poll_s}
        trouble_poll_s = 0.05
        delay_s = 0.01
        [backend]
        {backend}
        {shards}
        """.encode()
    )
    announced: list[Announcement] = []
    promoter = make(config.shards[0], config, Access(config.backend), announced.append)
    task = asyncio.create_task(promoter.run())
    try:
        yield Following(promoter, announced, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def node(aws: FakeElastiCache, cluster: str) -> Node:
    return Node.parse(aws.address(aws.group.members[cluster]))


def plan(aws: FakeElastiCache, candidate: str = SECOND, primary: str = FIRST, epoch: int = 2) -> PromotionPlan:
    healths = {each: NodeHealth(str(node(aws, each))) for each in aws.group.members}
    others = tuple(health for each, health in healths.items() if each not in (candidate, primary))
    return PromotionPlan("s0", epoch, healths[primary], healths[candidate], others)


def role(server: Server) -> bytes:
    said = server.ask("ROLE")
    assert isinstance(said, list) and isinstance(said[0], bytes)
    return said[0]


async def refused(promoter: Promoter, plan: PromotionPlan) -> PromotionFailed:
    with pytest.raises(PromotionFailed) as failed:
        await promoter.promote(plan)
    return failed.value


# --- following --------------------------------------------------------------------------------------------------------


async def test_what_aws_names_at_first_is_announced_without_an_epoch(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        assert proxy.announced == [Announcement(node(aws, FIRST), 0, "elasticache")]


async def test_a_setting_is_what_the_parameter_group_says(aws: FakeElastiCache) -> None:
    aws.group.parameters = {"notify-keyspace-events": "Ex"}
    async with following(aws) as proxy:
        assert await proxy.promoter.setting("notify-keyspace-events") == "Ex"
        aws.fail("DescribeCacheParameters", Fault(THROTTLED))
        with pytest.raises(PromotionFailed, match="Rate exceeded"):
            await proxy.promoter.setting("notify-keyspace-events")


async def test_a_primary_that_somebody_else_had_promoted_is_announced(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.promote(aws.group, THIRD)
        await proxy.sees(node(aws, FIRST), node(aws, THIRD))


async def test_with_automatic_failover_aws_is_followed_and_never_asked(aws: FakeElastiCache) -> None:
    """Scenario 20 d. A primary that is lost is noticed at the server: the list would be asked for in an hour."""
    aws.group.automatic_failover = "enabled"
    aws.group.multi_az = "enabled"
    aws.detect_s = 0.2
    async with following(aws, poll_s=3600.0) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        failed = await refused(proxy.promoter, plan(aws))
        assert (str(failed), failed.again) == ("automatic failover is enabled: aws promotes", False)
        await until("aws to promote", lambda: aws.group.primary != FIRST, lambda: aws.group)
        await proxy.sees(node(aws, FIRST), node(aws, aws.group.primary))
    assert aws.counted(MODIFY) == 0


async def test_a_proxy_that_may_not_promote_follows(aws: FakeElastiCache) -> None:
    async with following(aws, promote=False, poll_s=3600.0) as proxy:
        assert not proxy.promoter.acts
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        aws.promote(aws.group, SECOND)
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_a_primary_that_aws_names_is_announced_once_it_is_one(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.named = SECOND  # a replica, still
        before = aws.counted(DESCRIBE)
        await until("aws to be asked again", lambda: aws.counted(DESCRIBE) > before + 2, lambda: aws.calls)
        assert proxy.primaries == [node(aws, FIRST)]


async def test_the_old_primary_that_comes_back_is_not_announced(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        await proxy.promoter.promote(plan(aws))
        aws.group.members[FIRST].start()
        await until("aws to make it a replica", lambda: role(aws.group.members[FIRST]) == b"slave", lambda: aws.group)
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_all_shards_are_described_by_one_call_in_peace() -> None:
    with Fleet(shards=3, replicas=1, options=options()) as fleet, FakeElastiCache(fleet) as aws:
        shards = "\n".join(
            f'[[shards]]\nname = "{each.name}"\nreplication_group = "rg-{each.name}"\n'
            f'primary = "{each.primary.address}"\nslots = ["{each.slots[0]}"]\n'
            for each in fleet.shards
        )
        api = f'[elasticache]\nregion = "eu-west-1"\nendpoint_url = "{aws.url}"\n'
        config = Config.parse(f'[promotion]\npromoter = "elasticache"\n{api}{shards}'.encode())
        announced: list[Announcement] = []
        promoters = [make(shard, config, Access(config.backend), announced.append) for shard in config.shards]
        tasks = [asyncio.create_task(each.run()) for each in promoters]
        await until("all to be announced", lambda: len(announced) == 3, lambda: announced)
        for each in tasks:
            each.cancel()
        assert {each.node for each in announced} == {shard.primary for shard in config.shards}
        assert [call["Action"] for call in aws.calls] == [DESCRIBE]


async def test_an_endpoint_that_nobody_answers_promotes_nobody_and_ends_nothing(
    aws: FakeElastiCache, caplog: pytest.LogCaptureFixture
) -> None:
    """Scenario 12."""
    caplog.set_level(logging.INFO, "pyproxy")
    with reserve_port() as keeper:
        async with following(aws, url=f"http://{HOST}:{keeper.getsockname()[1]}") as proxy:
            failed = await refused(proxy.promoter, plan(aws))
            assert failed.again
            assert str(failed).startswith("DescribeReplicationGroups: Could not connect to the endpoint URL")
            await until("that to be said", lambda: len(caplog.records) > 0, lambda: caplog.text)
            assert not proxy.task.done()
            assert proxy.announced == []
    assert role(aws.group.members[SECOND]) == b"slave"
    assert [each.message.split()[0] for each in caplog.records] == ["+elasticache-lost"]


async def test_aws_is_followed_again_when_it_answers_again(
    aws: FakeElastiCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyproxy")
    aws.fail(DESCRIBE, Fault(UNAVAILABLE), times=3)
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
    assert [each.message.split()[0] for each in caplog.records] == ["+elasticache-lost", "-elasticache-lost"]


async def test_a_replication_group_that_is_not_there_is_said(
    aws: FakeElastiCache, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        gone = aws.groups.pop("rg-s0")
        await until("that to be said", lambda: "is not there" in caplog.text, lambda: caplog.text)
        aws.groups["rg-s0"] = gone
        await proxy.sees(node(aws, FIRST))


# --- promoting --------------------------------------------------------------------------------------------------------


async def test_a_promotion_is_asked_for_once_and_seen_at_the_server(aws: FakeElastiCache) -> None:
    aws.begin_s, aws.modifying_s = 0.1, 0.3
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        await proxy.promoter.promote(plan(aws))
        assert role(aws.group.members[SECOND]) == b"master"
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    (asked,) = [call for call in aws.calls if call["Action"] == MODIFY]
    names = "ReplicationGroupId", "PrimaryClusterId", "ApplyImmediately"
    assert [asked[each] for each in names] == ["rg-s0", SECOND, "true"]


async def test_it_is_over_when_aws_has_finished_whoever_it_names(aws: FakeElastiCache) -> None:
    aws.modifying_s, aws.late_s = 0.3, 3600.0
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        await proxy.promoter.promote(plan(aws))
        assert aws.group.status == "available"
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_it_is_over_when_aws_names_the_candidate_whatever_else_it_does(aws: FakeElastiCache) -> None:
    aws.modifying_s = 3600.0
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_after_aws_was_described_anew_and_a_wait_of_its_own(
    aws: FakeElastiCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(aws, poll_s=3600.0) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.calls.clear()
        bounds = []

        def uniform(least: float, most: float) -> float:
            bounds.append((least, most))
            return least

        monkeypatch.setattr("random.uniform", uniform)
        await proxy.promoter.promote(plan(aws))
        assert (0.0, 0.01) in bounds
        before = [call["Action"] for call in aws.calls]
        assert before.index(DESCRIBE) < before.index(MODIFY)


async def test_where_the_answer_is_lost_it_is_not_asked_again(aws: FakeElastiCache) -> None:
    """Scenario 20 a."""
    aws.fail(MODIFY, Fault(lost=True))
    aws.begin_s = 0.2
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


@pytest.mark.parametrize(
    "fault",
    [Fault(silent=True), Fault(silent=True, delay_s=1.0), Fault(UNAVAILABLE)],
    ids=["closed", "no answer in time", "503"],
)
async def test_where_nothing_came_of_it_it_is_asked_again_after_a_while_only(
    aws: FakeElastiCache, fault: Fault
) -> None:
    aws.fail(MODIFY, fault)
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        since = time.monotonic()
        failed = await refused(proxy.promoter, plan(aws))
        assert failed.again
        assert str(failed) == f"{node(aws, SECOND)} is no primary {REQUEST_TIMEOUT_S:g} s after aws was asked"
        assert time.monotonic() - since >= REQUEST_TIMEOUT_S
        assert aws.counted(MODIFY) == 1
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 2


async def test_another_attempt_meanwhile_waits_for_the_first(aws: FakeElastiCache) -> None:
    """The first was cancelled, as it took too long; AWS does it all the same."""
    aws.begin_s = 0.3
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await proxy.promoter.promote(plan(aws))
        assert aws.counted(MODIFY) == 1
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


async def test_another_attempt_does_not_ask_again_where_the_first_may_have_been_heard(aws: FakeElastiCache) -> None:
    """Describe shows nothing of it."""
    aws.fail(MODIFY, Fault(silent=True))
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await proxy.promoter.promote(plan(aws))
        failed = await refused(proxy.promoter, plan(aws, THIRD, epoch=3))
        assert str(failed) == f"{node(aws, SECOND)} is no primary {REQUEST_TIMEOUT_S:g} s after aws was asked"
    assert aws.counted(MODIFY) == 1


async def test_an_attempt_that_was_given_up_is_followed_to_its_end(aws: FakeElastiCache) -> None:
    aws.begin_s, aws.late_s = 0.2, 3600.0
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_throttling_is_a_failure_that_may_be_tried_again(aws: FakeElastiCache) -> None:
    """Scenario 20 b."""
    aws.fail(MODIFY, Fault(THROTTLED), times=5)
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        for _ in range(5):
            failed = await refused(proxy.promoter, plan(aws))
            assert (str(failed), failed.again) == ("ModifyReplicationGroup: Throttling: Rate exceeded", True)
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 6


async def test_a_group_that_is_being_changed_is_not_asked_until_it_is_available(aws: FakeElastiCache) -> None:
    """Scenario 20 c."""
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.status = "snapshotting"
        failed = await refused(proxy.promoter, plan(aws))
        assert (str(failed), failed.again) == ("the replication group is snapshotting", True)
        assert aws.counted(MODIFY) == 0
        aws.group.status = "available"
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


async def test_a_group_that_began_to_change_since_is_a_failure_that_may_be_tried_again(aws: FakeElastiCache) -> None:
    aws.fail(MODIFY, Fault(Refusal("InvalidReplicationGroupState", "must be available")))
    async with following(aws) as proxy:
        failed = await refused(proxy.promoter, plan(aws))
        assert str(failed) == "ModifyReplicationGroup: InvalidReplicationGroupState: must be available"
        assert failed.again
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))


async def test_what_aws_will_never_allow_is_not_tried_again(aws: FakeElastiCache) -> None:
    aws.fail(MODIFY, Fault(Refusal("AccessDenied", "not authorized to perform: elasticache:Modify", 403)))
    async with following(aws) as proxy:
        failed = await refused(proxy.promoter, plan(aws))
        assert str(failed).startswith("ModifyReplicationGroup: AccessDenied: not authorized")
        assert not failed.again


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"automatic_failover": "enabling"}, "automatic failover is enabling: aws promotes"),
        ({"multi_az": "enabled"}, "multi-az is enabled"),
        ({"cluster_enabled": True}, "cluster mode is enabled"),
    ],
)
async def test_a_group_in_which_nobody_may_promote_is_never_asked(
    aws: FakeElastiCache, changed: dict[str, object], why: str
) -> None:
    for name, value in changed.items():
        setattr(aws.group, name, value)
    async with following(aws) as proxy:
        failed = await refused(proxy.promoter, plan(aws))
        assert (str(failed), failed.again) == (why, False)
    assert aws.counted(MODIFY) == 0


async def test_where_another_replica_was_promoted_that_one_is_announced(aws: FakeElastiCache) -> None:
    """Scenario 20 e. Nobody corrects it."""
    async with following(aws, poll_s=3600.0) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.promote(aws.group, THIRD)
        await until("aws to be done", lambda: aws.group.status == "available", lambda: aws.group)
        failed = await refused(proxy.promoter, plan(aws))
        assert str(failed) == f"aws says that {node(aws, THIRD)} is the primary"
        await proxy.sees(node(aws, FIRST), node(aws, THIRD))
    assert aws.counted(MODIFY) == 0


async def test_where_another_replica_is_being_promoted_that_is_awaited(aws: FakeElastiCache) -> None:
    aws.begin_s = 0.2
    async with following(aws, poll_s=3600.0) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.promote(aws.group, THIRD)
        failed = await refused(proxy.promoter, plan(aws))
        assert str(failed) == f"aws promoted {node(aws, THIRD)}, as somebody else asked for"
        await proxy.sees(node(aws, FIRST), node(aws, THIRD))
    assert aws.counted(MODIFY) == 0


async def test_a_promotion_that_awaits_the_maintenance_window_keeps_nobody_from_another(aws: FakeElastiCache) -> None:
    aws.group.pending = THIRD
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        failed = await refused(proxy.promoter, plan(aws))
        assert str(failed).startswith(f"{node(aws, THIRD)} is no primary")
        assert aws.counted(MODIFY) == 0
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


async def test_two_proxies_that_want_the_same_get_it_by_one_call(aws: FakeElastiCache) -> None:
    aws.begin_s = 0.3
    async with following(aws) as proxy, following(aws, poll_s=0.06) as other:
        await proxy.sees(node(aws, FIRST))
        await other.sees(node(aws, FIRST))
        first = asyncio.create_task(proxy.promoter.promote(plan(aws)))
        await until("one to ask", lambda: aws.counted(MODIFY) == 1, lambda: aws.calls)
        await asyncio.gather(first, other.promoter.promote(plan(aws)))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
        await other.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


async def test_the_servers_are_believed_before_aws_says_so_too(aws: FakeElastiCache) -> None:
    """Scenario 20 g: Describe names the old primary for a while, which is not announced again."""
    aws.late_s = 0.6
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        await proxy.promoter.promote(plan(aws))
        assert aws.group.named == FIRST
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
        before = aws.counted(DESCRIBE)
        await until("aws to say so too", lambda: not aws.group.named, lambda: aws.group)
        assert aws.counted(DESCRIBE) > before + 2
        before = aws.counted(DESCRIBE)
        await until("that to be heard", lambda: aws.counted(DESCRIBE) > before + 1, lambda: aws.calls)
        # And then it is believed again, even where the one that it takes back has not noticed.
        aws.mends, aws.group.primary = False, FIRST
        aws.group.members[FIRST].start()
        await proxy.sees(node(aws, FIRST), node(aws, SECOND), node(aws, FIRST))


async def test_the_old_primary_that_aws_still_names_is_believed_only_where_the_new_one_is_none(
    aws: FakeElastiCache,
) -> None:
    """It restarted as a master, and AWS has neither noticed the promotion nor made it a replica."""
    aws.late_s, aws.mends = 3600.0, False
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        await proxy.promoter.promote(plan(aws))
        aws.group.members[FIRST].start()
        assert role(aws.group.members[FIRST]) == b"master"
        before = aws.counted(DESCRIBE)
        await until("aws to be asked again", lambda: aws.counted(DESCRIBE) > before + 3, lambda: aws.calls)
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
        aws.group.members[SECOND].kill()
        await proxy.sees(node(aws, FIRST), node(aws, SECOND), node(aws, FIRST))


async def test_a_candidate_that_aws_does_not_know_is_not_asked_for(aws: FakeElastiCache) -> None:
    strange = PromotionPlan("s0", 2, plan(aws).primary, NodeHealth("10.0.0.1:6379"), ())
    async with following(aws) as proxy:
        failed = await refused(proxy.promoter, strange)
        assert str(failed) == "aws knows no 10.0.0.1:6379 in the replication group"
    assert aws.counted(MODIFY) == 0


# --- TLS and AUTH -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "in front of a plain server"])
def encrypted(
    request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeElastiCache]:
    """A group whose nodes are only named by where they speak TLS; not every machine has a server that can."""
    with contextlib.ExitStack() as stack:
        ports = {}
        if request.param == "redis":
            fleet = stack.enter_context(redis_with_tls(authority, monkeypatch))
            for server in fleet.servers:
                keeper = stack.enter_context(reserve_port())
                ports[server.port] = keeper.getsockname()[1]
                admin(server, "CONFIG", "SET", "tls-port", str(ports[server.port]))
        else:
            fleet = stack.enter_context(Fleet(shards=1, replicas=2, options=options()))
            for server in fleet.servers:
                ports[server.port] = stack.enter_context(Hop(server.port, tls=authority.server(HOST))).port
        fake = stack.enter_context(FakeElastiCache(fleet, ports))
        fake.group.tls = "required"
        fake.require(TOKEN)
        yield fake


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.contextmanager
def redis_with_tls(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on PATH")
    monkeypatch.setenv(VARIABLE, binary)
    certificate, key = authority.server_files(HOST)
    tls = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no"]
    tls += ["--tls-ca-cert-file", str(authority.file)]
    with contextlib.ExitStack() as stack:
        try:
            fleet = stack.enter_context(Fleet(shards=1, replicas=2, options=[*tls, *options()]))
        except FleetError as exc:
            if "Bad directive" in str(exc):
                pytest.skip("this redis-server was built without TLS")
            raise
        yield fleet


async def test_over_tls_and_with_a_token_a_promotion_is_the_same(
    encrypted: FakeElastiCache, authority: Authority, tmp_path: Path
) -> None:
    aws = encrypted
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(TOKEN)
    aws.late_s = 3600.0  # so that only the servers themselves can say it
    backend = f'tls = true\ntls_ca = "{authority.file}"\npassword_file = "{file}"'
    async with following(aws, backend=backend) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[FIRST].kill()
        await proxy.promoter.promote(plan(aws))
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


# --- handing over -----------------------------------------------------------------------------------------------------


async def test_a_replica_in_step_takes_over_with_everything(aws: FakeElastiCache) -> None:
    aws.begin_s, aws.modifying_s = 0.1, 0.2
    first, second = aws.group.members[FIRST], aws.group.members[SECOND]
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        for number in range(100):
            first.ask("SET", f"key-{number}", number)
        await until("them to be there", lambda: second.ask("DBSIZE") == 100, lambda: second.ask("INFO", "replication"))
        first.ask("SET", "one-more", "v")
        await proxy.promoter.hand_over(plan(aws))
        assert (role(second), second.ask("DBSIZE")) == (b"master", 101)
        await until("the old one to follow", lambda: role(first) == b"slave", lambda: aws.group)
        await proxy.sees(node(aws, FIRST), node(aws, SECOND))
    assert aws.counted(MODIFY) == 1


async def test_a_replica_behind_its_primary_does_not_take_over(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        aws.group.members[SECOND].pause()
        aws.group.members[FIRST].ask("SET", "a", "b")
        with pytest.raises(PromotionFailed, match=f"{node(aws, SECOND)} is at 0 with link none, its primary at "):
            await proxy.promoter.hand_over(plan(aws))
        aws.group.members[SECOND].resume()
    assert aws.counted(MODIFY) == 0


async def test_a_replica_that_has_lost_its_primary_does_not_take_over(aws: FakeElastiCache) -> None:
    async with following(aws) as proxy:
        await proxy.sees(node(aws, FIRST))
        admin(aws.group.members[SECOND], "REPLICAOF", HOST, "1")
        with pytest.raises(PromotionFailed, match=f"{node(aws, SECOND)} is at [0-9]+ with link down"):
            await proxy.promoter.hand_over(plan(aws))
    assert aws.counted(MODIFY) == 0
