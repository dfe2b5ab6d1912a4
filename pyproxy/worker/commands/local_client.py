"""Local commands: CLIENT and its subcommands, about the clients of this worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from protocol import errors
from protocol.keyspecs import number
from protocol.reply import OK, Value, Verbatim, encode
from pyproxy.slices import batches
from pyproxy.worker.commands.context import Client, Context, LocalHandler
from pyproxy.worker.commands.local_connection import PRINTABLE, USER
from pyproxy.worker.lane.outcome import REPLY_OFF, REPLY_ON, REPLY_SKIP


def _client_id(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(client.id, client.proto)


def _client_info(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(Verbatim(_line(client, context.now())), client.proto)


def _client_list(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The clients of this worker; client_list.py serves very many."""
    try:
        listed, lines = chosen(argv, context), list[bytes]()
    except ClientError as wrong:
        return wrong.line
    for _ in described(listed, context.now(), lines):
        pass
    return encode(Verbatim(b"".join(lines)), client.proto)


class ClientError(Exception):
    """The arguments of CLIENT LIST are wrong. `line`: the error line."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line


def described(clients: Iterable[Client], now: float, lines: list[bytes]) -> Iterator[int]:
    """A line for each of the clients, as work for slices.py."""
    for some in batches(clients):
        lines += [_line(each, now) for each in some]
        yield len(some)


def chosen(argv: Sequence[bytes], context: Context) -> list[Client]:
    """Whom a CLIENT LIST asks for: every client is of the type ``normal`` or ``pubsub``. Raises ClientError."""
    asked = argv[2].lower() if len(argv) > 2 else b""
    ids: set[int] | None = None
    subscribed: bool | None = None  # either
    if asked == b"type" and len(argv) == 4:
        kind = argv[3].lower()
        if kind not in (b"normal", b"master", b"primary", b"replica", b"slave", b"pubsub"):
            raise ClientError(errors.unknown_client_type(argv[3]))
        ids = None if kind in (b"normal", b"pubsub") else set()
        subscribed = kind == b"pubsub"
    elif asked == b"id" and len(argv) > 3:
        ids = set()
        for word in argv[3:]:
            client_id = number(word)
            if client_id is None:
                raise ClientError(errors.bad_client_id())
            ids.add(client_id)
    elif asked:
        raise ClientError(errors.syntax_error())
    shown = [each for each in context.clients() if ids is None or each.id in ids]
    if subscribed is not None:
        shown = [each for each in shown if (each.subscriber is not None) == subscribed]
    return shown


def _line(client: Client, now: float) -> bytes:
    """One client as CLIENT LIST prints it (networking.c, catClientInfoString, of Redis 7.2 and Valkey 9).

    Fields that only a server can fill (argument memory, free space of the query buffer) are zero.
    """
    subscribed = client.subscriber.counts if client.subscriber else (0, 0, 0)
    fields: dict[str, object] = {
        "id": client.id,
        "addr": client.addr,
        "laddr": client.laddr,
        "fd": client.fd,
        "name": client.name.decode("latin-1"),
        "age": max(0, int(now - client.created)),
        "idle": max(0, int(now - client.last_active)),
        "flags": _flags(client),
        "db": client.db,
        **dict(zip(("sub", "psub", "ssub"), subscribed, strict=True)),
        "multi": -1 if client.transaction is None else len(client.transaction.commands),
        "watch": client.watched.keys if client.watched is not None else 0,
        "qbuf": client.buffered_in,
        "qbuf-free": 0,
        "argv-mem": 0,
        "multi-mem": client.queued_bytes,
        "rbs": 0,
        "rbp": 0,
        "obl": 0,
        "oll": int(client.buffered_out > 0),
        "omem": client.buffered_out,
        "tot-mem": client.buffered_in + client.buffered_out,
        "events": "r",
        "cmd": client.last_command.decode("latin-1") or "NULL",
        "user": USER.decode(),
        "redir": -1,
        "resp": client.proto,
        "lib-name": client.lib_name.decode("latin-1"),
        "lib-ver": client.lib_ver.decode("latin-1"),
        "tot-cmds": client.commands,
    }
    return " ".join(f"{name}={value}" for name, value in fields.items()).encode("latin-1") + b"\n"


def _flags(client: Client) -> str:
    """In the order in which Redis prints them."""
    in_multi, waits = client.transaction is not None, client.conversation is not None and client.conversation.waits
    return "P" * (client.subscriber is not None) + "x" * in_multi + "b" * waits or "N"


def _client_getname(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(client.name or None, client.proto)


def _client_setname(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    if not PRINTABLE.fullmatch(argv[2]):
        return errors.bad_client_name()
    client.name = argv[2]
    return OK


def _client_setinfo(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    attribute, value = argv[2].upper(), argv[3]
    if attribute not in (b"LIB-NAME", b"LIB-VER"):
        return errors.unknown_client_attribute(argv[2])
    if not PRINTABLE.fullmatch(value):
        return errors.bad_client_info(argv[2])
    if attribute == b"LIB-NAME":
        client.lib_name = value
    else:
        client.lib_ver = value
    return OK


def _client_on_off(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """NO-EVICT and NO-TOUCH: accepted without effect, as client libraries send them at their start."""
    return OK if argv[2].lower() in (b"on", b"off") else errors.syntax_error()


def _client_capa(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The client announces that it follows redirections. The proxy sends none."""
    return OK


def _client_getredir(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Always -1: CLIENT TRACKING is refused."""
    return encode(-1, client.proto)


def _client_trackinginfo(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    reply: dict[Value, Value] = {"flags": frozenset([b"off"]), "redirect": -1, "prefixes": []}
    return encode(reply, client.proto)


def _client_reply(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    mode = argv[2].lower()
    if mode == b"on":
        client.reply_mode = REPLY_ON
        return OK
    if mode == b"off":
        client.reply_mode = REPLY_OFF
        return b""
    if mode == b"skip":
        if client.reply_mode != REPLY_OFF:
            client.reply_mode = REPLY_SKIP
        return b""
    return errors.syntax_error()


HANDLERS: dict[bytes, LocalHandler] = {
    b"client|capa": _client_capa,
    b"client|getname": _client_getname,
    b"client|getredir": _client_getredir,
    b"client|id": _client_id,
    b"client|info": _client_info,
    b"client|list": _client_list,
    b"client|no-evict": _client_on_off,
    b"client|no-touch": _client_on_off,
    b"client|reply": _client_reply,
    b"client|setinfo": _client_setinfo,
    b"client|setname": _client_setname,
    b"client|trackinginfo": _client_trackinginfo,
}
