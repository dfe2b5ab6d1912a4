"""One soak: a fleet, the proxy, clients and faults, then rest, and what is true in the end."""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hiredis

from bench.failover.servers import asks, fields
from bench.soak.clients import Clients
from bench.soak.faults import FaultInjector
from bench.soak.ledger import Ledger, Switch, Verdict
from bench.soak.wire import Tally
from pyproxy.fleet import FENCED, Fleet, FleetError, LiveShard, Proxy, Table, Value, ask, wait_until
from pyproxy.hashing import slot
from pyproxy.shard_map import split_slots

SHARDS, REPLICAS, WORKERS = 3, 2, 2
REST_S = 60.0
BEFORE_S = 12.0
"""So long before a primary was replaced its replicas may have been behind: until it was silent (min-replicas-max-lag
and a second), until that was noticed, and on a busy machine as long again."""

AFTER_S = 3.0  # what was read of a replica, or acknowledged by the old one, and is told a little later
PROMOTION: Table = {"promoter": "replicaof", "down_after_s": 1.5, "min_between_s": 3.0, "hold_again_s": 5.0}
PLANNED = " was=handing-over "  # of a switch that loses nothing
DATABASES = (0, 1)
OWED = ("inflight", "buffered_bytes", "held_requests", "blocked_clients", "pubsub_clients")
TOLD = (
    *OWED, "connected_clients", "leased_connections", "timeouts", "uncertain", "splits", "drained", "refused_held",
    "refused_at_once", "withheld_writes", "out_of_step", "shed", "dropped_client_gone",
)  # fmt: skip


@dataclass(slots=True)
class Result:
    """`problems` is empty if all is as promised."""

    reads: str
    seconds: float
    seed: int
    tally: Tally
    verdict: Verdict
    injected: Counter[str]
    comings: Counter[str]
    messages: int
    writes: Counter[str]  # by what is known of them in the end
    switches: int
    events: Counter[str]
    resources: list[str]
    final: dict[str, str]
    violations: list[str]  # what no slowness of the machine explains
    problems: list[str]  # these, and what it might


def run(reads: str, seconds: float, clients: int, seed: int, logs: Path | None = None) -> Result:
    """`reads`: as in the configuration. `seconds`: of faults, beside start and rest. `logs`: where they are kept."""
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
    with Fleet(SHARDS, REPLICAS, options=FENCED, directory=logs) as fleet:
        tables: dict[str, Table] = {"promotion": PROMOTION, "http": {"admin": str(fleet.directory / "admin.sock")}}
        modes: dict[str, Value] = {"reads": reads, "transactions": "split", "cross_shard": "emulate", "canary": True}
        with Proxy(fleet, None, WORKERS, **modes, **tables) as proxy:
            return _soak(fleet, proxy, reads, seconds, clients, seed)


def _soak(fleet: Fleet, proxy: Proxy, reads: str, seconds: float, count: int, seed: int) -> Result:
    owners = [index for index, (first, last) in enumerate(split_slots(SHARDS)) for _ in range(first, last + 1)]
    ledger, tally = Ledger(lambda key: owners[slot(key)]), Tally()
    faults = FaultInjector(fleet, proxy, WORKERS, seed)
    clients = Clients(proxy.port, ledger, tally, count, seed)
    resources = [f"start: {each}" for each in _resources(faults)]
    clients.start()
    faults.run(seconds)
    clients.end()
    problems = [*clients.problems, *faults.problems]
    final = _rest(proxy, problems)
    resources += [f"end: {each}" for each in _resources(faults)]
    ledger.close(_held(fleet, problems), time.monotonic())
    lines = proxy.log.read_text(errors="replace").splitlines()
    switches = list(_switches(lines, fleet, faults))
    verdict = ledger.judge(switches, [(shard, a, b + AFTER_S) for shard, a, b in faults.spans])
    violations = [line for line in lines if line.startswith(("+bug", "+canary", "Traceback"))]
    violations += [f"misrouted: {each}" for each in tally.misrouted] + [
        f"unexpected: {each}" for each in tally.unexpected
    ]
    violations += verdict.violations(timed=False)
    problems += [f"lost: {each}" for each in verdict.lost] + [f"stale: {each}" for each in verdict.stale]
    problems += [line for line in lines if line.startswith("+worker-kill")]
    deaths = sum(line.startswith("+worker-death ") for line in lines)
    if deaths != len(faults.killed):
        problems.append(f"{deaths} workers died, {len(faults.killed)} of them by our doing")
    events = Counter(line.split()[0] for line in lines if line.startswith(("+", "-")))
    return Result(
        reads, seconds, seed, tally, verdict, faults.injected, clients.comings, clients.messages, ledger.fates(),
        len(switches), events, resources, final, violations, [*violations, *problems],
    )  # fmt: skip


def _rest(proxy: Proxy, problems: list[str]) -> dict[str, str]:
    """Once nothing is in flight or held; INFO as it is then."""
    said: dict[str, str] = {}

    def at_rest() -> bool:
        try:
            answer = ask(proxy.port, "INFO")
        except (OSError, hiredis.HiredisError):
            return False
        assert isinstance(answer, bytes)
        said.update(fields(answer))
        return all(said[name] == "0" for name in OWED) and said["connected_clients"] == "1"

    try:
        wait_until("nothing to be in flight", at_rest, lambda: str({name: said.get(name) for name in TOLD}), REST_S)
    except FleetError as error:
        problems.append(str(error))
    return {name: said.get(name, "?") for name in TOLD}


def _resources(faults: FaultInjector) -> Iterator[str]:
    """Of each worker."""
    for index, pid in sorted(faults.worker_pids().items()):
        try:
            status = fields(Path(f"/proc/{pid}/status").read_bytes())
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        yield f"worker {index} (pid {pid}): {files} file descriptors, RSS {' '.join(status['VmRSS'].split())}"


def _switches(lines: Sequence[str], fleet: Fleet, faults: FaultInjector) -> Iterator[Switch]:
    """Replacements that nobody asked for, on the clock of the answers."""
    names = [shard.name for shard in fleet.shards]
    offset = time.monotonic() - time.time()
    for line in lines:
        if not line.startswith("+switch-master ") or PLANNED in line:
            continue
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        at = datetime.datetime.fromisoformat(said["at"]).timestamp() + offset
        shard = names.index(said["shard"])
        since = at - BEFORE_S
        doubled = any(each == shard and a <= at and b >= since for each, a, b in faults.others)
        yield Switch(shard, since, at + AFTER_S, doubled)


def _held(fleet: Fleet, problems: list[str]) -> dict[bytes, object]:
    """Strings, lists and streams of all primaries, in all databases that are used."""
    held: dict[bytes, object] = {}
    for shard in fleet.shards:
        held |= _held_by(shard, problems)
    return held


def _held_by(shard: LiveShard, problems: list[str]) -> dict[bytes, object]:
    primary = shard.present_primary()
    if primary is None:
        problems.append(f"{shard.name} has no primary in the end")
        return {}
    reads = {b"string": (b"GET",), b"list": (b"LRANGE", b"0", b"-1"), b"stream": (b"XRANGE", b"-", b"+")}
    held: dict[bytes, object] = {}
    for database in DATABASES:
        (_, keys) = asks(primary.port, [(b"SELECT", b"%d" % database), (b"KEYS", b"*")], None)
        assert isinstance(keys, list)
        problems += [f"{shard.name} still has {key!r}" for key in keys if key.startswith(b"pyproxy:copy:")]
        select = (b"SELECT", b"%d" % database)
        types = asks(primary.port, [select, *((b"TYPE", key) for key in keys)], None)[1:]
        kept = [(key, kind) for key, kind in zip(keys, types, strict=True) if kind in reads]
        asked = [(reads[kind][0], key, *reads[kind][1:]) for key, kind in kept]
        for (key, kind), value in zip(kept, asks(primary.port, [select, *asked], None)[1:], strict=True):
            held[key] = [words[1] for _, words in value] if kind == b"stream" else value  # type: ignore[attr-defined]
    return held
