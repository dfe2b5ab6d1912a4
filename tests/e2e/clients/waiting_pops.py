"""Whether clients really wait at the servers."""

from pyproxy.fleet import Fleet


def blocked_at(fleet: Fleet) -> int:
    """How many clients wait in a blocking command, at all primaries together."""
    return sum(_blocked(shard.primary.ask("INFO", "clients")) for shard in fleet.shards)


def _blocked(info: object) -> int:
    assert isinstance(info, bytes)
    (line,) = (line for line in info.decode().splitlines() if line.startswith("blocked_clients:"))
    return int(line.partition(":")[2])
