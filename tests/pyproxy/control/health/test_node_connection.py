import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol.reply import Error
from pyproxy.access import Access
from pyproxy.config import BackendAccess
from pyproxy.control.health import node_connection
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.fleet import HOST, Server, reserve_port
from pyproxy.shard_map import Node
from tests.certificates import Authority
from tests.faults import Hop

PING = (b"PING",)
PLAIN = Access(BackendAccess())


@asynccontextmanager
async def faulty(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[NodeConnection]:
    """A connection to a server that answers the first bytes it gets as `answer` does, and is then silent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await answer(writer)

    async with await asyncio.start_server(serve, HOST, 0) as server:
        connection = await NodeConnection.open(Node(HOST, server.sockets[0].getsockname()[1]), PLAIN, 5.0)
        yield connection
        connection.close()


def says(data: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer


async def test_replies_come_in_the_order_of_the_commands(server: Server) -> None:
    connection = await NodeConnection.open(Node(HOST, server.port), PLAIN, 5.0)
    replies = await connection.ask((b"ECHO", b"a"), (b"NOSUCH",), (b"ECHO", b"\xff"), deadline_s=5.0)
    connection.close()
    assert replies[::2] == [b"a", b"\xff"]
    assert isinstance(replies[1], Error)
    assert replies[1].line.startswith(b"ERR unknown command")


async def test_a_connection_is_asked_again_and_again(server: Server) -> None:
    connection = await NodeConnection.open(Node(HOST, server.port), PLAIN, 5.0)
    for number in range(100):
        assert await connection.ask((b"ECHO", b"%d" % number), deadline_s=5.0) == [b"%d" % number]
    connection.close()


async def test_a_refused_connection_is_said_in_the_systems_words() -> None:
    with reserve_port() as keeper, pytest.raises(NodeError, match=r"^connection refused$"):
        await NodeConnection.open(Node(HOST, keeper.getsockname()[1]), PLAIN, 5.0)


async def test_a_name_that_nobody_has_is_an_error() -> None:
    with pytest.raises(NodeError):
        await NodeConnection.open(Node("no-such-host.invalid", 1), PLAIN, 5.0)


async def test_a_server_that_does_not_answer_has_a_deadline() -> None:
    async with faulty(says(b"")) as connection:
        with pytest.raises(NodeError, match=r"^no reply within 0\.05 s$"):
            await connection.ask(PING, deadline_s=0.05)


async def test_the_deadline_is_of_the_whole_reply_and_not_of_each_byte() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"+")
            await asyncio.sleep(0.01)

    async with faulty(drip) as connection:
        with pytest.raises(NodeError, match="no reply within"):
            await connection.ask(PING, deadline_s=0.2)


async def test_a_server_that_closes_is_an_error() -> None:
    async def close(writer: asyncio.StreamWriter) -> None:
        writer.write(b"$10\r\nabc")
        writer.close()

    async with faulty(close) as connection:
        with pytest.raises(NodeError, match=r"^connection closed by the server$"):
            await connection.ask(PING, deadline_s=5.0)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"$-5\r\n", b"\0\0\r\n"])
async def test_what_is_no_reply_is_an_error(data: bytes) -> None:
    async with faulty(says(data)) as connection:
        with pytest.raises(NodeError, match=r"^not a redis server: it answered what is no reply$"):
            await connection.ask(PING, deadline_s=5.0)


async def test_a_reply_too_many_is_an_error() -> None:
    async with faulty(says(b"+PONG\r\n+OK\r\n")) as connection:
        with pytest.raises(NodeError, match=r"^reply that nobody asked for$"):
            await connection.ask(PING, deadline_s=5.0)


async def test_nothing_is_allocated_on_the_word_of_a_header() -> None:
    async with faulty(says(b"*4294967295\r\n")) as connection:
        with pytest.raises(NodeError, match="no reply"):
            await connection.ask(PING, deadline_s=0.1)


async def test_a_reply_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_connection, "REPLY_LIMIT", 1 << 20)

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"$500000000\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            try:
                await writer.drain()
            except ConnectionError:
                return

    async with faulty(endless) as connection:
        with pytest.raises(NodeError, match=r"^reply of more than 1048576 bytes$"):
            await connection.ask(PING, deadline_s=10.0)


# --- TLS and AUTH -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def user(server: Server, name: str, *passwords: str) -> Iterator[None]:
    """Meanwhile the server knows a user with these passwords."""
    server.ask("ACL", "SETUSER", name, "on", *[f">{each}" for each in passwords], "~*", "&*", "+@all")
    yield
    server.ask("ACL", "DELUSER", name)


def with_passwords(directory: Path, *passwords: str) -> Access:
    file = directory / "passwords"
    file.touch(mode=0o600)
    file.write_text("".join(f"{each}\n" for each in passwords))
    return Access(BackendAccess(username="monitor", password_file=str(file)))


@pytest.mark.parametrize("passwords", [("right",), ("right", "wrong"), ("wrong", "right")])
async def test_it_is_let_in_with_either_password(server: Server, tmp_path: Path, passwords: tuple[str, ...]) -> None:
    with user(server, "monitor", "right"):
        connection = await NodeConnection.open(Node(HOST, server.port), with_passwords(tmp_path, *passwords), 5.0)
        assert await connection.ask((b"ACL", b"WHOAMI"), deadline_s=5.0) == [b"monitor"]
        connection.close()


async def test_a_wrong_password_is_an_error(server: Server, tmp_path: Path) -> None:
    with user(server, "monitor", "right"), pytest.raises(NodeError, match=r"^refused the password of "):
        await NodeConnection.open(Node(HOST, server.port), with_passwords(tmp_path, "wrong"), 5.0)


async def test_a_password_that_cannot_be_read_is_an_error(server: Server, tmp_path: Path) -> None:
    access = with_passwords(tmp_path)
    with pytest.raises(NodeError, match=r"^backend\.password_file: expected one password"):
        await NodeConnection.open(Node(HOST, server.port), access, 5.0)


async def test_over_tls_it_asks_as_without(server: Server, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    access = Access(BackendAccess(tls=True, tls_ca=str(authority.file)))
    with Hop(server.port, tls=authority.server(HOST)) as hop:
        connection = await NodeConnection.open(Node(HOST, hop.port), access, 5.0)
        assert await connection.ask(PING, (b"ECHO", b"x" * 1_000_000), deadline_s=5.0) == [b"PONG", b"x" * 1_000_000]
        connection.close()


async def test_a_certificate_of_another_host_is_an_error(server: Server, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    access = Access(BackendAccess(tls=True, tls_ca=str(authority.file)))
    with Hop(server.port, tls=authority.server("127.0.0.2")) as hop:
        with pytest.raises(NodeError, match=r"^tls: certificate not accepted: .*not valid for '127\.0\.0\.1'"):
            await NodeConnection.open(Node(HOST, hop.port), access, 5.0)
        assert hop.requests == b""


async def test_what_a_subscriber_is_told_is_heard_and_so_is_the_end(server: Server) -> None:
    connection = await NodeConnection.open(Node(HOST, server.port), PLAIN, 5.0)
    await connection.ask((b"SUBSCRIBE", b"news"), deadline_s=5.0)
    assert not await connection.receives(0.01)
    server.ask("PUBLISH", "news", "one")
    assert await connection.receives(5.0)
    assert not await connection.receives(0.01)
    server.ask("CLIENT", "KILL", "TYPE", "pubsub")
    with pytest.raises(NodeError, match=r"^connection closed by the server$"):
        await connection.receives(5.0)
    connection.close()


async def test_a_connection_that_was_reset_between_two_questions_is_told_as_such() -> None:
    """Nobody reads it meanwhile."""

    async def pong_and_reset(writer: asyncio.StreamWriter) -> None:
        writer.write(b"+PONG\r\n")
        await writer.drain()
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with faulty(pong_and_reset) as connection:
        with contextlib.suppress(NodeError):  # the reset may be faster than the answer
            await connection.ask(PING, deadline_s=5.0)
        for _ in range(3):
            await asyncio.sleep(0)
        await until_closed(connection)
        with pytest.raises(NodeError):
            await connection.ask(PING, deadline_s=5.0)


async def until_closed(connection: NodeConnection) -> None:
    async with asyncio.timeout(5.0):
        while "closed" not in repr(connection):  # noqa: ASYNC110 - the transport tells nobody
            await asyncio.sleep(0.01)


async def test_what_a_server_says_of_itself_is_bounded() -> None:
    async with faulty(says(b"$300000\r\n" + b"x" * 300_000 + b"\r\n")) as connection:
        with pytest.raises(NodeError, match=f"reply of more than {node_connection.INFO_LIMIT} bytes"):
            await connection.ask((b"INFO",), deadline_s=5.0, most=node_connection.INFO_LIMIT)


async def test_what_was_not_answered_does_not_arrive_after_the_connection_was_closed() -> None:
    """A server that stands still has a part of it, and reads on when all is over: a REPLICAOF is not done then."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind((HOST, 0))
    listener.listen()
    connection = await NodeConnection.open(Node(HOST, listener.getsockname()[1]), PLAIN, 5.0)
    with listener, listener.accept()[0] as server:
        with pytest.raises(NodeError, match="no reply within"):
            await connection.ask((b"SET", b"key", b"x" * 300_000), (b"REPLICAOF", b"host", b"1"), deadline_s=0.1)
        connection.close()
        await asyncio.sleep(0)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := server.recv(65536):
                received += data
    assert b"REPLICAOF" not in received
