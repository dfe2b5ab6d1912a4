"""Local commands about the connection of the client: PING, HELLO, AUTH, SELECT, RESET and others.

Texts and checks are those of Redis 7.0 and Valkey 9.1, as if no password were set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import OK, Value, encode
from pyproxy.worker.commands import info
from pyproxy.worker.commands.context import Client, Context, LocalHandler
from pyproxy.worker.lane.outcome import REPLY_ON

DATABASES = 16

USER = b"default"

PRINTABLE = re.compile(rb"[!-~]*")
"""What the name of a client, or of its library, may consist of (server.c, validateClientAttr)."""


def _ping(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    if len(argv) > 2:
        return errors.wrong_arity("ping")
    if client.limited:
        return encode([b"pong", argv[1] if len(argv) == 2 else b""], client.proto)
    return encode(argv[1], client.proto) if len(argv) == 2 else b"+PONG\r\n"


def _echo(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(argv[1], client.proto)


def _quit(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    client.finish()
    return OK


def _reset(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The name and the version of the library stay, as the library is the same."""
    if client.subscriber is not None:
        client.subscriber.on_left()
    client.switch(2, 0)
    client.name = b""
    client.reply_mode = REPLY_ON
    client.end_transaction()
    client.end_watch()
    return b"+RESET\r\n"


def _hello(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Nothing changes unless all options are right."""
    proto, name = client.proto, client.name
    if len(argv) > 1:
        version = number(argv[1])
        if version is None:
            return errors.protocol_version_not_an_integer()
        if version not in (2, 3):
            return errors.unsupported_protocol()
        proto = version
    user, index = USER, 2
    while index < len(argv):
        option, left = argv[index].lower(), len(argv) - 1 - index
        if option == b"auth" and left >= 2:
            user = argv[index + 1]
            index += 3
        elif option == b"setname" and left >= 1:
            name = argv[index + 1]
            if not PRINTABLE.fullmatch(name):
                return errors.bad_client_name()
            index += 2
        else:
            return errors.hello_option(argv[index])
    if user != USER:
        return errors.wrong_password()
    client.name = name
    if proto != client.proto:
        client.switch(proto, client.db)
    # Clients decide by these fields which commands they may send: "redis", and the lowest version of the servers.
    server: dict[Value, Value] = {
        "server": "redis",
        "version": info.lowest_version(context.healths()),
        "proto": proto,
        "id": client.id,
        "mode": "standalone",
        "role": "master",
        "modules": [],
    }
    return encode(server, proto)


def _auth(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The only user, `default`, has no password, so any password is right."""
    if len(argv) == 2:
        return errors.auth_without_password()
    if len(argv) > 3:
        return errors.syntax_error()
    return OK if argv[1] == USER else errors.wrong_password()


def _select(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    db = number(argv[1])
    if db is None:
        return errors.not_an_integer()
    if not -(1 << 31) <= db < 1 << 31:
        return errors.not_a_c_int()
    if not 0 <= db < DATABASES:
        return errors.db_index_out_of_range()
    if db != client.db:
        client.switch(client.proto, db)
    return OK


def _unwatch(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    client.end_watch()
    return OK


def _readonly(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """READONLY and READWRITE. Without a cluster, Valkey accepts them since version 8, and Redis refuses them."""
    versions = [health.info.get("valkey_version", "") for health in context.healths()]
    is_known = bool(versions) and all(version.partition(".")[0] not in ("", "7") for version in versions)
    return OK if is_known else errors.no_cluster()


def _acl_whoami(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(USER, client.proto)


HANDLERS: dict[bytes, LocalHandler] = {
    b"acl|whoami": _acl_whoami,
    b"auth": _auth,
    b"echo": _echo,
    b"hello": _hello,
    b"ping": _ping,
    b"quit": _quit,
    b"readonly": _readonly,
    b"readwrite": _readonly,
    b"reset": _reset,
    b"select": _select,
    b"unwatch": _unwatch,
}
