"""ElastiCache end to end: a real proxy, real boto3, an API like AWS', and servers that refuse what AWS' refuse."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyproxy.fleet import Fleet, FleetError, Proxy, Table, wait_until
from pyproxy.hashing import slot
from tests.e2e.rig import Connection, error
from tests.elasticache import FakeElastiCache, Fault, Group, Refusal, options, pretend_credentials

MODIFY = "ModifyReplicationGroup"
GROUPS = ("rg-s0", "rg-s1")
KEYS = [str(number) for number in range(99)]
KEY = next(key for key in KEYS if slot(key.encode()) < 8192)  # of s0
OTHER = next(key for key in KEYS if slot(key.encode()) >= 8192)


@dataclass
class Cloud:
    """Two shards of AWS, of which the configuration names the groups alone, and the proxy in front of them."""

    fleet: Fleet
    aws: FakeElastiCache

    @contextlib.contextmanager
    def proxy(self, groups: tuple[str, str] = GROUPS, **promotion: float | str) -> Iterator[Proxy]:
        api: Table = {"region": "eu-west-1", "endpoint_url": self.aws.url, "trouble_poll_s": 0.1, "delay_s": 0.0}
        table = {"promoter": "elasticache", "down_after_s": 0.5, **promotion}
        admin = str(self.fleet.directory / "admin.sock")
        proxy = Proxy(self.fleet, None, 2, promotion=table, elasticache=api, http={"admin": admin})
        lines = proxy.config.read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith(("primary =", "replicas =")))
        for shard, group in zip(self.fleet.shards, groups, strict=True):
            text = text.replace(f'name = "{shard.name}"', f'name = "{shard.name}"\nreplication_group = "{group}"')
        proxy.config.write_text(text)
        with proxy:
            yield proxy


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """Nothing is tried on the servers that AWS forbids."""
    pretend_credentials(monkeypatch)
    with Fleet(shards=2, replicas=2, options=options()) as fleet, FakeElastiCache(fleet) as fake:
        yield Cloud(fleet, fake)
        assert fake.denied() == []


def write(conn: Connection, proxy: Proxy, value: str) -> None:
    """Again until it is taken."""
    said: object = None

    def written() -> bool:
        nonlocal said
        said = conn.ask("SET", KEY, value)
        return said == b"OK"

    wait_until("a write to be taken", written, lambda: f"{said}\n{proxy.tail(30)}")


def wait_available(group: Group) -> None:
    wait_until("aws to have finished", lambda: group.status == "available", lambda: str(group))


def test_a_primary_that_is_killed_is_replaced_by_one_call(cloud: Cloud) -> None:
    """However long AWS names the old one; the other shard notices nothing."""
    aws, group = cloud.aws, cloud.aws.groups["rg-s0"]
    aws.begin_s, aws.modifying_s, aws.late_s = 0.2, 0.4, 3600.0
    with cloud.proxy() as proxy, Connection(proxy.port) as conn:
        write(conn, proxy, "before")
        group.members["rg-s0-001"].kill()
        write(conn, proxy, "after")
        assert group.primary != "rg-s0-001"
        assert group.members[group.primary].ask("GET", KEY) == b"after"
        assert conn.ask("SET", OTHER, "v") == b"OK"
        assert aws.counted(MODIFY) == 1
        assert "+switch-master shard=s1" not in proxy.log.read_text()


def test_with_automatic_failover_the_proxy_follows_and_asks_for_nothing(cloud: Cloud) -> None:
    aws, group = cloud.aws, cloud.aws.groups["rg-s0"]
    group.automatic_failover = group.multi_az = "enabled"
    aws.detect_s, aws.modifying_s = 1.0, 0.2
    with cloud.proxy() as proxy, Connection(proxy.port) as conn:
        write(conn, proxy, "before")
        group.members["rg-s0-001"].kill()
        write(conn, proxy, "after")
        assert group.members[group.primary].ask("GET", KEY) == b"after"
        assert aws.counted(MODIFY) == 0


def test_an_operator_hands_a_shard_over_without_an_error(cloud: Cloud) -> None:
    aws, group = cloud.aws, cloud.aws.groups["rg-s0"]
    aws.begin_s, aws.modifying_s = 0.1, 0.2
    with cloud.proxy(on_promotion="hold") as proxy, Connection(proxy.port) as conn:
        write(conn, proxy, "0")
        command = [sys.executable, "-m", "pyproxy", "promote", "s0", "--config", str(proxy.config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as promoting:
            written = 0
            while promoting.poll() is None:
                assert conn.ask("INCR", KEY) == written + 1
                written += 1
            said = promoting.stdout.read() if promoting.stdout else ""
        assert promoting.returncode == 0, f"{said}\n{proxy.tail(30)}"
        wait_available(group)
        assert group.primary != "rg-s0-001"
        assert conn.ask("INCR", KEY) == written + 1
        assert group.members[group.primary].ask("GET", KEY) == b"%d" % (written + 1)
        assert aws.counted(MODIFY) == 1


def test_a_group_that_is_not_there_is_a_problem_of_the_configuration(cloud: Cloud) -> None:
    expected = 'shards.1..replication_group: expected a group of this account and region, got "rg-x", which is none'
    with pytest.raises(FleetError, match=f"(?s)status 78.*{expected}"), cloud.proxy(("rg-s0", "rg-x")):
        pass


SETTING = "notify-keyspace-events"


def test_a_client_may_set_what_the_parameter_groups_say_and_nothing_else(cloud: Cloud) -> None:
    for group in cloud.aws.groups.values():
        group.parameters[SETTING] = "Ex"
    with cloud.proxy() as proxy, Connection(proxy.port) as conn:
        says = [SETTING.encode(), b"xE"]
        wait_until("the groups to be read", lambda: conn.ask("CONFIG", "GET", SETTING) == says, proxy.tail)
        wait_until("both", lambda: conn.ask("CONFIG", "SET", SETTING, "Ex") == b"OK", proxy.tail)
        refused = error(conn.ask("CONFIG", "SET", SETTING, "KEA"))
        assert refused.startswith(f"ERR {SETTING} of shard s0 is 'xE' by its parameter group, and cannot be set by")
        assert conn.ask("CONFIG", "GET", SETTING) == says


def test_while_a_parameter_group_cannot_be_read_clients_shall_come_again(cloud: Cloud) -> None:
    cloud.aws.fail("DescribeCacheParameters", Fault(Refusal("AccessDenied", "not authorized", 403)), times=1000)
    with cloud.proxy() as proxy, Connection(proxy.port) as conn:
        said = "+config-set-failed shard=s0 setting=notify-keyspace-events why="
        wait_until("the failure in the log", lambda: said in proxy.log.read_text(), proxy.tail)
        assert error(conn.ask("CONFIG", "SET", SETTING, "Ex")).startswith(f"TRYAGAIN {SETTING} of shard s0: ")
