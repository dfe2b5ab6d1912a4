from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyproxy.config import Config, ConfigErrors, ElastiCache
from pyproxy.control.failover.promoters import replication_groups
from pyproxy.control.failover.promoters.replication_groups import Api, ApiError, Group, Member, discover
from pyproxy.fleet import HOST, Fleet, reserve_port
from pyproxy.shard_map import Node
from tests.elasticache import FakeElastiCache, Fault, Refusal, options, pretend_credentials

MODIFY, DESCRIBE = "ModifyReplicationGroup", "DescribeReplicationGroups"

PRIMARY, REPLICA = Node("a.cache.amazonaws.com", 6379), Node("b.cache.amazonaws.com", 6379)
MEMBERS = Member("rg-001", PRIMARY, True), Member("rg-002", REPLICA, False)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=2, replicas=1, options=options()) as fleet:
        yield fleet


@pytest.fixture
def aws(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeElastiCache]:
    pretend_credentials(monkeypatch)
    monkeypatch.setattr(replication_groups, "DESCRIBE_ATTEMPTS", 1)
    monkeypatch.setattr(replication_groups, "MODIFY_S", 0.2)
    with FakeElastiCache(fleet) as fake:
        yield fake


@pytest.fixture
def api(aws: FakeElastiCache) -> Api:
    return Api(ElastiCache(region="eu-west-1", endpoint_url=aws.url))


def config(url: str, groups: list[str], more: str = "") -> Config:
    text = f'{more}\n[promotion]\npromoter = "elasticache"\n[elasticache]\nregion = "r"\nendpoint_url = "{url}"\n'
    for index, (group, slots) in enumerate(zip(groups, ("0-8191", "8192-16383"), strict=True)):
        text += f'[[shards]]\nname = "s{index}"\nreplication_group = "{group}"\nslots = ["{slots}"]\n'
    return Config.parse(text.encode())


def said(**changed: Any) -> dict[str, Any]:
    """An entry of ReplicationGroups, as boto3 gives it."""
    members = [
        {
            "CacheClusterId": each.cluster,
            "ReadEndpoint": {"Address": each.node.host, "Port": each.node.port},
            "CurrentRole": "primary" if each.primary else "replica",
        }
        for each in MEMBERS
    ]
    nodes = {"NodeGroupId": "0001", "Status": "available", "NodeGroupMembers": members}
    return {"ReplicationGroupId": "rg", "Status": "available", "NodeGroups": [nodes], **changed}


# --- what AWS says ----------------------------------------------------------------------------------------------------


def test_a_group_is_its_members_by_their_own_endpoints() -> None:
    group = Group.parse(said())
    assert group == Group("rg", "available", MEMBERS)
    assert (group.primary, group.idle, group.refusal) == (PRIMARY, True, "")
    assert (group.cluster_of(str(REPLICA)), group.cluster_of("c:1")) == ("rg-002", "")
    assert (group.node_of("rg-002"), group.node_of("")) == (REPLICA, None)


def test_a_member_whose_endpoint_is_not_made_yet_is_left_out() -> None:
    group = said()
    del group["NodeGroups"][0]["NodeGroupMembers"][1]["ReadEndpoint"]
    assert Group.parse(group).members == MEMBERS[:1]


def test_a_group_that_is_being_made_has_no_members() -> None:
    group = Group.parse({"ReplicationGroupId": "rg", "Status": "creating"})
    assert (group.status, group.members, group.primary) == ("creating", (), None)


def test_a_group_is_idle_only_if_its_nodes_are_and_nothing_is_pending() -> None:
    assert not Group.parse(said(Status="modifying")).idle
    nodes = said()["NodeGroups"][0] | {"Status": "modifying"}
    assert Group.parse(said(NodeGroups=[nodes])).status == "modifying"
    pending = Group.parse(said(PendingModifiedValues={"PrimaryClusterId": "rg-002"}))
    assert (pending.pending, pending.idle) == ("rg-002", False)


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"AutomaticFailover": "enabled"}, "automatic failover is enabled: aws promotes"),
        ({"AutomaticFailover": "enabling"}, "automatic failover is enabling: aws promotes"),
        ({"AutomaticFailover": "disabling"}, ""),
        ({"MultiAZ": "enabled"}, "multi-az is enabled"),
        ({"ClusterEnabled": True}, "cluster mode is enabled"),
        ({"NodeGroups": [{}, {}]}, "cluster mode is enabled"),
    ],
)
def test_who_may_not_promote_is_said(changed: dict[str, Any], refusal: str) -> None:
    assert Group.parse(said(**changed)).refusal == refusal


@pytest.mark.parametrize(
    ("changed", "tls"),
    [
        ({"TransitEncryptionEnabled": False}, "off"),
        ({"TransitEncryptionEnabled": True}, "required"),
        ({"TransitEncryptionEnabled": True, "TransitEncryptionMode": "preferred"}, "preferred"),
    ],
)
def test_tls_is_what_the_nodes_ask_for(changed: dict[str, Any], tls: str) -> None:
    assert Group.parse(said(**changed)).tls == tls


# --- the calls --------------------------------------------------------------------------------------------------------


def test_all_groups_are_described_page_by_page(aws: FakeElastiCache, api: Api) -> None:
    one = aws.groups["rg-s0"]
    aws.groups |= {name: replace(one, id=name) for name in (f"rg-{number:03}" for number in range(150))}
    assert api.describe().keys() == aws.groups.keys()
    assert aws.counted(DESCRIBE) == 2


def test_a_group_that_is_asked_for_alone_is_described_alone(aws: FakeElastiCache, api: Api) -> None:
    assert api.describe("rg-s1").keys() == {"rg-s1"}
    with pytest.raises(ApiError, match="ReplicationGroupNotFoundFault: ReplicationGroup rg-x not found"):
        api.describe("rg-x")


@pytest.mark.parametrize(
    ("fault", "code", "unknown"),
    [
        (Fault(Refusal("Throttling", "Rate exceeded")), "Throttling", False),
        (Fault(Refusal("InternalFailure", "oops", 500)), "InternalFailure", True),
        (Fault(silent=True), "", True),
        (Fault(silent=True, delay_s=1.0), "", True),
        (Fault(lost=True), "", True),
    ],
    ids=["throttled", "500", "closed", "no answer in time", "answer lost"],
)
def test_a_promotion_is_sent_once_whatever_comes_of_it(
    aws: FakeElastiCache, api: Api, fault: Fault, code: str, unknown: bool
) -> None:
    aws.fail(MODIFY, fault, times=5)
    aws.begin_s = 3600.0
    with pytest.raises(ApiError) as failed:
        api.promote("rg-s0", "rg-s0-002")
    assert (failed.value.code, failed.value.unknown) == (code, unknown)
    assert aws.counted(MODIFY) == 1


def test_what_was_never_sent_has_no_unknown_outcome(aws: FakeElastiCache) -> None:
    with reserve_port() as keeper:
        nowhere = Api(ElastiCache(region="r", endpoint_url=f"http://{HOST}:{keeper.getsockname()[1]}"))
        with pytest.raises(ApiError, match="ModifyReplicationGroup: Could not connect") as failed:
            nowhere.promote("rg-s0", "rg-s0-002")
    assert not failed.value.unknown


def test_without_credentials_nothing_is_sent(aws: FakeElastiCache, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps those it found
    with pytest.raises(ApiError, match="Unable to locate credentials") as failed:
        api.promote("rg-s0", "rg-s0-002")
    assert not failed.value.unknown
    assert aws.calls == []


def test_an_endpoint_that_is_no_url_is_said() -> None:
    with pytest.raises(ApiError, match="elasticache: Invalid endpoint: nonsense"):
        Api(ElastiCache(region="r", endpoint_url="nonsense")).describe()


def test_a_parameter_of_the_servers_is_that_of_their_group(aws: FakeElastiCache, api: Api) -> None:
    many = {f"parameter-{number:03}": "x" for number in range(150)}
    aws.groups["rg-s0"].parameters = {**many, "notify-keyspace-events": "KEx<"}
    assert api.parameter("rg-s0", "notify-keyspace-events") == "KEx<"
    assert api.parameter("rg-s1", "notify-keyspace-events") == ""
    with pytest.raises(ApiError, match="not found"):
        api.parameter("rg-x", "notify-keyspace-events")


# --- at the start -----------------------------------------------------------------------------------------------------


def test_shards_that_are_written_as_a_group_get_its_nodes(aws: FakeElastiCache, fleet: Fleet) -> None:
    found = discover(config(aws.url, ["rg-s0", "rg-s1"]))
    assert [each.name for each in found] == ["s0", "s1"]
    for shard, live in zip(found, fleet.shards, strict=True):
        assert str(shard.primary) == live.primary.address
        assert [str(each) for each in shard.replicas] == [each.address for each in live.replicas]
        assert shard.slots in (((0, 8191),), ((8192, 16383),))
    assert aws.counted(DESCRIBE) == len(aws.calls) == 1


def test_where_all_nodes_are_written_aws_is_not_asked(aws: FakeElastiCache) -> None:
    text = f"""
        [promotion]
        promoter = "elasticache"
        [elasticache]
        endpoint_url = "{aws.url}"
        [[shards]]
        name = "s0"
        replication_group = "rg-s0"
        primary = "a:1"
        replicas = ["b:1"]
        slots = ["0-16383"]
    """
    written = Config.parse(text.encode())
    assert discover(written) == written.shards
    assert aws.calls == []


def test_all_that_is_wrong_with_the_groups_is_said(aws: FakeElastiCache) -> None:
    aws.groups["rg-s1"].cluster_enabled = True
    aws.groups["rg-s1"].tls = "required"
    aws.groups["rg-s1"].token = True
    with pytest.raises(ConfigErrors) as failed:
        discover(config(aws.url, ["rg-x", "rg-s1"]))
    assert failed.value.problems == [
        'shards[0].replication_group: expected a group of this account and region, got "rg-x", which is none',
        'shards[1].replication_group: expected a group with cluster mode disabled, got "rg-s1", where it is enabled',
        "backend.tls: expected true, as encryption in transit of rg-s1 is required, got false",
        'backend.password_file: expected a file, as rg-s1 asks for a token, got ""',
    ]


def test_tls_that_the_nodes_do_not_speak_is_said(aws: FakeElastiCache) -> None:
    aws.groups["rg-s1"].tls = "preferred"  # with it and without it
    with pytest.raises(ConfigErrors) as failed:
        discover(config(aws.url, ["rg-s0", "rg-s1"], "[backend]\ntls = true"))
    assert failed.value.problems == ["backend.tls: expected false, as encryption in transit of rg-s0 is off, got true"]


def test_a_node_of_two_shards_is_said(aws: FakeElastiCache) -> None:
    one = aws.groups["rg-s0"]
    aws.groups["rg-s1"] = replace(one, id="rg-s1")
    with pytest.raises(ConfigErrors, match=f"expected nodes of their own, got {one.members[one.primary].address}"):
        discover(config(aws.url, ["rg-s0", "rg-s1"]))


def test_an_api_that_does_not_answer_is_said(aws: FakeElastiCache) -> None:
    aws.fail(DESCRIBE, Fault(Refusal("AccessDenied", "not yours", 403)))
    with pytest.raises(ConfigErrors) as failed:
        discover(config(aws.url, ["rg-s0", "rg-s1"]))
    expected = "elasticache: expected an answer of AWS, got DescribeReplicationGroups: AccessDenied: not yours"
    assert failed.value.problems == [expected]
