"""The commands the proxy answers itself.

A client, its command and this worker (`Context`) come in; one reply goes out, at once: nothing here waits, asks a shard
or sends. What a command changes of its connection it changes on the client object. Arity is checked before; which
commands are local is said in the command table, and a test holds the two together.

Texts and checks are those of Redis 7.0 and Valkey 9.1, as if no password were set.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from protocol import errors, glob, helps, introspect, notifications
from protocol.reply import OK, Value, Verbatim, encode
from protocol.table import CONFIGURED_ELSEWHERE
from pyproxy.shard_map import Node
from pyproxy.slices import batches
from pyproxy.worker.commands import info
from pyproxy.worker.commands.context import REPLY_OFF, REPLY_ON, REPLY_SKIP, Client, Context
from pyproxy.worker.pubsub.registry import Sort

Handler = Callable[[Client, Sequence[bytes], Context], bytes]

DATABASES = 16
USER = b"default"
_PRINTABLE = re.compile(rb"[!-~]*")  # server.c, validateClientAttr
_INTEGER = re.compile(rb"-?[1-9][0-9]{0,18}|0")  # util.c, string2ll: no sign +, no leading zero, no space
_PATTERNS = 128  # of one CONFIG GET
_PATTERN_BYTES = 256  # no setting has a name that long; a pattern that is longer matches none


def answer(name: bytes, client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The reply to the local command ``name`` (as in the table: ``client|id``), or nothing if the client wants none.

    CLIENT REPLY SKIP mutes one command, OFF all of them, until ON or RESET: ON is answered in any case, RESET unless it
    is the one command that SKIP mutes.
    """
    before = client.reply_mode
    if before == REPLY_SKIP:
        client.reply_mode = REPLY_ON
    reply = LOCAL[name](client, argv, context)
    is_on = name == b"client|reply" and argv[2].lower() == b"on"
    speaks_again = is_on or (name == b"reset" and before == REPLY_OFF)
    return reply if before == REPLY_ON or speaks_again else b""


# --- the connection ---------------------------------------------------------------------------------------------------


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
    """The library's name and version stay: the library is the same."""
    if client.subscriber is not None:
        client.subscriber.left()
    client.switch(2, 0)
    client.name = b""
    client.reply_mode = REPLY_ON
    client.end_transaction()
    client.end_watch()
    return b"+RESET\r\n"


def _hello(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Nothing changes unless all of it is right."""
    proto, name = client.proto, client.name
    if len(argv) > 1:
        version = _integer(argv[1])
        if version is None:
            return errors.protocol_version_not_an_integer()
        if version not in (2, 3):
            return errors.unsupported_protocol()
        proto = version
    user, at = USER, 2
    while at < len(argv):
        option, left = argv[at].lower(), len(argv) - 1 - at
        if option == b"auth" and left >= 2:
            user = argv[at + 1]
            at += 3
        elif option == b"setname" and left >= 1:
            name = argv[at + 1]
            if not _PRINTABLE.fullmatch(name):
                return errors.bad_client_name()
            at += 2
        else:
            return errors.hello_option(argv[at])
    if user != USER:
        return errors.wrong_password()
    client.name = name
    if proto != client.proto:
        client.switch(proto, client.db)
    # "redis" and the lowest version of the backends: clients choose by them what they may send.
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
    """The one user, ``default``, has no password, so any will do."""
    if len(argv) == 2:
        return errors.auth_without_password()
    if len(argv) > 3:
        return errors.syntax_error()
    return OK if argv[1] == USER else errors.wrong_password()


def _select(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    db = _integer(argv[1])
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
    """READONLY and READWRITE, as servers without a cluster take them: Valkey since 8, and Redis does not."""
    versions = [health.info.get("valkey_version", "") for health in context.healths()]
    is_known = bool(versions) and all(version.partition(".")[0] not in ("", "7") for version in versions)
    return OK if is_known else errors.no_cluster()


def _acl_whoami(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(USER, client.proto)


# --- CLIENT -----------------------------------------------------------------------------------------------------------


def _client_id(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(client.id, client.proto)


def _client_info(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(Verbatim(_line(client, context.now())), client.proto)


def _client_list(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The clients of this worker; of very many see conversations/clients.py."""
    try:
        listed, lines = chosen(argv, context), list[bytes]()
    except ClientError as wrong:
        return wrong.line
    for _ in described(listed, context.now(), lines):
        pass
    return encode(Verbatim(b"".join(lines)), client.proto)


class ClientError(Exception):
    """What CLIENT LIST is asked cannot be answered; `line` says why."""

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
            number = _integer(word)
            if number is None:
                raise ClientError(errors.bad_client_id())
            ids.add(number)
    elif asked:
        raise ClientError(errors.syntax_error())
    shown = [each for each in context.clients() if ids is None or each.id in ids]
    if subscribed is not None:
        shown = [each for each in shown if (each.subscriber is not None) == subscribed]
    return shown


def _line(client: Client, now: float) -> bytes:
    """One client as CLIENT LIST prints it (networking.c, catClientInfoString, of Redis 7.2 and Valkey 9).

    What only a server has (argument memory, the query buffer's spare part) is zero.
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
    if not _PRINTABLE.fullmatch(argv[2]):
        return errors.bad_client_name()
    client.name = argv[2]
    return OK


def _client_setinfo(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    attribute, value = argv[2].upper(), argv[3]
    if attribute not in (b"LIB-NAME", b"LIB-VER"):
        return errors.unknown_client_attribute(argv[2])
    if not _PRINTABLE.fullmatch(value):
        return errors.bad_client_info(argv[2])
    if attribute == b"LIB-NAME":
        client.lib_name = value
    else:
        client.lib_ver = value
    return OK


def _client_on_off(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """NO-EVICT and NO-TOUCH: taken, since clients send them unasked, and without effect."""
    return OK if argv[2].lower() in (b"on", b"off") else errors.syntax_error()


def _client_capa(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """What the client could do for us: follow a redirection. None is ever sent."""
    return OK


def _client_getredir(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Nobody is tracked, as CLIENT TRACKING is refused."""
    return encode(-1, client.proto)


def _client_trackinginfo(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    said: dict[Value, Value] = {"flags": frozenset([b"off"]), "redirect": -1, "prefixes": []}
    return encode(said, client.proto)


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


# --- the server -------------------------------------------------------------------------------------------------------


def _time(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return encode([str(seconds), str(micros)], client.proto)


def _info(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(Verbatim(info.render(argv[1:], context)), client.proto)


def _role(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """A master without replicas: those of the shards are no business of a client."""
    return encode(["master", 0, []], client.proto)


def _lastsave(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Since then, at the latest, all shards have saved."""
    return encode(info.last_save(context.healths()), client.proto)


def _command(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return introspect.answer(argv, context.table, client.proto)


def _help(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(helps.lines(argv[0]), client.proto)


def _lolwut(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """One line for each shard, and all of them end in the same place."""
    shards = len(context.topology.shards)
    funnel = [" " * i + "\\" * (shards - i) + "/" * (shards - i) for i in range(shards)]
    text = "\n".join([*funnel, " " * shards + "|", f"pyproxy ver. {context.setup.version}", ""])
    return encode(Verbatim(text.encode()), client.proto)


def _config_get(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return shown(client, argv, context, {})


def shown(client: Client, argv: Sequence[bytes], context: Context, of_servers: Mapping[bytes, str]) -> bytes:
    """The answer to CONFIG GET, by name or pattern; a name is given back as it was asked for.

    `of_servers`: the values that the servers have said, see `settings_of_servers`.
    """
    if len(argv) - 2 > _PATTERNS:
        return errors.too_many_patterns("config|get", _PATTERNS)
    settings = {**of_servers, **_settings(context)}
    found: dict[bytes, bytes] = {}  # lower-case name -> name as it is shown
    for asked in argv[2:]:
        wanted = asked.lower()
        if wanted in settings and not any(sign in wanted for sign in (b"*", b"?", b"[")):
            found.setdefault(wanted, asked)
        else:
            found |= {name: name for name in settings if name not in found and _asks_for(wanted, name)}
    shown: dict[Value, Value] = {shown: settings[name] for name, shown in found.items()}
    return encode(shown, client.proto)


def _settings(context: Context) -> Mapping[bytes, str]:
    """What clients, exporters and redis-benchmark ask for, as it is for a client of the proxy."""
    limits, healths = context.setup.config.limits, context.healths()
    listen = Node.parse(context.setup.listen)
    told = {name.encode(): value for name, value in context.settings.told.items()}
    return told | {
        b"appendonly": "no",
        b"bind": listen.host,
        b"cluster-enabled": "no",
        b"databases": str(DATABASES),
        b"maxclients": str(limits.max_clients),
        b"maxmemory": str(info.maxmemory(healths)),
        b"maxmemory-policy": info.maxmemory_policy(healths),
        notifications.SETTING.encode(): _notifications(context),
        b"port": str(listen.port),
        b"proto-max-bulk-len": str(limits.bulk_bytes),
        b"replica-read-only": "yes",
        b"save": "",
        b"slave-read-only": "yes",
        b"timeout": "0",
    }


def settings_of_servers(argv: Sequence[bytes], context: Context) -> list[bytes]:
    """Which of the settings that this CONFIG GET asks for only the servers know: of `config_set`, and not set here."""
    known = _settings(context)
    names = [name.encode() for name in context.setup.config.config_set if name.encode() not in known]
    return [name for name in names if any(_asks_for(asked.lower(), name) for asked in argv[2 : 2 + _PATTERNS])]


def _asks_for(wanted: bytes, name: bytes) -> bool:
    is_pattern = any(sign in wanted for sign in (b"*", b"?", b"["))
    return glob.matches(wanted, name) if is_pattern and len(wanted) <= _PATTERN_BYTES else wanted == name


def _config_resetstat(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The proxy's own numbers, of all workers; those of a server are reset at that server."""
    context.page.reset()
    return OK


def _config_set(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """What is set is kept by the parent, which sets it on all servers; see conversations/settings.py."""
    line = unsettable(argv, context)
    if line:
        return line
    for name, value in zip(argv[2::2], argv[3::2], strict=True):
        is_ours = name.lower() == notifications.SETTING.encode()
        context.configure(name.lower().decode(), notifications.parse(value) or "" if is_ours else value.decode())
    return OK


def unsettable(argv: Sequence[bytes], context: Context) -> bytes:
    """Why this CONFIG SET cannot be, as far as it is known here, and so nothing of it is done; empty: it can be."""
    if len(argv) % 2:
        return errors.syntax_error()
    names, ours = [each.lower() for each in argv[2::2]], notifications.SETTING.encode()
    if any(name != ours and name.decode("latin-1") not in context.setup.config.config_set for name in names):
        return errors.refused("config|set", CONFIGURED_ELSEWHERE)
    for index, name in enumerate(names):
        if name in names[:index]:
            return errors.config_set_failed(argv[2 + 2 * index], "duplicate parameter")
    for name, value in zip(names, argv[3::2], strict=True):
        line = _bad_flags(value, context) if name == ours else b""
        if line:
            return line
        if not value.isascii():
            return errors.config_set_failed(name, "expected ASCII")
    return b""


def _bad_flags(value: bytes, context: Context) -> bytes:
    """Why notify-keyspace-events cannot be set to this."""
    name, flags = notifications.SETTING, notifications.parse(value)
    if flags is None:
        return errors.config_set_failed(name, notifications.INVALID)
    for fixed in context.settings.fixed:
        if fixed.name == name and fixed.value is None:
            return errors.setting_unknown(name, fixed.shard)
        if fixed.name == name and fixed.value != flags:
            return errors.setting_fixed(name, fixed.shard, fixed.value or "")
    return b""


def _notifications(context: Context) -> str:
    """As a client has set it, else as it is fixed."""
    name = notifications.SETTING
    fixed = {each.value for each in context.settings.fixed if each.name == name and each.value is not None}
    known = context.settings.told.get(name, fixed.pop() if len(fixed) == 1 else "")
    return notifications.shown(known)


# --- PUBSUB -----------------------------------------------------------------------------------------------------------


def _pubsub_channels(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    if len(argv) > 3:
        return errors.subcommand_syntax("pubsub", argv[1])
    sort = Sort.SHARD if argv[1].lower() == b"shardchannels" else Sort.CHANNEL
    return encode(context.register.names(sort, argv[2] if len(argv) == 3 else None), client.proto)


def _pubsub_numsub(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    sort = Sort.SHARD if argv[1].lower() == b"shardnumsub" else Sort.CHANNEL
    return encode([each for name in argv[2:] for each in (name, context.register.count(sort, name))], client.proto)


def _pubsub_numpat(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(context.register.total(Sort.PATTERN), client.proto)


def _integer(text: bytes) -> int | None:
    """The 64-bit integer, written as Redis demands it."""
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None


LOCAL: dict[bytes, Handler] = {
    b"acl|whoami": _acl_whoami,
    b"auth": _auth,
    b"client|capa": _client_capa,
    b"client|getname": _client_getname,
    b"client|getredir": _client_getredir,
    b"client|help": _help,
    b"client|id": _client_id,
    b"client|info": _client_info,
    b"client|list": _client_list,
    b"client|no-evict": _client_on_off,
    b"client|no-touch": _client_on_off,
    b"client|reply": _client_reply,
    b"client|setinfo": _client_setinfo,
    b"client|setname": _client_setname,
    b"client|trackinginfo": _client_trackinginfo,
    b"command": _command,
    b"command|count": _command,
    b"command|docs": _command,
    b"command|getkeys": _command,
    b"command|getkeysandflags": _command,
    b"command|help": _command,
    b"command|info": _command,
    b"command|list": _command,
    b"config|get": _config_get,
    b"config|help": _help,
    b"config|resetstat": _config_resetstat,
    b"config|set": _config_set,
    b"echo": _echo,
    b"function|help": _help,
    b"hello": _hello,
    b"info": _info,
    b"lastsave": _lastsave,
    b"lolwut": _lolwut,
    b"memory|help": _help,
    b"object|help": _help,
    b"ping": _ping,
    b"pubsub|channels": _pubsub_channels,
    b"pubsub|help": _help,
    b"pubsub|numpat": _pubsub_numpat,
    b"pubsub|numsub": _pubsub_numsub,
    b"pubsub|shardchannels": _pubsub_channels,
    b"pubsub|shardnumsub": _pubsub_numsub,
    b"quit": _quit,
    b"readonly": _readonly,
    b"readwrite": _readonly,
    b"reset": _reset,
    b"role": _role,
    b"script|help": _help,
    b"select": _select,
    b"time": _time,
    b"unwatch": _unwatch,
    b"xgroup|help": _help,
    b"xinfo|help": _help,
}
"""The table's name of each local command -> what answers it."""
