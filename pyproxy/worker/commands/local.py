"""The commands that the proxy answers itself.

A local command is answered at once, from its arguments, the client and this worker (`Context`). Its handler never
waits, asks no shard and sends nothing. What it changes of the connection, it changes on the client object.
dispatch.py has checked the arity before. The command table says which commands are local (Kind.LOCAL).

    local_connection.py   the client's connection: PING, HELLO, SELECT, RESET ...
    local_client.py       CLIENT
    local_server.py       INFO, COMMAND, TIME, ROLE, the HELP texts, PUBSUB
    local_config.py       CONFIG
"""

from __future__ import annotations

from collections.abc import Sequence

from pyproxy.worker.commands import local_client, local_config, local_connection, local_server
from pyproxy.worker.commands.context import Client, Context, LocalHandler
from pyproxy.worker.lane.outcome import REPLY_OFF, REPLY_ON, REPLY_SKIP

LOCAL: dict[bytes, LocalHandler] = {
    **local_connection.HANDLERS,
    **local_client.HANDLERS,
    **local_server.HANDLERS,
    **local_config.HANDLERS,
}
"""The table's name of each local command -> what answers it."""


def answer(name: bytes, client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The reply to the local command `name` (as in the table: `client|id`); b"" if the client wants no reply.

    CLIENT REPLY SKIP mutes the next command, OFF all commands until ON or RESET. ON always gets a reply, RESET unless
    SKIP has muted it.
    """
    before = client.reply_mode
    if before == REPLY_SKIP:
        client.reply_mode = REPLY_ON
    reply = LOCAL[name](client, argv, context)
    is_on = name == b"client|reply" and argv[2].lower() == b"on"
    speaks_again = is_on or (name == b"reset" and before == REPLY_OFF)
    return reply if before == REPLY_ON or speaks_again else b""
