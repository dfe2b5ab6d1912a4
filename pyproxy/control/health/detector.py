"""The failure detector: what a reply of a server means, and what has changed since the one before.

INFO and the health check before come in; a NodeHealth, and the events that follow from the two, go out. Pure: whoever
asks the servers is node_monitor.py, and what is done about it is nobody's here.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from pyproxy.events import Event
from pyproxy.health import MOST_BACKOFF_S
from pyproxy.messages import NodeHealth, Work

UNWATCHED_S = 3.0
"""A server is checked every second: where a check is later than that, nobody knows of the time between."""

IN_STEP_S = 0.5
"""What was sent to a server so soon after it was asked may have come first: by another connection."""

FIELD = re.compile(r"^([^#:\r\n][^:\r\n]*):([^\r\n]*)", re.MULTILINE)
DATABASE = re.compile("db[0-9]{1,9}")

Keyspace = Mapping[int, Mapping[str, int]]
Change = tuple[Event, dict[str, object]]

AGAIN_S = 5.0
"""Beyond the longest time to stay away: until whoever has stayed away has come again, and was refused again."""

NEAR = 0.8
"""Of maxmemory: who was refused a write for want of memory below this has sent a single value that is too large."""

FREED = 0.99
"""Less of the memory in use than this, and there may be room again."""


def parse_info(text: str) -> tuple[dict[str, str], dict[int, dict[str, int]]]:
    """INFO's text as its fields, flat, and its keyspace by database: {0: {"keys": 3, "expires": 0, "avg_ttl": 0}}."""
    fields = dict(FIELD.findall(text))
    keyspace: dict[int, dict[str, int]] = {}
    for name in [name for name in fields if name.startswith("db") and DATABASE.fullmatch(name)]:
        # 18 digits: what any message carries
        numbers = re.findall("([a-z_]+)=([0-9]{1,18})(?![0-9])", fields.pop(name))
        keyspace[int(name[2:])] = {key: int(number) for key, number in numbers}
    return fields, keyspace


def answered(
    before: NodeHealth, at: float, fields: Mapping[str, str], keyspace: Keyspace, misconf: str = ""
) -> NodeHealth:
    """The health of a server that answered with this INFO.

    The offset of a slave is `slave_repl_offset`, which stays when its link is down (ROLE says -1 then). Its lag is
    what it can say itself: seconds since its link went down, else since it heard of its master, which sends something
    every 10 s at least (repl-ping-replica-period).
    """
    is_slave = fields.get("role") == "slave"
    link = fields.get("master_link_status", "") if is_slave else ""
    silence = "master_last_io_seconds_ago" if link == "up" else "master_link_down_since_seconds"
    return NodeHealth(
        node=before.node,
        reachable=True,
        error="",
        at=at,
        answered_at=at,
        role=fields.get("role", ""),
        run_id=fields.get("run_id", ""),
        replid=fields.get("master_replid", ""),
        replid2=fields.get("master_replid2", ""),
        second_offset=_number(fields.get("second_repl_offset")),
        offset=_number(fields.get("slave_repl_offset" if is_slave else "master_repl_offset")),
        link=link,
        lag_s=_number(fields.get(silence)) if is_slave else -1,
        master=address(fields.get("master_host", ""), fields.get("master_port", "")) if is_slave else "",
        priority=_number(fields.get("slave_priority")),
        good_replicas=_number(fields.get("min_slaves_good_slaves")),
        loading=any(fields.get(name, "0") != "0" for name in ("loading", "async_loading")),
        syncing=fields.get("master_sync_in_progress", "0") != "0",
        keys=sum(counts.get("keys", 0) for counts in keyspace.values()),
        misconf=misconf,
    )


def timeless(health: NodeHealth) -> NodeHealth:
    """Without the numbers that change by themselves."""
    return msgspec.structs.replace(health, at=0.0, answered_at=0.0, offset=0, lag_s=0)


def has_activity(before: NodeHealth, now: NodeHealth, idle_bytes: int) -> bool:
    """Whether anything happened between two checks: it is another server, or has written more than so many bytes."""
    moved = now.offset - before.offset
    return not 0 <= moved <= idle_bytes or _standing(before) != _standing(now)


def _standing(health: NodeHealth) -> tuple[object, ...]:
    return (
        health.reachable, health.role, health.run_id, health.replid, health.replid2, health.second_offset,
        health.link, health.master, health.priority, health.good_replicas, health.loading, health.syncing,
        health.misconf,
    )  # fmt: skip


def refused(before: NodeHealth, at: float, error: str) -> NodeHealth:
    """The health of a server that answered with this error; what it said before stays."""
    loading = error.startswith("LOADING ")
    return msgspec.structs.replace(
        before, reachable=False, error=error, silent=False, at=at, unanswered_since=0.0, busy_until=0.0, loading=loading
    )


def failed(
    before: NodeHealth, asked_at: float, at: float, error: str, silent: bool = False, work: Work | None = None
) -> NodeHealth:
    """The health of a server that did not answer what it was asked then; what it said before stays.

    As for Sentinel its silence begins when it was asked first (`act_ping_time`), and not with its last answer, after
    which nobody asked for a while. So it does after a time in which nobody asked because this process did not run, or
    in which it was at `work`. That is an excuse where it began before the silence did, and one without an answer has
    no second: else clients that go on asking a server that is gone for its KEYS would keep it in its place.
    """
    is_same_silence = before.unanswered_since and not before.at_work and asked_at - before.at <= UNWATCHED_S
    since = before.unanswered_since if is_same_silence else asked_at
    busy_until = 0.0
    if work is not None and before.unanswered_since and before.busy_until:
        busy_until = before.busy_until
    elif work is not None and work.since <= since + IN_STEP_S:
        busy_until = work.until
    return msgspec.structs.replace(
        before, reachable=False, error=error, silent=silent, at=at, unanswered_since=since, busy_until=busy_until,
        loading=False,
    )  # fmt: skip


def lost_keys(before: NodeHealth, now: NodeHealth, replicas: Iterable[NodeHealth]) -> int:
    """How many keys a server had before it restarted as a master without them; 0 if it has them, or is a slave by now.

    A primary that restarted empty and is written to is not empty when it is checked, so one whose offset went back
    and that has less than half of the keys counts too. Not any fewer: keys run out while a server is down. Once said,
    it is true until the server is a slave in step, or restarts with the keys: new keys do not bring back the old.
    """
    if now.role == "slave":
        return 0 if now.link == "up" else before.lost_keys
    if before.run_id in ("", now.run_id):
        return before.lost_keys
    held = max([before.keys, before.lost_keys, *(replica.keys for replica in replicas)])
    gone = now.keys == 0 or (now.offset < before.offset and now.keys * 2 < held)
    if before.lost_keys:  # its second restart since: only the keys themselves can tell
        gone = now.keys * 2 < held
    return held if gone else 0


@dataclass(slots=True)
class Refused:
    """A worker was refused writes with a code that INFO does not always show: counts on after `at`, see `still`."""

    at: float  # CLOCK_MONOTONIC, s
    seen: int = -1  # what the first check after it found: the replicas in step, or the memory in use

    def still(self, now: float, is_better: Callable[[int], bool]) -> bool:
        """Whether writes are refused yet, as far as is known: until it is better than it was then.

        At most for as long as a client is told to stay away, and for as long as it takes to try and to complain again:
        who stays away complains of nothing.
        """
        return now - self.at < MOST_BACKOFF_S + AGAIN_S and not is_better(self.seen)


def noreplicas(fields: Mapping[str, str], refused: Refused | None, at: float) -> str:
    """Why a primary that says this answers writes with -NOREPLICAS; empty: it does not.

    How many replicas it needs is not in INFO, only how many are in step; it needs one at least. Where it needs more,
    what the workers were refused tells.
    """
    good = _number(fields.get("min_slaves_good_slaves"))
    if fields.get("role") != "master" or good < 0:
        return ""
    if refused is not None and refused.seen < 0:
        refused.seen = good
    if good and not (refused is not None and refused.still(at, lambda seen: good > seen)):
        return ""
    return f"it has {good} replicas in step, and min-replicas-to-write wants more"


def out_of_memory(fields: Mapping[str, str], keyspace: Keyspace, refused: Refused | None, at: float) -> str:
    """Why a primary that says this answers writes with -OOM; empty: it does not.

    It is full where it may evict nothing more. A write that is larger than what is left is refused before that: it is
    the workers who see that.
    """
    limit = _number(fields.get("maxmemory"))
    if fields.get("role") != "master" or limit <= 0:
        return ""
    used = _number(fields.get("used_memory")) - max(0, _number(fields.get("mem_not_counted_for_evict")))
    if refused is not None and refused.seen < 0:
        refused.seen = used
    policy = fields.get("maxmemory_policy", "")
    kind = {"allkeys": "keys", "volatile": "expires"}.get(policy.partition("-")[0], "")
    is_full = used > limit and not any(counts.get(kind, 0) for counts in keyspace.values())
    is_near = used > NEAR * limit
    if not is_full and not (is_near and refused is not None and refused.still(at, lambda seen: used < FREED * seen)):
        return ""
    return f"it uses {used:,} bytes of maxmemory ({limit:,}), and {policy} leaves nothing to evict"


def changes(before: NodeHealth, now: NodeHealth, configured: str) -> Iterator[Change]:
    """The events between two checks of one server, which the configuration gives this role (master or slave)."""
    was_down = before.at > 0 and not before.reachable and not before.at_work
    if now.at_work:
        if was_down:
            yield Event.NODE_UP, {"role": configured, "cause": "it is at work"}
        if not before.at_work:
            yield Event.BUSY, {"role": configured, "for_s_at_most": f"{now.busy_until - now.at:.1f}"}
        return
    if before.at_work:
        yield Event.BUSY_END, {"role": configured, **_age("silent_s", before, now)}
    if not now.reachable:
        if not was_down:
            yield Event.NODE_DOWN, {"role": configured, "error": now.error, **_age("silent_s", before, now)}
        return
    back = was_down
    rebooted = before.run_id not in ("", now.run_id)
    if back and not now.lost_keys:
        yield Event.NODE_UP, {"role": configured, **_age("down_s", before, now)}
    if rebooted:
        yield Event.REBOOT, {"run_id": now.run_id, "keys": now.keys, "offset": now.offset}
    if now.lost_keys and (back or rebooted or not before.lost_keys):
        lost: dict[str, object] = {
            "keys": now.keys,
            "had_keys": now.lost_keys,
            "offset": now.offset,
            "had_offset": before.offset,
        }
        yield Event.RESTARTED_EMPTY, lost
    if before.lost_keys and not now.lost_keys:
        yield Event.RESTARTED_END, {"keys": now.keys, "role": now.role}
    was = before.role or configured
    if now.role != was:
        yield Event.ROLE_CHANGE, {"was": was, "now": now.role, "configured": configured}
    if now.misconf and not before.misconf:
        yield Event.MISCONF, {"reason": now.misconf}
    if before.misconf and not now.misconf:
        yield Event.MISCONF_END, {}
    if now.noreplicas and not before.noreplicas:
        yield Event.NOREPLICAS, {"reason": now.noreplicas}
    if before.noreplicas and not now.noreplicas:
        yield Event.NOREPLICAS_END, {}
    if now.oom and not before.oom:
        yield Event.OOM, {"reason": now.oom}
    if before.oom and not now.oom:
        yield Event.OOM_END, {}


def acknowledged(fields: Mapping[str, str]) -> dict[str, int]:
    """What a primary says of its replicas: `host:port` -> seconds since the last acknowledgement of its offset.

    A replica sends one every second. The line is slave0:ip=127.0.0.1,port=7100,state=online,offset=14,lag=0; one that
    is still being sent the data is left out.
    """
    lags = {}
    for number in itertools.count():
        value = fields.get(f"slave{number}")
        if value is None:
            break
        fields_of_replica = dict(pair.partition("=")[::2] for pair in value.split(","))
        if fields_of_replica.get("state") == "online":
            lags[address(fields_of_replica.get("ip", ""), fields_of_replica.get("port", ""))] = _number(
                fields_of_replica.get("lag")
            )
    return lags


def address(host: str, port: str) -> str:
    """A server as another one names it, in our form: `host:port`, or `[host]:port` for IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _age(name: str, before: NodeHealth, now: NodeHealth) -> dict[str, object]:
    """Seconds since it last answered, if ever it did."""
    return {name: f"{now.at - before.answered_at:.1f}"} if before.answered_at else {}


def _number(text: str | None) -> int:
    """The number a server said; -1 for none, and for one that no message carries."""
    return int(text) if text is not None and re.fullmatch("-?[0-9]{1,18}", text) else -1
