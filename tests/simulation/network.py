"""Connections between the proxy and somebody: what a transport of uvloop does, and what the far end lets through.

    protocol ──write──▶ Transport ──▶ End.inbox (bounded: its window) ──read──▶ client or server
             ◀─data_received── deliver(n) ◀── End.outbox ◀──write──

Nothing moves towards the proxy by itself: `Transport.deliver` brings bytes, or the FIN or RST behind the last of them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Loop


class End:
    """The far end of a connection. `window`: bytes that its kernel takes before it has read any."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.transport: Transport | None = None
        self.finished = False  # FIN follows the outbox
        self.is_reset = False  # RST has been sent
        self.saw_fin = False  # the proxy's, behind the inbox
        self.saw_reset = False  # it has closed without that

    def read(self, most: int = 1 << 30) -> bytes:
        taken = bytes(self.inbox[:most])
        del self.inbox[:most]
        if self.transport is not None:
            self.transport.flow()
        return taken

    def write(self, data: bytes) -> None:
        if not (self.finished or self.is_reset):
            self.outbox += data

    def finish(self) -> None:
        self.finished = True

    def reset(self) -> None:
        """What it has sent may still arrive first."""
        self.is_reset = True
        self.inbox.clear()

    def cut_off(self) -> None:
        """The proxy has closed without FIN."""
        self.saw_reset = True
        self.outbox.clear()

    @property
    def is_over(self) -> bool:
        return self.is_reset or self.saw_reset or (self.saw_fin and not self.inbox)


class Socket:
    """What is asked of a socket object. Without a descriptor: send(2) fails, and the transport gets all bytes."""

    def __init__(self, end: End) -> None:
        self.end = end

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None:
        """Nothing depends on it here."""

    def close(self) -> None:
        self.end.cut_off()


class Transport(asyncio.Transport):
    """The proxy's end. `high`: bytes it holds before the protocol is told to pause."""

    def __init__(self, loop: Loop, protocol: Any, end: End, high: int) -> None:
        super().__init__()
        self._loop = loop
        self.protocol = protocol
        self._socket = Socket(end)
        self._end = end
        self._high = high
        self._buffer = bytearray()
        self._choked = False
        self._fin = False
        self.closing = False
        self.paused = False
        self.fails = 0  # so many writes from now, one raises MemoryError; 0: none
        end.transport = self

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self._socket, "peername": ("sim", 1), "sockname": ("sim", 2)}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write(self, data: Any) -> None:
        if self.fails:
            self.fails -= 1
            if not self.fails:
                raise MemoryError("made by the simulation")
        if self.closing or self._fin:
            return
        if self._end.is_reset:
            self._die(ConnectionResetError("reset by the simulation"))
            return
        self._buffer += data
        self.flow()
        if len(self._buffer) > self._high and not self._choked:
            self._choked = True
            self.protocol.pause_writing()

    def flow(self) -> None:
        """The far end's kernel takes what it has room for."""
        end = self._end
        if end.is_reset or self.protocol is None:
            return
        room = end.window - len(end.inbox)
        if self._buffer and room > 0:
            end.inbox += self._buffer[:room]
            del self._buffer[:room]
        if self._choked and len(self._buffer) <= self._high // 4:
            self._choked = False
            self._loop.run(self.protocol.resume_writing)
        if not self._buffer and self._fin and not end.saw_fin:
            end.saw_fin = True
        if not self._buffer and self.closing:
            end.saw_fin = True
            self._loop.call_soon(self._lost, None)

    def write_eof(self) -> None:
        self._fin = True
        self.flow()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.flow()

    def abort(self) -> None:
        self._buffer.clear()
        self._end.cut_off()
        self._die(None)

    def _die(self, exc: Exception | None) -> None:
        self.closing = True
        self._buffer.clear()
        self._loop.call_soon(self._lost, exc)

    def _lost(self, exc: Exception | None) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(exc)

    # --- what comes from the far end ---

    def deliver(self, most: int) -> bool:
        """Brings the next bytes, or what is behind the last of them -> whether there was anything."""
        end = self._end
        if self.closing or self.protocol is None:
            return False
        if end.is_reset and self._buffer:  # it tries to write, whether or not it reads
            end.outbox.clear()
        elif self.paused:
            return False
        if end.outbox:
            data = bytes(end.outbox[:most])
            del end.outbox[:most]
            self._loop.run(self.protocol.data_received, data)
            return True
        if end.is_reset:
            self._die(ConnectionResetError("reset by the simulation"))
            return True
        if end.finished and not self.eof_told:
            self.eof_told = True
            self._loop.run(self._eof)
            return True
        return False

    eof_told = False

    def _eof(self) -> None:
        if not self.protocol.eof_received():
            self.close()


class Connecting:
    """A connection that is being made, until the network lets it through."""

    def __init__(self, factory: Callable[[], Any], node: tuple[str, int], answered: "asyncio.Future[Any]") -> None:
        self.factory = factory
        self.node = node
        self.answered = answered


class Network:
    """All connections. `high` and `window` are of all that are made from now on."""

    def __init__(self, loop: Loop, high: int, window: int) -> None:
        self.loop = loop
        self.high = high
        self.window = window
        self.connecting: list[Connecting] = []
        loop.connects = self

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> Any:
        attempt = Connecting(factory, (host, port), self.loop.create_future())
        self.connecting.append(attempt)
        return await attempt.answered

    def let_through(self, attempt: Connecting, end: End | None) -> None:
        """To this end; None: refused."""
        self.connecting.remove(attempt)
        if attempt.answered.done():
            return  # given up meanwhile
        if end is None:
            attempt.answered.set_exception(ConnectionRefusedError(111, "Connection refused"))
            return
        protocol = attempt.factory()
        transport = Transport(self.loop, protocol, end, self.high)
        self.loop.run(protocol.connection_made, transport)
        attempt.answered.set_result((transport, protocol))

    def take_over(self, factory: Callable[[], Any], sock: Socket) -> Any:
        protocol = factory()
        transport = Transport(self.loop, protocol, sock.end, self.high)
        self.loop.call_soon(protocol.connection_made, transport)
        return transport, protocol
