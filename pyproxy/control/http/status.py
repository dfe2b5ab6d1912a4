"""The status of the proxy, as HTTP says it: what the parent knows comes in, a status, headers and JSON go out.

    /livez  /__lbheartbeat__   200: the process runs; nothing behind it is checked
    /readyz                    503 while starting or draining, or when no shard can be used; one that cannot is not
                               enough, or one outage would take every proxy out of service at once
    /__heartbeat__             503 while any shard cannot be written to (Dockerflow's form: a check for each shard)
    /shards                    the same, and everything that is known of each shard; the moves that are under way

The two that say 503 for a shard also say for how long to stay away, as `Retry-After` and `Backoff` in seconds. Pure:
nothing here listens (server.py does) or asks a server (health/ does).
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pyproxy import __version__, filling
from pyproxy.health import backoff_s, integer, key_count, problem, replica_state, state, unfenced, usable, writable
from pyproxy.messages import NodeHealth, ShardHealth
from pyproxy.moves import MoveState
from pyproxy.shard_map import Shard, format_slots


class Phase(enum.Enum):
    STARTING = "starting"
    SERVING = "ok"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class State:
    """What the parent knows. `now` is CLOCK_MONOTONIC, `wall` the wall clock, s."""

    phase: Phase
    shards: Sequence[Shard]
    healths: Sequence[ShardHealth]
    now: float
    wall: float
    moves: Sequence[MoveState] = ()  # that are under way


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


def live(_state: State) -> Answer:
    return Answer(200, {"status": "ok"})


def ready(seen: State) -> Answer:
    if seen.phase is not Phase.SERVING:
        return Answer(503, {"status": seen.phase.value})
    if not any(usable(health) for health in seen.healths):
        return Answer(503, {"status": "no shard can be used"})
    return Answer(200, {"status": "ok"})


def heartbeat(seen: State) -> Answer:
    bad = [health for health in seen.healths if not writable(health)]
    return _unless_well(
        seen,
        {
            "status": "error" if bad else "ok",
            "checks": {health.name: "ok" if writable(health) else "error" for health in seen.healths},
            "details": {
                health.name: {"status": "error", "level": 40, "messages": {state(health): problem(health)}}
                for health in bad
            },
        },
    )


def shards(seen: State) -> Answer:
    healths = {health.name: health for health in seen.healths}
    rows = [_shard(shard, healths[shard.name], seen) for shard in seen.shards]
    body = {
        "status": "ok" if all(map(writable, seen.healths)) else "error",
        "version": __version__,
        "proxy_backoff_seconds": backoff_s(seen.healths, seen.now),
        "shards": rows,
        "moves": [msgspec.structs.asdict(move) for move in seen.moves],
    }
    return _unless_well(seen, body)


ANSWERS: dict[str, Callable[[State], Answer]] = {
    "/livez": live,
    "/__lbheartbeat__": live,
    "/readyz": ready,
    "/__heartbeat__": heartbeat,
    "/shards": shards,
}
"""Path -> what it says."""


def table(body: Mapping[str, Any]) -> list[str]:
    """The body of /shards as lines for a terminal: a row for each shard, then a line for each move and alarm."""
    head = (
        "SHARD", "NODE", "STATE", "ROLE", "EPOCH", "REPLICAS", "LAG S", "HELD", "KEYS", "MEMORY", "OF MAX", "A DAY",
        "FULL ON", "EVICTED", "OPS/S", "AGE S",
    )  # fmt: skip
    rows = [
        (
            shard["name"],
            shard["node"],
            shard["state"],
            shard["role"] or "-",
            str(shard["epoch"]),
            f"{shard['connected_replicas']}/{len(shard['replicas'])}",
            "/".join(str(each["lag_s"]) if each["lag_s"] >= 0 else "-" for each in shard["nodes"][1:]) or "-",
            f"{shard['held']:,}",
            f"{shard['keys']:,}",
            f"{shard['used_memory'] / (1 << 20):,.1f}M",
            _share(shard),
            f"{shard['fill_bytes_per_day'] / (1 << 20):+,.1f}M" if shard["fill_bytes_per_day"] is not None else "-",
            shard["full_on"] or "-",
            f"{shard['evicted_keys']:,}",
            f"{shard['ops_per_sec']:,}",
            f"{shard['look_age_s']:.1f}",
        )
        for shard in body["shards"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) if at < 4 else text.rjust(width) for at, (text, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in (head, *rows))
    ]
    alarms = [f"ALARM {shard['name']}: {alarm}" for shard in body["shards"] for alarm in shard["alarms"]]
    bare = [shard["name"] for shard in body["shards"] if shard["unfenced"]]
    notes = [f"unfenced, as min-replicas-to-write is not in force: {', '.join(bare)}"] if bare else []
    return [*lines, *map(_move, body["moves"]), *alarms, *notes]


def _move(move: Mapping[str, Any]) -> str:
    hold = f"; longest hold {move['longest_hold_ms']:g} ms" if move["longest_hold_ms"] else ""
    paused = ", paused" if move["paused"] else ""
    where = f"{move['source']} -> {move['destination']}"
    return f"MOVE {move['id']}: {where}, {move['phase']} ({move['share']:.0%}){paused}{hold}"


def _share(shard: Mapping[str, Any]) -> str:
    if shard["memory_share"] is None:
        return "no limit"
    return f"{shard['memory_share']:.0%}" + ("" if shard["memory_limit_of"] == "maxmemory" else " of machine")


def _unless_well(seen: State, body: dict[str, Any]) -> Answer:
    seconds = backoff_s(seen.healths, seen.now)
    if not seconds:
        return Answer(200, body)
    return Answer(503, body, {"Retry-After": str(seconds), "Backoff": str(seconds)})


def _shard(shard: Shard, health: ShardHealth, seen: State) -> dict[str, Any]:
    """One element of /shards; numbers are of the last check that succeeded, and 0 where nothing is known."""
    used, (limit, limit_of) = integer(health.info.get("used_memory")), filling.limit(health)
    return {
        "name": shard.name,
        "node": health.node,
        "replicas": [str(node) for node in shard.replicas],
        "slots": [format_slots(each) for each in shard.slots],
        "state": state(health),
        "error": problem(health),
        "backoff_s": backoff_s([health], seen.now),
        "look_age_s": round(max(0.0, seen.now - health.at), 1),
        "epoch": health.epoch,
        "phase": health.phase,
        "held": health.held,
        "role": health.info.get("role", ""),
        "connected_replicas": integer(health.info.get("connected_slaves")),
        "keys": key_count(health),
        "used_memory": used,
        "maxmemory": integer(health.info.get("maxmemory")),
        "memory_limit": limit,
        "memory_limit_of": limit_of,
        "memory_share": round(used / limit, 3) if limit else None,
        "fill_bytes_per_day": health.fill_rate.bytes_per_day if health.fill_rate is not None else None,
        "full_on": filling.full_on(health, seen.wall),
        "evicted_keys": integer(health.info.get("evicted_keys")),
        "ops_per_sec": integer(health.info.get("instantaneous_ops_per_sec")),
        "nodes": [_node(node, index == 0) for index, node in enumerate(health.nodes)],
        "unfenced": unfenced(health),
        "alarms": _alarms(health, seen.wall),
    }


def _node(health: NodeHealth, is_primary: bool) -> dict[str, Any]:
    """One server of a shard, in the words of INFO."""
    return {
        "node": health.node,
        "state": ("up" if health.reachable else "down") if is_primary else replica_state(health),
        "role": health.role,
        "offset": health.offset,
        "lag_s": health.lag_s,
        "error": health.error,
    }


def _alarms(health: ShardHealth, wall: float) -> list[str]:
    """What needs an operator: a line each."""
    found = [] if state(health) == "up" else [f"{state(health)}: {problem(health)}"]
    found += health.alarms
    if health.stray:
        found.append(f"stray keys: {health.stray}; `pyproxy verify --misplaced` lists them, with --move it moves them")
    found += filling.alarms(health, wall)
    return found
