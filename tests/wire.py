"""Asking a real server in raw bytes: what goes in is sent as it is, what comes out is what was on the wire."""

import socket

from pyproxy.fleet import HOST

_END = b"behind-everything"
_ASK_END = b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(_END), _END)
_ANSWERED_END = b"$%d\r\n%b\r\n" % (len(_END), _END)


def exchange(port: int, request: bytes) -> bytes:
    """The whole answer to these bytes, on a connection of its own; where the server closes, what it said until then.

    An ECHO is sent behind the request and its answer cut off, so the bytes must end where a command ends, and must
    leave replies on.
    """
    with socket.create_connection((HOST, port), timeout=10) as connection:
        connection.sendall(request + _ASK_END)
        received = b""
        while not received.endswith(_ANSWERED_END):
            try:
                more = connection.recv(65536)
            except ConnectionResetError:  # it closed with our ECHO unread
                return received
            if not more:
                return received
            received += more
    return received.removesuffix(_ANSWERED_END)
