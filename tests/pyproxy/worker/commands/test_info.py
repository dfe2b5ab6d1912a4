"""INFO: what clients, exporters and dashboards read from it, whatever was seen of the shards."""

import datetime
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from redis._parsers.helpers import parse_info

from protocol.reply import decode
from pyproxy.fleet import Server
from pyproxy.messages import FillRate, NodeHealth, ShardHealth
from pyproxy.moves import MoveState
from pyproxy.worker.commands import info
from pyproxy.worker.commands.context import Context
from tests.pyproxy.worker.commands.stand_ins import count, health, worker
from tests.wire import exchange

read: Callable[[bytes], dict[str, Any]] = parse_info

# What node_redis, ioredis, valkey-glide, redis_exporter, Grafana's Redis dashboards, Datadog and redis-cli --stat read.
READ_BY_CLIENTS = [
    "redis_version",
    "redis_mode",
    "process_id",
    "run_id",
    "tcp_port",
    "uptime_in_seconds",
    "connected_clients",
    "maxclients",
    "blocked_clients",
    "used_memory",
    "used_memory_rss",
    "maxmemory",
    "loading",
    "total_connections_received",
    "total_commands_processed",
    "instantaneous_ops_per_sec",
    "total_net_input_bytes",
    "total_net_output_bytes",
    "rejected_connections",
    "expired_keys",
    "evicted_keys",
    "keyspace_hits",
    "keyspace_misses",
    "total_error_replies",
    "role",
    "connected_slaves",
    "used_cpu_sys",
    "used_cpu_user",
    "cluster_enabled",
    "proxy_version",
    "hot_path",
    "workers",
    "shards",
    "shards_down",
    "proxy_backoff_seconds",
]


def parsed(context: Context, *sections: bytes) -> dict[str, Any]:
    """The fields as redis-py's own parser reads them."""
    return read(info.render(sections, context))


def titles(text: bytes) -> list[str]:
    return [line[2:].decode() for line in text.split(b"\r\n") if line.startswith(b"# ")]


def reply(server: Server, *sections: str) -> bytes:
    """INFO of a real server that has a key and an error on its record."""
    text = decode(exchange(server.port, " ".join(["INFO", *sections, "\r\n"]).encode()))
    assert isinstance(text, bytes)
    return text


def seen(server: Server, name: str) -> ShardHealth:
    """A real server as the parent sees it."""
    lines = reply(server, "everything").decode().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return health(name, fields, keys=1)


NOTHING_SEEN: dict[str, list[ShardHealth]] = {
    "before the first look": [],
    "all shards down from the start": [health(name, reachable=False) for name in ("s0", "s1", "s2")],
}


@pytest.mark.parametrize("healths", NOTHING_SEEN.values(), ids=NOTHING_SEEN)
def test_what_clients_read_is_there_though_nothing_was_seen_of_any_shard(healths: list[ShardHealth]) -> None:
    with worker(*healths) as context:
        fields = parsed(context)
    assert [name for name in READ_BY_CLIENTS if name not in fields] == []
    assert fields["loading"] == 0
    assert fields["role"] == "master"
    assert fields["redis_version"] == "7.0.0"


def test_what_clients_read_is_there_when_all_shards_are_up(server: Server) -> None:
    with worker(*(seen(server, name) for name in ("s0", "s1", "s2"))) as context:
        fields = parsed(context)
    assert [name for name in READ_BY_CLIENTS if name not in fields] == []
    assert fields["used_memory"] > 0


def test_loading_is_never_told(server: Server) -> None:
    with worker(health("s0", {"loading": 1, "async_loading": 1})) as context:
        assert parsed(context)["loading"] == 0


@pytest.mark.parametrize("shown", [[], ["all"], ["everything"], ["default"]])
def test_the_sections_are_those_of_redis_in_its_order_and_one_of_the_proxy(server: Server, shown: list[str]) -> None:
    with worker(seen(server, "s0")) as context:
        ours = titles(info.render([each.encode() for each in shown], context))
    later = {"TLS", "Cluster Info", "Scripting Engines"}  # sections that Redis 7.0 has not
    theirs = [title for title in titles(reply(server, *shown)) if title not in later]
    assert [title for title in ours if title != "Proxy"] == theirs
    assert "Proxy" in ours


@pytest.mark.parametrize(
    "asked", [["server"], ["REPLICATION"], ["keyspace", "server", "keyspace"], ["nosuch"], ["nosuch", "cpu"]]
)
def test_only_the_sections_that_were_asked_for_are_told(server: Server, asked: list[str]) -> None:
    with worker(health("s0")) as context:
        assert titles(info.render([each.encode() for each in asked], context)) == titles(reply(server, *asked))


def test_the_default_sections_can_be_asked_for_with_another_one() -> None:
    with worker() as context:
        assert set(titles(info.render([b"default", b"commandstats"], context))) == {*info.SECTIONS} - {"Latencystats"}


def test_a_section_that_does_not_exist_is_an_empty_text() -> None:
    with worker() as context:
        assert info.render([b"nosuch"], context) == b""


def test_every_field_outside_the_proxys_own_section_is_one_that_servers_have(server: Server) -> None:
    redis_mode = {"redis_mode"}  # Valkey calls it server_mode; clients look for Redis' name
    theirs = read(reply(server, "everything"))
    with worker(seen(server, "s0")) as context:
        ours = parsed(context, *(title.lower().encode() for title in info.SECTIONS if title != "Proxy"))
    assert set(ours) - set(theirs) - redis_mode == {"db0"} - set(theirs)


def test_lines_end_in_crlf_and_sections_are_set_apart_by_an_empty_line(server: Server) -> None:
    with worker() as context:
        text = info.render([b"cluster", b"cpu"], context)
    assert text.endswith(b"\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n")
    assert text.count(b"\n") == text.count(b"\r\n")
    assert reply(server, "cluster", "cpu").endswith(b"\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n")


# --- sums -------------------------------------------------------------------------------------------------------------


def test_clients_and_commands_are_those_of_all_workers() -> None:
    with worker(workers=2) as context:
        count(
            context.page, 0, clients=3, accepted=10, commands=100, errors=5, bytes_in=1000, bytes_out=2000, rejected=1
        )
        count(
            context.page, 1, clients=4, accepted=20, commands=200, errors=6, bytes_in=3000, bytes_out=4000, rejected=2
        )
        fields = parsed(context)
    expected = {
        "connected_clients": 7,
        "total_connections_received": 30,
        "total_commands_processed": 300,
        "total_error_replies": 11,
        "total_net_input_bytes": 4000,
        "total_net_output_bytes": 6000,
        "rejected_connections": 3,
    }
    assert {name: fields[name] for name in expected} == expected


def test_memory_hits_and_evictions_are_added_up_over_the_shards() -> None:
    names = ("used_memory", "used_memory_rss", "maxmemory", "evicted_keys", "sync_full", "keyspace_hits", "total_forks")
    with worker(health("s0", dict.fromkeys(names, 100)), health("s1", dict.fromkeys(names, 2000))) as context:
        fields = parsed(context)
    assert {name: fields[name] for name in names} == dict.fromkeys(names, 2100)
    assert fields["used_memory_human"] == "2.05K"


def test_there_is_no_limit_of_memory_if_one_shard_has_none() -> None:
    with worker(health("s0", {"maxmemory": 100}), health("s1", {"maxmemory": 0})) as context:
        assert parsed(context)["maxmemory"] == 0


def test_policies_that_differ_are_all_told() -> None:
    policies = ("allkeys-lru", "noeviction", "allkeys-lru")
    with worker(*(health(f"s{at}", {"maxmemory_policy": policy}) for at, policy in enumerate(policies))) as context:
        assert parsed(context)["maxmemory_policy"] == "allkeys-lru/noeviction"


def test_keys_are_added_up_per_database_and_their_lifetime_is_weighted() -> None:
    def keyspace(name: str, databases: Mapping[int, tuple[int, int, int]]) -> ShardHealth:
        counts = {db: dict(zip(("keys", "expires", "avg_ttl"), each, strict=True)) for db, each in databases.items()}
        return ShardHealth(name, "127.0.0.1:7001", True, "", {}, counts, "")

    healths = keyspace("s0", {0: (10, 1, 1000), 3: (1, 0, 0)}), keyspace("s1", {0: (5, 3, 2000), 9: (0, 0, 0)})
    with worker(*healths) as context:
        fields = parsed(context, b"keyspace")
    assert fields == {
        "db0": {"keys": 15, "expires": 4, "avg_ttl": 1750},
        "db3": {"keys": 1, "expires": 0, "avg_ttl": 0},
    }


def test_what_newer_servers_say_of_a_database_is_added_up_too() -> None:
    def keyspace(name: str, more: Mapping[str, int]) -> ShardHealth:
        counts = {0: {"keys": 2, "expires": 0, "avg_ttl": 0, **more}}
        return ShardHealth(name, "127.0.0.1:7001", True, "", {}, counts, "")

    volatile = {"keys_with_volatile_items": 3}
    with worker(keyspace("s0", {}), keyspace("s1", volatile), keyspace("s2", volatile)) as context:
        assert b"db0:keys=6,expires=0,avg_ttl=0,keys_with_volatile_items=6\r\n" in info.render([b"keyspace"], context)


def test_the_calls_of_a_command_are_added_up_over_the_shards() -> None:
    one = "calls=2,usec=10,usec_per_call=5.00,rejected_calls=1,failed_calls=0"
    two = "calls=1,usec=2,usec_per_call=2.00,rejected_calls=0,failed_calls=4"
    with worker(
        health("s0", {"cmdstat_get": one, "errorstat_ERR": "count=3"}), health("s1", {"cmdstat_get": two})
    ) as context:
        text = info.render([b"commandstats", b"errorstats"], context)
    assert b"cmdstat_get:calls=3,usec=12,usec_per_call=4.00,rejected_calls=1,failed_calls=4\r\n" in text
    assert b"errorstat_ERR:count=3\r\n" in text


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        (["7.2.4", "7.0.15", "7.0.9"], "7.0.9"),
        (["10.0.0", "9.1.2"], "9.1.2"),
        (["odd", "7.2.4"], "7.2.4"),
        (["odd"], "7.0.0"),
    ],
)
def test_the_version_is_the_lowest_of_the_backends(versions: list[str], lowest: str) -> None:
    with worker(*(health(f"s{at}", {"redis_version": version}) for at, version in enumerate(versions))) as context:
        assert parsed(context)["redis_version"] == lowest


def test_cpu_time_is_that_of_the_workers_that_run() -> None:
    with worker(workers=2) as context:
        assert parsed(context, b"cpu")["used_cpu_user"] == 0
        count(context.page, 1, pid=os.getpid())
        fields = parsed(context, b"cpu")
    spent = os.times()
    assert 0 < fields["used_cpu_user"] <= spent.user + 0.02
    assert fields["used_cpu_sys"] <= spent.system + 0.02


def test_a_worker_that_is_gone_has_no_cpu_time() -> None:
    with worker() as context:
        count(context.page, 0, pid=2**22 + 1)  # beyond the largest pid
        assert parsed(context, b"cpu")["used_cpu_user"] == 0


# --- the proxy's own section ------------------------------------------------------------------------------------------


def test_each_shard_has_a_line_with_its_node_its_state_and_its_size() -> None:
    misplaced = ShardHealth("s2", "127.0.0.1:7003", True, "", {"used_memory": "7"}, {}, "holds keys of s0")
    seen_shards = (
        health("s0", {"used_memory": 100}, keys=4),
        health("s1", {"used_memory": 50}, reachable=False, keys=2),
        misplaced,
    )
    alone = {"replicas": 0, "unfenced": 0}
    with worker(*seen_shards, shards=4) as context:
        fields = parsed(context, b"proxy")
    assert fields["shard_s0"] == {"node": "127.0.0.1:7001", "state": "up", "used_memory": 100, "keys": 4} | alone
    assert fields["shard_s1"]["state"] == "down"
    assert fields["shard_s2"]["state"] == "misplaced"
    unknown = {"node": "127.0.0.1:7004", "state": "unknown", "used_memory": 0, "keys": 0}
    assert fields["shard_s3"] == unknown | alone
    assert fields["shards"] == 4
    assert fields["shards_down"] == 1


def test_each_shard_has_a_line_of_how_full_it_is_how_fast_it_fills_and_when_it_is_full() -> None:
    limited = {"used_memory": 700, "maxmemory": 1000, "total_system_memory": 8000}
    soon = str(datetime.datetime.fromtimestamp(time.time(), datetime.UTC).date() + datetime.timedelta(days=10))
    seen_shards = (
        replace(health("s0", limited), fill_rate=FillRate(30, 86_400.0)),
        replace(health("s1", limited | {"maxmemory": 0}), fill_rate=FillRate(-5, 86_400.0)),
        health("s2"),
    )
    with worker(*seen_shards, shards=4) as context:
        fields = parsed(context, b"proxy")
    day = fields["shard_s0_memory"].pop("full_on")
    assert soon <= day, "it was midnight in between"
    assert fields["shard_s0_memory"] == {"limit": 1000, "limit_of": "maxmemory", "fill_bytes_per_day": 30}
    assert fields["shard_s1_memory"] == {
        "limit": 8000,
        "limit_of": "total_system_memory",
        "fill_bytes_per_day": -5,
        "full_on": "",
    }
    assert fields["shard_s2_memory"] == {"limit": 0, "limit_of": "", "fill_bytes_per_day": "", "full_on": ""}
    assert "shard_s3_memory" not in fields


def test_each_move_that_is_under_way_has_a_line() -> None:
    move = MoveState("m1", "s0", "s1", "copying", 0.421, True, 12.5)
    with worker(health("s0"), moves=[move]) as context:
        fields = parsed(context, b"proxy")
    assert fields["moves"] == 1
    line = {"source": "s0", "destination": "s1", "phase": "copying", "share": 0.421, "paused": 1}
    assert fields["move_m1"] == line | {"longest_hold_ms": 12.5}
    with worker() as context:
        assert parsed(context, b"proxy")["moves"] == 0, "nothing was seen yet"


def test_the_seconds_to_stay_away_grow_with_the_outage() -> None:
    down = ShardHealth("s1", "127.0.0.1:7002", False, "connection refused", {}, {}, "", 105.0, since=98.5)
    with worker(health("s0"), down) as context:
        assert parsed(context, b"proxy")["proxy_backoff_seconds"] == 12
    with worker(health("s0"), health("s1")) as context:
        assert parsed(context, b"proxy")["proxy_backoff_seconds"] == 0


def said_of(node: NodeHealth, *replicas: NodeHealth) -> dict[str, Any]:
    """INFO's lines of a shard whose servers were seen like this."""
    shard = ShardHealth("s0", node.node, True, "", {}, {}, "", nodes=(node, *replicas))
    with worker(shard) as context:
        return parsed(context, b"proxy")


MASTER = NodeHealth("127.0.0.1:7001", True, "", answered_at=1.0, role="master", good_replicas=1)
SLAVE = NodeHealth("127.0.0.1:7101", True, "", answered_at=1.0, role="slave", link="up", lag_s=1, offset=42)


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "up"),
        ({"role": "slave"}, "demoted"),
        ({"lost_keys": 3}, "restarted-empty"),
        ({"misconf": "MISCONF Errors writing to the AOF file"}, "misconf"),
        ({"noreplicas": "it has 0 replicas in step"}, "noreplicas"),
        ({"oom": "it uses 9 bytes of 8"}, "oom"),
    ],
)
def test_a_primary_that_answers_and_is_none_any_more_is_not_up(changed: dict[str, Any], state: str) -> None:
    assert said_of(replace(MASTER, **changed))["shard_s0"]["state"] == state


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "up"),
        ({"link": "down"}, "link-down"),
        ({"link": "down", "syncing": True}, "syncing"),
        ({"role": "master"}, "master"),
        ({"reachable": False}, "down"),
        ({"reachable": False, "loading": True}, "loading"),
    ],
)
def test_each_replica_has_a_line_with_its_node_its_state_and_its_lag(changed: dict[str, Any], state: str) -> None:
    line = {"node": "127.0.0.1:7101", "state": state, "lag": 1, "offset": 42, "unfenced": 1}
    assert said_of(MASTER, replace(SLAVE, **changed))["shard_s0_replica0"] == line


def test_the_servers_of_a_shard_that_are_unfenced_are_counted_where_there_are_replicas() -> None:
    assert said_of(MASTER, SLAVE, SLAVE)["shard_s0"]["unfenced"] == 2
    assert said_of(MASTER, replace(SLAVE, good_replicas=0))["shard_s0"]["unfenced"] == 0
    assert said_of(replace(MASTER, good_replicas=-1))["shard_s0"]["unfenced"] == 0


def test_the_age_of_what_is_told_of_the_shards_is_told() -> None:
    with worker(health("s0")) as context:
        assert parsed(context, b"proxy")["health_age_seconds"] == 5.0
    with worker() as context:
        assert parsed(context, b"proxy")["health_age_seconds"] == -1


# --- whatever a backend says ------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    [
        "redis_version",
        "used_memory",
        "used_memory_rss",
        "maxmemory",
        "maxmemory_policy",
        "rdb_last_save_time",
        "latest_fork_usec",
        "cmdstat_get",
        "errorstat_ERR",
        "keyspace_hits",
        "aof_enabled",
    ]
)
VALUES = st.text(max_size=12) | st.sampled_from(
    ["-1", "1e3", "9" * 400, "\udcff", "calls=1", "calls=x,usec=,=", "7..2", "7.\xb2.0"]
)
LOOKS = st.builds(
    ShardHealth,
    name=st.sampled_from(["s0", "s1", "gone"]),
    node=st.just("127.0.0.1:7001"),
    reachable=st.booleans(),
    error=st.text(max_size=5),
    info=st.dictionaries(FIELDS, VALUES),
    keyspace=st.dictionaries(st.integers(0, 15), st.dictionaries(st.sampled_from(["keys", "expires"]), st.integers(0))),
    misplaced=st.sampled_from(["", "holds keys of s0"]),
)


@given(st.lists(LOOKS, min_size=1, max_size=4))
def test_nothing_that_a_backend_said_keeps_it_from_answering(healths: list[ShardHealth]) -> None:
    with worker(*healths) as context:
        fields = parsed(context, b"all")
    assert fields["loading"] == 0
    assert fields["role"] == "master"
