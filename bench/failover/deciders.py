"""Who decides beside the proxy: three Sentinels, or an API like AWS'. They reach servers through the hops, too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyproxy.config import Promotion
from pyproxy.fleet import FENCED, Fleet, LiveShard, Sentinel, Sentinels, Server, Table
from tests.elasticache import FakeElastiCache, Group, admin, options, pretend_credentials
from tests.faults import Hop

SENTINEL_DOWN_S = 1.5
"""Until a Sentinel calls a server down, at least: it pings once a second."""


PERIODS_S = {"info-period": 10.0, "publish-period": 2.0}
"""What Sentinels wait by default before they ask a server what it is, and before they tell each other what they know. A
primary that comes back is made a replica four times the latter after that."""


class Decider:
    """Nobody: the proxy decides by itself (replicaof), or follows what it sees (none)."""

    options: Sequence[str] = ()
    """For every server."""

    sentinels: Sequence[Sentinel] = ()

    def start(self, stack: ExitStack, fleet: Fleet, hops: Mapping[Server, Hop], scale: float) -> None:
        """Up, until the stack ends."""

    def tables(self, scale: float) -> dict[str, Table]:
        """Its part of a proxy's configuration."""
        return {}

    def configure(self, file: Path) -> None:
        """What cannot be said in a table."""

    def command(self, server: Server, *argv: str) -> object:
        """A command that operators, or AWS, may give."""
        return server.ask(*argv)


class _SentinelsBehindHops(Sentinels):
    def __init__(self, fleet: Fleet, down_after_s: float, hops: Mapping[Server, Hop]) -> None:
        super().__init__(fleet, down_after_s)
        self._hops = hops

    def _lines(self, sentinel: Sentinel) -> list[str]:
        lines = super()._lines(sentinel)
        for server, hop in self._hops.items():
            lines = [re.sub(rf" {server.port}\b", f" {hop.port}", line) for line in lines]
        return lines


class ThreeSentinels(Decider):
    def start(self, stack: ExitStack, fleet: Fleet, hops: Mapping[Server, Hop], scale: float) -> None:
        down_after_s = max(SENTINEL_DOWN_S, Promotion().down_after_s * scale)
        sentinels = stack.enter_context(_SentinelsBehindHops(fleet, down_after_s, hops))
        self.sentinels = sentinels.all
        if scale != 1:
            periods = [word for name, s in PERIODS_S.items() for word in (name, round(1000 * s * scale))]
            for each in self.sentinels:
                sentinels.ask(each, "SENTINEL", "DEBUG", *periods)

    def tables(self, scale: float) -> dict[str, Table]:
        return {"sentinel": {"nodes": [each.address for each in self.sentinels]}}


class Aws(Decider):
    """`api` is what it can be told, and says."""

    options = options()

    def start(self, stack: ExitStack, fleet: Fleet, hops: Mapping[Server, Hop], scale: float) -> None:
        pretend_credentials(stack.enter_context(pytest.MonkeyPatch.context()))
        ports = {server.port: hop.port for server, hop in hops.items()}
        self.api = stack.enter_context(FakeElastiCache(fleet, ports))
        self.api.begin_s, self.api.modifying_s = 1.0 * scale, 3.0 * scale

    def tables(self, scale: float) -> dict[str, Table]:
        times = {"trouble_poll_s": 5.0 * scale, "poll_s": 30.0 * scale, "delay_s": 3.0 * scale}
        return {"elasticache": {"region": "eu-west-1", "endpoint_url": self.api.url, **times}}

    def configure(self, file: Path) -> None:
        lines = [line for line in file.read_text().splitlines() if not line.startswith(("primary =", "replicas ="))]
        text = "\n".join(lines)
        file.write_text(re.sub(r'(?m)^name = "(.*)"$', r'name = "\1"\nreplication_group = "rg-\1"', text))

    def command(self, server: Server, *argv: str) -> object:
        return admin(server, *argv)

    def group(self, shard: LiveShard) -> Group:
        return self.api.groups[f"rg-{shard.name}"]


def decider(promoter: str, fenced: bool) -> Decider:
    """The one that this promoter needs. `fenced`: no server takes writes without replicas."""
    made: Decider = {"sentinel": ThreeSentinels, "elasticache": Aws}.get(promoter, Decider)()
    made.options = [*made.options, *(FENCED if fenced else ())]
    return made
