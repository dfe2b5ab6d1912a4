"""INFO: Redis' sections, over all shards and all workers.

The text is made from the shared page of all workers and the parent's last health check (at most 2 s old while clients
ask). So INFO asks no server and never waits. A missing number is zero, as clients read INFO before they start.

Clients, connections, commands and traffic are those of the proxy. Keys, memory and hits are sums over the primaries, by
their last health check. Percentiles of several servers have no sum, and are left out.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from pyproxy import filling
from pyproxy.health import backoff_s, integer, key_count, replica_state, state, unfenced
from pyproxy.messages import NodeHealth, ShardHealth
from pyproxy.worker.commands.context import Context
from pyproxy.worker.pubsub.registry import ChannelKind

OLDEST_VERSION = "7.0.0"
"""The version before the first health check: the oldest Redis of the built-in command table."""

Lines = Iterable[str]


def render(asked: Sequence[bytes], context: Context) -> bytes:
    """The text of INFO, in CRLF lines, for these section names (in any case; no name: the default sections).

    `all` and `everything` are both all sections, as modules have none here. Unknown names are left out, so the text may
    be empty.
    """
    names = {name.lower() for name in asked} or {b"default"}
    everything = bool(names & {b"all", b"everything"})
    text = []
    for title, section in SECTIONS.items():
        by_default = title not in _ON_REQUEST and b"default" in names
        if everything or by_default or title.lower().encode() in names:
            text.append("".join(f"{line}\r\n" for line in (f"# {title}", *section(context))))
    return "\r\n".join(text).encode(errors="replace")


def lowest_version(healths: Iterable[ShardHealth]) -> str:
    """The lowest `redis_version` of the primaries: all of them have the commands of that version."""
    versions = [health.info["redis_version"] for health in healths if "redis_version" in health.info]
    numbered = [(parts, version) for version in versions if (parts := _version_parts(version))]
    return min(numbered)[1] if numbered else OLDEST_VERSION


# --- the proxy's own --------------------------------------------------------------------------------------------------


def _server(context: Context) -> Lines:
    system = os.uname()
    now = time.time()
    uptime = max(0, int(now - context.setup.parent_started))
    run_id = hashlib.sha1(f"{context.setup.listen} {context.setup.parent_started}".encode()).hexdigest()
    return (
        f"redis_version:{lowest_version(context.healths())}",
        "redis_git_sha1:00000000",
        "redis_git_dirty:0",
        "redis_mode:standalone",
        f"os:{system.sysname} {system.release} {system.machine}",
        "arch_bits:64",
        "multiplexing_api:epoll",
        f"process_id:{os.getppid()}",  # the parent, which all workers have in common
        f"run_id:{run_id}",
        f"tcp_port:{context.setup.listen.rpartition(':')[2]}",
        f"server_time_usec:{int(now * 1_000_000)}",
        f"uptime_in_seconds:{uptime}",
        f"uptime_in_days:{uptime // 86400}",
    )


def _clients(context: Context) -> Lines:
    return (
        f"connected_clients:{context.page.total('clients')}",
        "cluster_connections:0",
        f"maxclients:{context.setup.config.limits.max_clients}",
        f"blocked_clients:{context.page.total('blocked_clients')}",
        "tracking_clients:0",
        f"pubsub_clients:{context.page.total('subscribers')}",
    )


def _cpu(context: Context) -> Lines:
    system, user = _cpu_seconds(context.page.get(index, "pid") for index in range(context.page.workers))
    return (
        f"used_cpu_sys:{system:.6f}",
        f"used_cpu_user:{user:.6f}",
        "used_cpu_sys_children:0.000000",
        "used_cpu_user_children:0.000000",
    )


def _cpu_seconds(pids: Iterable[int]) -> tuple[float, float]:
    """System and user time of these processes (proc(5), /proc/pid/stat). An ended process counts as zero."""
    ticks = [0, 0]
    for pid in filter(None, pids):
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()  # from field 3 on, as the name may have any character
        except OSError:
            continue
        ticks[0] += int(fields[12])
        ticks[1] += int(fields[11])
    per_second = os.sysconf("SC_CLK_TCK")
    return ticks[0] / per_second, ticks[1] / per_second


def _proxy(context: Context) -> Iterator[str]:
    healths = {health.name: health for health in context.healths()}
    page = context.page
    yield f"proxy_version:{context.setup.version}"
    yield "hot_path:compiled"
    yield f"workers:{context.setup.workers}"
    yield f"worker:{context.setup.index}"
    yield f"shards:{len(context.topology.shards)}"
    yield f"shards_down:{sum(not health.reachable and state(health) != 'busy' for health in healths.values())}"
    yield f"topology_version:{context.topology.version}"
    yield f"health_age_seconds:{context.now() - context.health.at:.1f}" if context.health else "health_age_seconds:-1"
    yield f"proxy_backoff_seconds:{backoff_s(context.healths(), context.now())}"
    for name in ("backend_connections", "inflight", "buffered_bytes", "shed", "timeouts", "uncertain", "splits"):
        yield f"{name}:{page.total(name)}"
    yield f"protocol_errors:{page.total('protocol_errors')}"
    yield f"out_of_step:{page.total('out_of_step')}"
    yield f"leased_connections:{page.total('leased_connections')}"
    yield f"held_requests:{page.total('held_requests')}"
    yield f"held_total:{page.total('held')}"
    for name in ("drained", "refused_held", "dropped_client_gone", "refused_at_once", "withheld_writes"):
        yield f"{name}:{page.total(name)}"
    for shard in context.topology.shards:
        health = healths.get(shard.name)
        yield f"shard_{shard.name}:{_shard(health, str(shard.primary))}"
        if health is not None:
            yield f"shard_{shard.name}_memory:{_fullness(health)}"
        for index, node in enumerate(health.nodes[1:] if health else ()):
            yield f"shard_{shard.name}_replica{index}:{_replica(node)}"
    moves = context.health.moves if context.health is not None else []
    yield f"moves:{len(moves)}"
    for move in moves:
        yield (
            f"move_{move.id}:source={move.source},destination={move.destination},phase={move.phase},"
            f"share={move.share:g},paused={move.paused:d},longest_hold_ms={move.longest_hold_ms:g}"
        )


def _shard(health: ShardHealth | None, primary: str) -> str:
    if health is None:
        return f"node={primary},state=unknown,used_memory=0,keys=0,replicas=0,unfenced=0"
    used = integer(health.info.get("used_memory"))
    return (
        f"node={health.node},state={state(health)},used_memory={used},keys={key_count(health)},"
        f"replicas={max(0, len(health.nodes) - 1)},unfenced={len(unfenced(health))}"
    )


def _fullness(health: ShardHealth) -> str:
    limit, limit_of = filling.limit(health)
    rate = health.fill_rate.bytes_per_day if health.fill_rate is not None else ""
    return f"limit={limit},limit_of={limit_of},fill_bytes_per_day={rate},full_on={filling.full_on(health, time.time())}"


def _replica(health: NodeHealth) -> str:
    lag, offset, bare = health.lag_s, health.offset, int(health.unfenced)
    return f"node={health.node},state={replica_state(health)},lag={lag},offset={offset},unfenced={bare}"


# --- sums over the shards ---------------------------------------------------------------------------------------------


def _memory(context: Context) -> Lines:
    healths = context.healths()
    used, resident = _sum(healths, "used_memory"), _sum(healths, "used_memory_rss")
    peak, limit = _sum(healths, "used_memory_peak"), maxmemory(healths)
    return (
        f"used_memory:{used}",
        f"used_memory_human:{_human(used)}",
        f"used_memory_rss:{resident}",
        f"used_memory_rss_human:{_human(resident)}",
        f"used_memory_peak:{peak}",
        f"used_memory_peak_human:{_human(peak)}",
        f"used_memory_lua:{_sum(healths, 'used_memory_lua')}",
        f"maxmemory:{limit}",
        f"maxmemory_human:{_human(limit)}",
        f"maxmemory_policy:{maxmemory_policy(healths)}",
        f"mem_fragmentation_ratio:{resident / used if used else 0:.2f}",
        *(f"{name}:{_sum(healths, name)}" for name in _OF_MEMORY),
        f"mem_allocator:{_all_of(healths, 'mem_allocator')}",
        f"active_defrag_running:{_any(healths, 'active_defrag_running')}",
        # a text is on each shard that has run it, a function on all shards: the largest number, not the sum
        *(f"{name}:{max((integer(health.info.get(name)) for health in healths), default=0)}" for name in _OF_CODE),
    )


_OF_MEMORY = (
    "used_memory_overhead",
    "used_memory_startup",
    "used_memory_dataset",
    "allocator_allocated",
    "allocator_active",
    "allocator_resident",
    "mem_fragmentation_bytes",
    "mem_not_counted_for_evict",
    "mem_replication_backlog",
    "mem_clients_slaves",
    "mem_clients_normal",
    "mem_aof_buffer",
    "lazyfree_pending_objects",
    "lazyfreed_objects",
)
_OF_CODE = ("number_of_cached_scripts", "number_of_functions", "number_of_libraries")


def maxmemory(healths: Sequence[ShardHealth]) -> int:
    """The bytes that all shards together may use; 0 (no limit) if one of them has no limit."""
    limits = [integer(health.info.get("maxmemory")) for health in healths]
    return sum(limits) if all(limits) else 0


def maxmemory_policy(healths: Iterable[ShardHealth]) -> str:
    """The policy of the primaries. Different policies are joined by `/`."""
    return _all_of(healths, "maxmemory_policy") or "noeviction"


def _all_of(healths: Iterable[ShardHealth], field: str) -> str:
    """The values of the primaries, each once, joined by `/`."""
    return "/".join(sorted({health.info[field] for health in healths if field in health.info}))


def last_save(healths: Iterable[ShardHealth]) -> int:
    """The oldest of the primaries' last saves, in seconds since 1970; 0 if unknown."""
    return min((integer(health.info.get("rdb_last_save_time")) for health in healths), default=0)


def _persistence(context: Context) -> Lines:
    healths = context.healths()
    return (
        "loading:0",  # never 1: a client that reads 1 does not start
        "async_loading:0",
        f"rdb_changes_since_last_save:{_sum(healths, 'rdb_changes_since_last_save')}",
        f"rdb_bgsave_in_progress:{_any(healths, 'rdb_bgsave_in_progress')}",
        f"rdb_last_save_time:{last_save(healths)}",
        f"rdb_last_bgsave_status:{_all_ok(healths, 'rdb_last_bgsave_status')}",
        f"aof_enabled:{_any(healths, 'aof_enabled')}",
        f"aof_rewrite_in_progress:{_any(healths, 'aof_rewrite_in_progress')}",
        f"aof_last_write_status:{_all_ok(healths, 'aof_last_write_status')}",
    )


def _stats(context: Context) -> Iterator[str]:
    healths, total = context.healths(), context.page.total
    yield f"total_connections_received:{total('accepted')}"
    yield f"total_commands_processed:{total('commands')}"
    yield f"instantaneous_ops_per_sec:{_sum(healths, 'instantaneous_ops_per_sec')}"
    yield f"total_net_input_bytes:{total('bytes_in')}"
    yield f"total_net_output_bytes:{total('bytes_out')}"
    yield f"rejected_connections:{total('rejected')}"
    for name in _OF_THE_DATA:
        yield f"{name}:{_sum(healths, name)}"
    yield f"pubsub_channels:{context.registry.total(ChannelKind.CHANNEL)}"
    yield f"pubsub_patterns:{context.registry.total(ChannelKind.PATTERN)}"
    yield f"pubsubshard_channels:{context.registry.total(ChannelKind.SHARD)}"
    yield f"latest_fork_usec:{max((integer(health.info.get('latest_fork_usec')) for health in healths), default=0)}"
    for name in _OF_THE_SERVERS:
        yield f"{name}:{_sum(healths, name)}"
    yield f"total_error_replies:{total('errors')}"


_OF_THE_DATA = (
    "sync_full",
    "sync_partial_ok",
    "sync_partial_err",
    "expired_keys",
    "expired_time_cap_reached_count",
    "expire_cycle_cpu_milliseconds",
    "evicted_keys",
    "total_eviction_exceeded_time",
    "current_eviction_exceeded_time",
    "keyspace_hits",
    "keyspace_misses",
)
_OF_THE_SERVERS = (
    "total_forks",
    "active_defrag_hits",
    "active_defrag_misses",
    "active_defrag_key_hits",
    "active_defrag_key_misses",
    "total_active_defrag_time",
    "current_active_defrag_time",
    "dump_payload_sanitizations",
)


def _replication(context: Context) -> Lines:
    return ("role:master", "connected_slaves:0", "master_repl_offset:0", "repl_backlog_active:0")


def _cluster(context: Context) -> Lines:
    return ("cluster_enabled:0",)


def _keyspace(context: Context) -> Iterator[str]:
    databases = [entry for health in context.healths() for entry in health.keyspace.items()]
    for db in sorted({number for number, _ in databases}):
        counts = [count for number, count in databases if number == db]
        keys = sum(count.get("keys", 0) for count in counts)
        expires = sum(count.get("expires", 0) for count in counts)
        lived = sum(count.get("avg_ttl", 0) * count.get("expires", 0) for count in counts)
        more = "".join(
            f",{word}={sum(count.get(word, 0) for count in counts)}"
            for word in dict.fromkeys(word for count in counts for word in count)
            if word not in ("keys", "expires", "avg_ttl")
        )
        if keys:
            yield f"db{db}:keys={keys},expires={expires},avg_ttl={lived // expires if expires else 0}{more}"


def _commandstats(context: Context) -> Iterator[str]:
    for name, stats in _summed(context.healths(), "cmdstat_").items():
        per_call = stats["usec"] / stats["calls"] if stats.get("usec") and stats.get("calls") else 0
        yield (
            f"{name}:calls={stats.get('calls', 0)},usec={stats.get('usec', 0)},usec_per_call={per_call:.2f},"
            f"rejected_calls={stats.get('rejected_calls', 0)},failed_calls={stats.get('failed_calls', 0)}"
        )


def _errorstats(context: Context) -> Iterator[str]:
    for name, stats in _summed(context.healths(), "errorstat_").items():
        yield f"{name}:count={stats.get('count', 0)}"


def _none(context: Context) -> Lines:
    return ()


SECTIONS: dict[str, Callable[[Context], Lines]] = {
    "Server": _server,
    "Clients": _clients,
    "Memory": _memory,
    "Persistence": _persistence,
    "Stats": _stats,
    "Replication": _replication,
    "CPU": _cpu,
    "Modules": _none,
    "Commandstats": _commandstats,
    "Errorstats": _errorstats,
    "Latencystats": _none,  # percentiles of ten shards have no sum
    "Cluster": _cluster,
    "Proxy": _proxy,
    "Keyspace": _keyspace,
}
"""Title -> lines, in Redis' order (server.c, genRedisInfoString)."""

_ON_REQUEST = {"Commandstats", "Latencystats"}


# --- reading the INFO of servers --------------------------------------------------------------------------------------


def _sum(healths: Iterable[ShardHealth], field: str) -> int:
    return sum(integer(health.info.get(field)) for health in healths)


def _any(healths: Iterable[ShardHealth], field: str) -> int:
    return int(any(integer(health.info.get(field)) for health in healths))


def _all_ok(healths: Iterable[ShardHealth], field: str) -> str:
    return "ok" if all(health.info.get(field, "ok") == "ok" for health in healths) else "err"


def _summed(healths: Iterable[ShardHealth], prefix: str) -> dict[str, dict[str, int]]:
    """``name -> {word: sum}`` of the fields ``name:word=1,word=2`` whose name begins with the prefix."""
    sums: dict[str, dict[str, int]] = {}
    for health in healths:
        for name, value in health.info.items():
            if not name.startswith(prefix):
                continue
            line = sums.setdefault(name, {})
            for word, _, number in (pair.partition("=") for pair in value.split(",")):
                line[word] = line.get(word, 0) + integer(number)
    return dict(sorted(sums.items()))


def _version_parts(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else ()


def _human(size: int) -> str:
    """Bytes in the short form of Redis (server.c, bytesToHuman)."""
    if size < 1024:
        return f"{size}B"
    power = min((size.bit_length() - 1) // 10, len("BKMGTP") - 1)
    return f"{size / 1024**power:.2f}{'BKMGTP'[power]}"
