"""The proxy as loop-server has it: examples/loop-server.toml, but for the addresses and the places of files."""

import re
from pathlib import Path

from pyproxy.fleet import HOST, Fleet, Proxy, reserve_port, wait_until
from tests.e2e.clients.node import NodeClient
from tests.e2e.rig import PATIENCE_S

PROFILE = Path(__file__).parents[3] / "examples" / "loop-server.toml"

OLD_DB, NEW_DB = 4, 5
"""Of its migration."""

USER = ["userid.H", "hawk.H", "hawkuser.H", "spurls.U", "spurls.U.H", "userUrls.U", "userCalls.U", "userRooms.U"]
"""What each authenticated request renews; H and U are digests, so nothing keeps them on one shard."""

MONTH_S = 2592000

PATTERN = "__keyevent*__:expired"
"""What it listens to."""


class LoopProxy(Proxy):
    """In front of a fleet of ten shards with a replica each.

    `patient`: its deadlines are so long that a loaded machine meets them, for tests in which all is well.
    """

    def __init__(self, fleet: Fleet, patient: bool = False) -> None:
        super().__init__(fleet)
        self._http = reserve_port()
        self.http_port: int = self._http.getsockname()[1]
        self.admin = fleet.directory / f"{self.name}.sock"
        text = PROFILE.read_text()
        places = {
            "127.0.0.1:6380": f"{HOST}:{self.port}",
            "127.0.0.1:6381": f"{HOST}:{self.http_port}",
            "/run/pyproxy/loop-server.sock": str(self.admin),
            "/var/lib/pyproxy/loop-server.json": str(fleet.directory / f"{self.name}.json"),
        }
        for number, shard in enumerate(fleet.shards, 1):
            places[f"10.0.0.{number}:6379"] = shard.primary.address
            places[f"10.0.1.{number}:6379"] = shard.replicas[0].address
        for written, here in places.items():
            assert text.count(f'"{written}"') == 1, f"the profile says {written} {text.count(written)} times"
            text = text.replace(f'"{written}"', f'"{here}"')
        if patient:
            for name in ("connect_s", "reply_s", "slow_reply_s", "silence_s", "down_after_s"):
                text, count = re.subn(rf"^{name} = .*$", f"{name} = {PATIENCE_S}", text, flags=re.MULTILINE)
                assert count == 1, f"the profile says {name} {count} times"
        self.config.write_text(text)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._http.close()


def wait_received(client: NodeClient, wanted: list[list[str]]) -> None:
    """Until it has got these, in any order, and nothing else."""
    seen: list[list[str]] = []

    def got() -> bool:
        seen[:] = client.do("received")
        return sorted(seen) == sorted(wanted)

    wait_until(f"{len(wanted)} events", got, lambda: f"got {len(seen)}: {seen[-3:]}", PATIENCE_S)


def expire(storage: NodeClient, keys: list[str], db: int = NEW_DB) -> list[list[str]]:
    """Let these keys expire; the events of that, as they arrive."""
    storage.do("pipeline", [["psetex", key, 10, "x"] for key in keys])
    return [[PATTERN, f"__keyevent@{db}__:expired", key] for key in keys]
