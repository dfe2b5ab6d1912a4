"""All names of one database of a server, in pages, by SCAN."""

import asyncio
from collections.abc import AsyncIterator

from protocol.reply import Error, Value, decode
from protocol.request import encode
from pyproxy.mover.connection import Connection, Lost, refusal

COUNT = 2000
"""Names of a page, roughly. The next one is asked for while this one is worked on."""


async def pages(connection: Connection) -> AsyncIterator[list[bytes]]:
    """Of the database that the connection is in. A name that is there all the time comes, perhaps twice. Raises Lost.

    No page has a name twice.
    """
    asked = _ask(connection, b"0")
    while True:
        cursor, names = _page(connection, decode((await asked)[0]))
        last = cursor == b"0"
        if not last:
            asked = _ask(connection, cursor)
        yield list(dict.fromkeys(names))
        if last:
            return


def _ask(connection: Connection, cursor: bytes) -> "asyncio.Future[list[bytes]]":
    return connection.send(encode((b"SCAN", cursor, b"COUNT", b"%d" % COUNT)), 1)


def _page(connection: Connection, answer: Value) -> tuple[bytes, list[bytes]]:
    match answer:
        case [bytes(cursor), list(names)]:
            return cursor, names
        case Error():
            raise Lost(f"{connection.node}: {refusal(b'SCAN', answer)}")
    raise Lost(f"{connection.node}: answered SCAN with what is no reply to it")
