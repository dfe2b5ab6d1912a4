import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pyproxy.fleet import HOST, Fleet, FleetError, Server, ask, reserve_port


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of this test's own, which may be killed."""
    with Fleet(shards=1, replicas=0) as fleet:
        yield fleet.shards[0].primary


def test_a_killed_server_starts_again_on_its_port(server: Server) -> None:
    port, first = server.port, server.pid
    server.kill()
    assert not server.running
    server.start()
    assert server.pid != first
    assert ask(port, "PING") == b"PONG"


def test_the_port_of_a_killed_server_is_given_to_nobody_else(server: Server) -> None:
    server.kill()
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((HOST, server.port))


def test_a_paused_server_is_silent_until_it_goes_on(server: Server) -> None:
    server.pause()
    with pytest.raises(TimeoutError):
        ask(server.port, "PING", timeout=0.05)
    assert server.running
    server.resume()
    assert ask(server.port, "PING") == b"PONG"


def test_a_stopped_server_was_ended_in_order(server: Server) -> None:
    server.stop()
    assert not server.running
    assert "bye bye" in server.tail()


def test_a_server_that_does_not_start_is_reported_with_its_last_words() -> None:
    with (
        pytest.raises(FleetError, match=r"s0-primary ended with status 1:[\s\S]*no-such-option"),
        Fleet(shards=1, replicas=0, options=("--no-such-option", "1")),
    ):
        pass


def test_a_running_server_is_not_started_twice(server: Server) -> None:
    with pytest.raises(FleetError, match=f"is running already, as process {server.pid}"):
        server.start()


def test_a_server_starts_from_the_main_thread_only(server: Server) -> None:
    server.stop()
    failures: list[str] = []

    def start() -> None:
        try:
            server.start()
        except FleetError as error:
            failures.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert failures == ["s0-primary: start it from the main thread, or it dies with the thread that did"]


def test_a_busy_port_is_not_reserved() -> None:
    with socket.create_server((HOST, 0)) as busy, pytest.raises(OSError, match=os.strerror(98)):
        reserve_port(busy.getsockname()[1])
