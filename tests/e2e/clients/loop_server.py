"""The proxy as loop-server has it: examples/loop-server.toml, but for the addresses and the places of files."""

from pathlib import Path

from pyproxy.fleet import HOST, Fleet, Proxy, reserve_port

PROFILE = Path(__file__).parents[3] / "examples" / "loop-server.toml"

OLD_DB, NEW_DB = 4, 5
"""Of its migration."""

USER = ["userid.H", "hawk.H", "hawkuser.H", "spurls.U", "spurls.U.H", "userUrls.U", "userCalls.U", "userRooms.U"]
"""What each authenticated request renews; H and U are digests, so nothing keeps them on one shard."""

MONTH_S = 2592000


class LoopProxy(Proxy):
    """In front of a fleet of ten shards with a replica each."""

    def __init__(self, fleet: Fleet) -> None:
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
        self.config.write_text(text)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._http.close()
