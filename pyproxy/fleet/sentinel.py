"""Sentinels that watch the shards of a fleet."""

import hashlib
from pathlib import Path

from pyproxy.fleet.process import HOST, STOP_S, ListeningProcess, Managed, ask, wait_until
from pyproxy.fleet.server import Fleet


class Sentinel(ListeningProcess):
    """One Sentinel, of the same binary as the servers. It writes what it knows into its file, and finds it again."""

    def __init__(self, name: str, binary: str, directory: Path) -> None:
        super().__init__(name, directory / f"{name}.log")
        self.id = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.file = directory / f"{name}.conf"
        self._binary = binary

    def command(self) -> list[str]:
        return [self._binary, str(self.file), "--sentinel"]


class Sentinels(Managed):
    """Sentinels that watch all shards of a fleet that runs; a context manager that leaves nothing behind.

    `down_after_s` is what they wait before they call a server down: they ping once a second, so with 1 s they promote
    again and again. With `password` they ask everybody for it (requirepass).
    """

    def __init__(self, fleet: Fleet, down_after_s: float = 2.0, count: int = 3, password: str = "") -> None:
        self._fleet = fleet
        self._down_after_s = down_after_s
        self._password = password
        names = [f"sentinel{number}" for number in range(1, count + 1)]
        self.all = [Sentinel(name, fleet.backend.path, fleet.directory) for name in names]

    @property
    def addresses(self) -> list[str]:
        """For the proxy's configuration: sentinel={"nodes": sentinels.addresses}."""
        return [each.address for each in self.all]

    def start(self) -> None:
        """Start all of them at once; return when each answers and knows all replicas to be in step.

        It could replace a primary then, but for the second after which they look whether they are connected.
        """
        for each in self.all:
            each.file.write_text("\n".join(self._lines(each)) + "\n")
            each.file.chmod(0o600)
            each.launch()
        for each in self.all:
            each.wait_for_pong(each.port, self._password)
            for shard in self._fleet.shards:
                in_step = {b"flags": b"slave", b"master-link-status": b"ok"}
                self._wait_until_known(each, "REPLICAS", shard.name, len(shard.replicas), in_step)

    def wait_connected(self) -> None:
        """Wait until they are connected with each other, as an election wants them to be: up to a second from start."""
        for each in self.all:
            for shard in self._fleet.shards:
                self._wait_until_known(each, "SENTINELS", shard.name, len(self.all) - 1, {b"flags": b"sentinel"})

    def ask(self, sentinel: Sentinel, *argv: str | bytes | int) -> object:
        """Ask it one command, as `fleet.ask` does, with the password."""
        return ask(sentinel.port, *argv, password=self._password)

    def stop(self) -> None:
        """End all of them, paused ones too."""
        for each in self.all:
            if each.running:
                each.terminate()
        for each in self.all:
            each.join(STOP_S)
            each.release()

    close = stop

    def _wait_until_known(self, by: Sentinel, what: str, shard: str, count: int, state: dict[bytes, bytes]) -> None:
        """Wait until this one knows so many of a shard's REPLICAS or SENTINELS, all of them in this state."""
        states: list[dict[bytes, bytes]] = []

        def known() -> bool:
            reply = self.ask(by, "SENTINEL", what, shard)
            assert isinstance(reply, list)
            states[:] = [dict(zip(each[::2], each[1::2], strict=True)) for each in reply]
            return len(states) >= count and all(state.items() <= each.items() for each in states)

        wait_until(f"{by.name} to know the {what} of {shard}", known, lambda: f"it says {states}\n{by.tail()}")

    def _lines(self, sentinel: Sentinel) -> list[str]:
        """Its file. It tells them of each other: by themselves they learn of each other in 2 s."""
        lines = [f"port {sentinel.port}", f"bind {HOST}", f'dir "{self._fleet.directory}"']
        lines += [f"sentinel myid {sentinel.id}"]
        if self._password:
            lines += [f"requirepass {self._password}", f"sentinel sentinel-pass {self._password}"]
        for shard in self._fleet.shards:
            lines += [
                f"sentinel monitor {shard.name} {HOST} {shard.primary.port} {len(self.all) // 2 + 1}",
                f"sentinel down-after-milliseconds {shard.name} {round(self._down_after_s * 1000)}",
                f"sentinel failover-timeout {shard.name} 30000",
                f"sentinel parallel-syncs {shard.name} 1",
            ]
            lines += [f"sentinel known-replica {shard.name} {HOST} {each.port}" for each in shard.replicas]
            others = [each for each in self.all if each is not sentinel]
            lines += [f"sentinel known-sentinel {shard.name} {HOST} {each.port} {each.id}" for each in others]
        return lines
