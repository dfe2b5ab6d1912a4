"""The clients of one worker are accepted here, from the listening socket that all workers share.

A worker accepts one client in a turn of the loop, and only while no other worker has fewer. So clients are spread
evenly, and no queue of connections belongs to one worker. Above `limits.max_clients` a client is accepted only to be
told so.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import cast

from protocol import errors
from pyproxy.events import Event, emit
from pyproxy.metrics import INDEX, Page
from pyproxy.worker.lane.lane import Client, Lane
from pyproxy.worker.shard.link import Spawn

RETRY_S = 0.002  # before a worker with more clients than another one looks again
NO_DESCRIPTOR_S = 0.1  # before a worker that has no file descriptor left tries again
REJECTED_S = 2.0  # then the connection of a rejected client is closed, whatever it does


class Rejected(asyncio.Protocol):
    """One client too many. It gets an error and a FIN. What it sends is read, or the kernel would send RST."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        stream.write(errors.too_many_clients())
        stream.write_eof()
        asyncio.get_running_loop().call_later(REJECTED_S, stream.abort)


class Acceptor:
    """`row`: of this worker on the page. `on_client`: called before each new client."""

    def __init__(
        self,
        listener: socket.socket,
        lane: Lane,
        page: Page,
        row: "memoryview[int]",
        max_clients: int,
        spawn: Spawn,
        on_client: Callable[[], None],
    ) -> None:
        self.is_started = False
        self._listener = listener
        self._lane = lane
        self._page = page
        self._row = row
        self._max_clients = max_clients
        self._spawn = spawn
        self._on_client = on_client
        self._rejecting = False

    def start(self) -> None:
        self.is_started = True
        self._watch()

    def stop(self) -> None:
        """Accept no more clients. Those that are connected to the listening socket already are adopted.

        So they get a FIN in the end. When the socket is closed the kernel would send them RST.
        """
        if self.is_started:
            self.is_started = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._empty_backlog()
        self._listener.close()

    def adopt(self, sock: socket.socket) -> None:
        """Serve the client of an accepted socket."""
        self._on_client()
        self._lane.count_accepted(1)  # at once, as the other workers look at the count before they accept
        self._spawn(self._connect(sock, lambda: Client(self._lane), is_client=True), "client")

    def _watch(self) -> None:
        if self.is_started:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        loop.call_later(pause_s, self._watch)

    def _accept(self) -> None:
        if self._row[INDEX["clients"]] > self._page.fewest_clients(int(time.monotonic() * 1e6)):
            self._pause(RETRY_S)
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # another worker was faster, or the client has left already
        except OSError as exc:  # no file descriptor is left: serve the present clients, until some leave
            emit(Event.ACCEPT, why=exc.strerror)
            self._pause(NO_DESCRIPTOR_S)
            return
        sock.setblocking(False)
        if self._page.total("clients") >= self._max_clients:
            if not self._rejecting:
                emit(Event.MAX_CLIENTS, limit=self._max_clients)
            self._rejecting = True  # logged once, until a client is accepted again
            self._row[INDEX["rejected"]] += 1
            self._spawn(self._connect(sock, Rejected, is_client=False), "reject")
            return
        self._rejecting = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._row[INDEX["accepted"]] += 1
        self.adopt(sock)

    async def _connect(self, sock: socket.socket, protocol: Callable[[], asyncio.Protocol], *, is_client: bool) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, sock)
        except OSError:
            sock.close()
            if is_client:
                self._lane.count_accepted(-1)

    def _empty_backlog(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self.adopt(sock)
