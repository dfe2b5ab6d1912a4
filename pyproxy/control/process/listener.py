"""The sockets that listen: bound here, or handed over by whoever starts the proxy, so that they outlive it.

systemd holds the socket of a `.socket` unit while the service restarts: clients that connect meanwhile wait in its
queue instead of being refused (sd_listen_fds(3); examples/systemd/).
"""

import contextlib
import os
import socket

from pyproxy.shard_map import Node

BACKLOG = 1024
FIRST_FD = 3  # SD_LISTEN_FDS_START


class CannotListen(Exception):
    """Why not: one line for the operator."""


def listener(listen: Node) -> socket.socket:
    """The socket for clients: the one that was handed over, else one of our own. Raises CannotListen."""
    return _handed_over(listen) or bind(listen, "listen")


def bind(listen: Node, option: str) -> socket.socket:
    """A socket that listens there, as this option of the configuration says. Raises CannotListen."""
    try:
        family, kind, proto, _, where = _resolved(listen)
        with contextlib.ExitStack() as on_error:
            found = on_error.enter_context(socket.socket(family, kind, proto))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(where)
            found.listen(BACKLOG)
            found.setblocking(False)
            on_error.pop_all()
        return found
    except OSError as exc:
        line = f"{option}: expected a free address of this machine, got {listen}: {(exc.strerror or str(exc)).lower()}"
        raise CannotListen(line) from None


def address(listener: socket.socket) -> str:
    """Where it listens, host:port."""
    host, port = listener.getsockname()[:2]
    return str(Node(host, port))


def _handed_over(listen: Node) -> socket.socket | None:
    """The one socket that the environment names, if it is meant for this process; it must be that of `listen`."""
    meant_for, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()):
        return None
    if count != "1":
        raise CannotListen(f"LISTEN_FDS: expected one socket to be handed over, got {count}")
    try:
        found = socket.socket(fileno=FIRST_FD)
        listens = found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or found.family not in (socket.AF_INET, socket.AF_INET6):
            raise CannotListen(f"LISTEN_FDS: expected a socket that listens for TCP, got {found}")
        if listen.port and found.getsockname()[:2] != _resolved(listen)[4][:2]:
            raise CannotListen(f"listen: expected {address(found)}, the socket that was handed over, got {listen}")
    except OSError as exc:
        raise CannotListen(f"LISTEN_FDS: expected a socket as file descriptor {FIRST_FD}, got: {exc}") from None
    os.set_inheritable(FIRST_FD, False)
    found.setblocking(False)
    return found


def _resolved(listen: Node) -> tuple[int, int, int, str, tuple[str, int]]:
    found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, proto, name, where = found[0]
    return family, kind, proto, name, where  # type: ignore[return-value]  # AF_INET6 has two more
