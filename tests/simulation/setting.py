"""What a history is played in: three shards, two of them with a replica, and what differs between histories."""

from dataclasses import dataclass
from functools import cache

from pyproxy.config import Config
from pyproxy.hashing import slot
from pyproxy.metrics import Page

CONGESTED_AT = 8 << 20
"""Bytes that wait for one backend, as the lane has it."""

CONFIG = """
workers = 1
reads = "{reads}"
transactions = "split"
[timeouts]
reply_s = 0.5
silence_s = 1.5
connect_s = 0.5
reconnect_max_s = 1.0
[promotion]
on_promotion = "{hold}"
hold_s = 2.0
auto_hold_s = 0.8
hold_incident_s = 4.0
hold_again_s = 0.0
promoter = "replicaof"
[[shards]]
name = "s0"
primary = "s0:1"
replicas = ["s0:2"]
slots = ["0-8191"]
[[shards]]
name = "s1"
primary = "s1:1"
replicas = ["s1:2"]
slots = ["8192-12287"]
[[shards]]
name = "s2"
promoter = "none"
primary = "s2:1"
slots = ["12288-16383"]
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one history. Bytes; `window`: of what a far end takes unread."""

    reads: str = "primary"
    hold: str = "auto"
    high: int = 65536
    window: int = 65536
    congested_at: int = CONGESTED_AT
    faulty: bool = False  # faults are made in the proxy itself
    waits: int = 1  # how often clients ask what takes more than one question


@cache
def config(reads: str, hold: str) -> Config:
    return Config.parse(CONFIG.format(reads=reads, hold=hold).encode())


@cache
def keys() -> dict[str, list[bytes]]:
    """Two of each shard."""
    shards = config("primary", "auto").shard_map().shards
    found: dict[str, list[bytes]] = {shard.name: [] for shard in shards}
    for number in range(200):
        key = b"k%d" % number
        name = next(shard.name for shard in shards if shard.owns(slot(key)))
        if len(found[name]) < 2:
            found[name].append(key)
    return found


@cache
def page() -> Page:
    return Page.create(1)
