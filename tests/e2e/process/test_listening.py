"""A listening socket that is handed over, as systemd does it: it outlives the proxy, and no connection is refused."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy
from tests.e2e.rig import Connection

# What sd_listen_fds(3) describes: the socket is file descriptor 3, and the environment says for whom.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Activated(Proxy):
    """A proxy that is handed this socket."""

    def __init__(self, fleet: Fleet, listener: socket.socket) -> None:
        super().__init__(fleet, listener.dup())
        self.inherits = [listener.fileno()]

    def command(self) -> list[str]:
        return [sys.executable, "-c", HAND_OVER, str(self.inherits[0]), *super().command()[1:]]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listener:
        yield listener


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet


def test_a_socket_that_is_handed_over_is_served(fleet: Fleet, listener: socket.socket) -> None:
    with Activated(fleet, listener) as proxy, Connection(proxy.port) as conn:
        assert conn.ask("SET", "key", "value") == b"OK"


def test_who_connects_during_a_restart_waits_and_is_served(fleet: Fleet, listener: socket.socket) -> None:
    with Activated(fleet, listener) as proxy:
        proxy.terminate()
        assert proxy.wait() == 0
        with Connection(proxy.port) as conn:
            conn.send(("PING",))
            with Activated(fleet, listener):
                assert conn.read() == b"PONG"


def serve(fleet: Fleet, listener: socket.socket, listen: str) -> subprocess.CompletedProcess[str]:
    config = fleet.directory / "elsewhere.toml"
    config.write_text(fleet.config(listen, 1))
    command = [sys.executable, "-c", HAND_OVER, str(listener.fileno()), "-m", "pyproxy", "serve", str(config)]
    fds = [listener.fileno()]
    return subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=30, check=False)


def test_a_socket_of_another_address_is_refused(fleet: Fleet, listener: socket.socket) -> None:
    ended = serve(fleet, listener, f"{HOST}:1")
    port = listener.getsockname()[1]
    said = f"listen: expected {HOST}:{port}, the socket that was handed over, got {HOST}:1"
    assert (ended.returncode, said in ended.stderr) == (69, True), ended.stderr


def test_what_does_not_listen_is_refused(fleet: Fleet) -> None:
    with socket.socket() as idle:
        ended = serve(fleet, idle, f"{HOST}:1")
    assert (ended.returncode, "expected a socket that listens for TCP" in ended.stderr) == (69, True), ended.stderr
