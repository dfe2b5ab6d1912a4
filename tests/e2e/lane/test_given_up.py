"""What the kernel still has of a connection that the proxy has given up must not arrive later.

A server stands still in the middle of a client's writes, and these are said to be uncertain. When it reads on, it gets
no more than had reached it by then.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

import pytest

from protocol import scan
from pyproxy.fleet import HOST, Fleet, wait_until
from pyproxy.shard_map import Node
from tests.e2e.bare_worker import BareWorker
from tests.e2e.rig import PATIENCE_S, Connection, Keys, error, wait_for_line
from tests.hostile_server import ordinary

VALUE = "x" * 40_000
WRITES = 15
"""No more than are begun at a time."""
LAST = "the last of them"


class StalledServer:
    """Answers the set-up of each connection, and reads no more of one from this word on; small kernel buffers.

    Then it is still there, or closes its half, or says what is no reply.
    """

    def __init__(self, word: bytes, end: str) -> None:
        self._word, self._end = word, end
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind((HOST, 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self._stalled: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="stalled", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in self._stalled:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        requests = scan.Requests()
        with contextlib.suppress(OSError, scan.ProtocolError):
            while data := client.recv(512):
                if self._word in data:
                    self._stalled.append(client)
                    return
                for _, frame in requests.feed(data):
                    client.sendall(ordinary(scan.argv(frame)))

    def is_written_to(self) -> bool:
        return bool(self._stalled)

    def ends(self) -> None:
        for each in self._stalled:
            if self._end == "FIN":
                each.shutdown(socket.SHUT_WR)
            elif self._end == "garbage":
                each.sendall(b"@")

    def reads_on(self) -> bytes:
        """All that it gets until its end."""
        received = b""
        for each in self._stalled:
            each.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionResetError):
                while data := each.recv(1 << 16):
                    received += data
        return received


@pytest.mark.parametrize("end", ["FIN", "garbage", "silence"])
@pytest.mark.parametrize("kind", ["shared", "leased"])
def test_what_was_said_to_be_uncertain_does_not_arrive_later(fleet: Fleet, kind: str, end: str) -> None:
    word = b"SET" if kind == "shared" else b"MULTI"
    # longer than the server may take until it stalls, as it is a thread of the test's
    timeouts = {"connect_s": PATIENCE_S, "reply_s": 0.5, "silence_s": 3.0 if end == "silence" else PATIENCE_S}
    with (
        StalledServer(word, end) as stalled,
        BareWorker(fleet, {0: Node(HOST, stalled.port)}, "", timeouts=timeouts) as worker,
    ):
        key = Keys(worker).one(0)
        with Connection(worker.port) as conn:
            writes = [("SET", key, f"{VALUE}{LAST if number == WRITES - 1 else number}") for number in range(WRITES)]
            if kind == "shared":
                conn.send(*writes)
            else:
                conn.send(("WATCH", key), ("MULTI",), *writes, ("EXEC",))
            wait_until("it to be written to", stalled.is_written_to, worker.tail, PATIENCE_S)
            stalled.ends()
            if kind == "leased":
                assert conn.reads(2 + WRITES) == [b"OK", b"OK", *[b"QUEUED"] * WRITES]
            said = [error(conn.read()) for _ in range(WRITES if kind == "shared" else 1)]
            assert {each.split()[0] for each in said} <= {"UNCERTAIN", "TRYAGAIN"}, "the latter were not even sent"
            if kind == "shared":
                wait_for_line(worker, r"\+link-lost shard=s0")
            received = stalled.reads_on()
            assert LAST.encode() not in received, f"{len(received)} bytes arrived"
