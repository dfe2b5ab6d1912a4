"""The listening sockets: bound here, or handed over by the environment."""

import os
import socket

import pytest

from pyproxy.control.process.listener import CannotListen, address, bind, listener
from pyproxy.shard_map import Node

HOST = "127.0.0.1"
ANYWHERE = Node(HOST, 0)


def test_a_socket_is_bound_and_says_where() -> None:
    with bind(ANYWHERE, "listen") as bound, socket.create_connection(bound.getsockname()):
        assert address(bound) == f"{HOST}:{bound.getsockname()[1]}"


def test_an_address_that_is_taken_is_one_line_with_the_option() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as raised:
            bind(Node(HOST, port), "http.listen")
    said = f"http.listen: expected a free address of this machine, got {HOST}:{port}: address already in use"
    assert str(raised.value) == said


def test_what_was_handed_over_to_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with listener(ANYWHERE) as own, socket.create_connection(own.getsockname()):
        pass
    assert "LISTEN_FDS" not in os.environ, "no child of ours is to take it for its own"


@pytest.mark.parametrize("count", ["0", "2", "x"])
def test_more_sockets_than_one_are_refused(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(CannotListen, match=f"expected one socket to be handed over, got {count}"):
        listener(ANYWHERE)
