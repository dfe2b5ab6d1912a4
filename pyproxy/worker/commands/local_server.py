"""Local commands that say what server this is: INFO, COMMAND, TIME, ROLE, the HELP texts, and PUBSUB."""

from __future__ import annotations

import time
from collections.abc import Sequence

from protocol import errors, helps, introspect
from protocol.reply import Verbatim, encode
from pyproxy.worker.commands import info
from pyproxy.worker.commands.context import Client, Context, LocalHandler
from pyproxy.worker.pubsub.registry import ChannelKind


def _time(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return encode([str(seconds), str(micros)], client.proto)


def _info(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(Verbatim(info.render(argv[1:], context)), client.proto)


def _role(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """A master without replicas. Those of the shards are not for clients."""
    return encode(["master", 0, []], client.proto)


def _lastsave(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """The oldest of the shards' last saves."""
    return encode(info.last_save(context.healths()), client.proto)


def _command(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return introspect.answer(argv, context.table, client.proto)


def _help(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(helps.lines(argv[0]), client.proto)


def _lolwut(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    """A funnel with one line for each shard."""
    shards = len(context.topology.shards)
    funnel = [" " * i + "\\" * (shards - i) + "/" * (shards - i) for i in range(shards)]
    text = "\n".join([*funnel, " " * shards + "|", f"pyproxy ver. {context.setup.version}", ""])
    return encode(Verbatim(text.encode()), client.proto)


# --- PUBSUB: who is subscribed --------------------------------------------------------------------------------------


def _pubsub_channels(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    if len(argv) > 3:
        return errors.subcommand_syntax("pubsub", argv[1])
    kind = ChannelKind.SHARD if argv[1].lower() == b"shardchannels" else ChannelKind.CHANNEL
    return encode(context.registry.names(kind, argv[2] if len(argv) == 3 else None), client.proto)


def _pubsub_numsub(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    kind = ChannelKind.SHARD if argv[1].lower() == b"shardnumsub" else ChannelKind.CHANNEL
    return encode([each for name in argv[2:] for each in (name, context.registry.count(kind, name))], client.proto)


def _pubsub_numpat(client: Client, argv: Sequence[bytes], context: Context) -> bytes:
    return encode(context.registry.total(ChannelKind.PATTERN), client.proto)


HANDLERS: dict[bytes, LocalHandler] = {
    b"client|help": _help,
    b"command": _command,
    b"command|count": _command,
    b"command|docs": _command,
    b"command|getkeys": _command,
    b"command|getkeysandflags": _command,
    b"command|help": _command,
    b"command|info": _command,
    b"command|list": _command,
    b"config|help": _help,
    b"function|help": _help,
    b"info": _info,
    b"lastsave": _lastsave,
    b"lolwut": _lolwut,
    b"memory|help": _help,
    b"object|help": _help,
    b"pubsub|channels": _pubsub_channels,
    b"pubsub|help": _help,
    b"pubsub|numpat": _pubsub_numpat,
    b"pubsub|numsub": _pubsub_numsub,
    b"pubsub|shardchannels": _pubsub_channels,
    b"pubsub|shardnumsub": _pubsub_numsub,
    b"role": _role,
    b"script|help": _help,
    b"time": _time,
    b"xgroup|help": _help,
    b"xinfo|help": _help,
}
