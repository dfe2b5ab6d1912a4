"""Which server of a shard is its primary, for commands beside a proxy: they ask all, as any may have been promoted."""

import contextlib

from pyproxy.access import Access
from pyproxy.control.health import detector
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.shard_map import Node, Shard

DEADLINE_S = 5.0  # of one question


class NoPrimary(Exception):
    """There is none, or more than one; the line says of which shard, and what its servers say."""


async def primary_of(shard: Shard, access: Access) -> Node:
    """The one that says that it is a master. Raises NoPrimary."""
    masters, why = [], []
    for node in (shard.primary, *shard.replicas):
        try:
            with contextlib.closing(await NodeConnection.open(node, access, DEADLINE_S)) as connection:
                (info,) = await connection.ask((b"INFO", b"replication"), deadline_s=DEADLINE_S)
        except NodeError as exc:
            why.append(f"{node}: {exc}")
            continue
        fields, _ = detector.parse_info(info.decode(errors="replace") if isinstance(info, bytes) else "")
        if fields.get("role") == "master":
            masters.append(node)
    if len(masters) != 1:
        found = ", ".join(map(str, masters)) or "none"
        raise NoPrimary("; ".join([f"shard {shard.name}: expected one primary, got {found}", *why]))
    return masters[0]
