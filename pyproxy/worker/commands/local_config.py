"""Local commands: CONFIG GET, SET and RESETSTAT, as far as no server has to be asked (see settings.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol import errors, glob, notifications
from protocol.reply import OK, Value, encode
from protocol.table import CONFIGURED_ELSEWHERE
from pyproxy.shard_map import Node
from pyproxy.worker.commands import info
from pyproxy.worker.commands.context import Client, Context, LocalHandler
from pyproxy.worker.commands.local_connection import DATABASES

_PATTERNS = 128  # of one CONFIG GET
_PATTERN_BYTES = 256  # no setting has a name that long; a pattern that is longer matches none


def _config_get(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return shown(client, argv, context, {})


def shown(client: Client, argv: Sequence[bytes], context: Context, of_servers: Mapping[bytes, str]) -> bytes:
    """The answer to CONFIG GET, by names or patterns. A name is shown in the client's own case.

    `of_servers`: the values that the servers have given, see `settings_of_servers`.
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
    """The settings that clients, exporters and redis-benchmark read, with the proxy's values."""
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
    """The settings in this CONFIG GET that only servers know: those of `config_set` that no client has set here."""
    known = _settings(context)
    names = [name.encode() for name in context.setup.config.config_set if name.encode() not in known]
    return [name for name in names if any(_asks_for(asked.lower(), name) for asked in argv[2 : 2 + _PATTERNS])]


def _asks_for(wanted: bytes, name: bytes) -> bool:
    is_pattern = any(sign in wanted for sign in (b"*", b"?", b"["))
    return glob.matches(wanted, name) if is_pattern and len(wanted) <= _PATTERN_BYTES else wanted == name


def _config_resetstat(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Reset the proxy's numbers, of all workers. Those of a server are reset on that server."""
    context.page.reset()
    return OK


def _config_set(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """Have the parent set it on all servers. settings.py has asked the servers before, where they decide."""
    line = unsettable(argv, context)
    if line:
        return line
    for name, value in zip(argv[2::2], argv[3::2], strict=True):
        is_ours = name.lower() == notifications.SETTING.encode()
        context.configure(name.lower().decode(), notifications.parse(value) or "" if is_ours else value.decode())
    return OK


def unsettable(argv: Sequence[bytes], context: Context) -> bytes:
    """The error line if the proxy itself must refuse this CONFIG SET; empty if not."""
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
    """The error line if notify-keyspace-events cannot be set to this value; else empty."""
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
    """The value that a client has set, else the fixed one of the servers."""
    name = notifications.SETTING
    fixed = {each.value for each in context.settings.fixed if each.name == name and each.value is not None}
    known = context.settings.told.get(name, fixed.pop() if len(fixed) == 1 else "")
    return notifications.shown(known)


HANDLERS: dict[bytes, LocalHandler] = {
    b"config|get": _config_get,
    b"config|resetstat": _config_resetstat,
    b"config|set": _config_set,
}
