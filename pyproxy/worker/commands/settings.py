"""CONFIG SET of notify-keyspace-events, and of settings that the operator allows (`config_set`); CONFIG GET of those.

The parent keeps a setting and sets it on all servers, also on those that come later. The client gets its answer when
the primaries that are up have the setting, or after SETTLE_S. Only the servers can check a value of `config_set`. So it
is set on all primaries first, and if one refuses it, the client gets that error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from protocol import notifications
from protocol.errors import part_failed
from protocol.reply import OK, BadFrame, decode
from pyproxy.worker.commands import local, local_config
from pyproxy.worker.commands.conversation import Conversation, Refusal


async def configure(conversation: Conversation) -> bytes:
    """CONFIG SET: +OK, or an error, and the parent is told nothing."""
    line = local_config.unsettable(conversation.argv, conversation.context) or await _set_on_primaries(conversation)
    if line:
        return line
    reply = local.answer(b"config|set", conversation.client, conversation.argv, conversation.context)
    await conversation.context.until_settled()
    return reply


async def show(conversation: Conversation) -> bytes:
    """CONFIG GET of settings that no client has set through the proxy: their values on the primaries.

    Different values are joined by `/`. A primary that does not answer is left out: clients read settings at their
    start, and the proxy knows the other settings of the same CONFIG GET.
    """
    names = local_config.settings_of_servers(conversation.argv, conversation.context)
    values: dict[bytes, list[str]] = {name: [] for name in names}
    asked = [asyncio.create_task(_setting_of(conversation, shard, names)) for shard in conversation.shards]
    for reply in await asyncio.gather(*asked):
        for name, value in reply.items():
            if name in values and value not in values[name]:
                values[name].append(value)
    of_servers = {name: "/".join(each) for name, each in values.items() if each}
    return local_config.shown(conversation.client, conversation.argv, conversation.context, of_servers)


async def _setting_of(conversation: Conversation, shard: int, names: list[bytes]) -> dict[bytes, str]:
    try:
        reply = decode(await conversation.ask(shard, b"CONFIG", b"GET", *names, primary=True))
    except (Refusal, BadFrame):
        return {}
    words = [word for pair in reply.items() for word in pair] if isinstance(reply, Mapping) else reply
    if not isinstance(words, list):
        return {}
    texts = [word if isinstance(word, bytes) else b"" for word in words]
    return {name.lower(): value.decode(errors="replace") for name, value in zip(texts[::2], texts[1::2], strict=False)}


async def _set_on_primaries(conversation: Conversation) -> bytes:
    """Set the settings of `config_set` on all primaries -> the error of one that refuses; empty if none does."""
    ours, words = notifications.SETTING.encode(), []
    for name, value in zip(conversation.argv[2::2], conversation.argv[3::2], strict=True):
        if name.lower() != ours:
            words += [name.lower(), value]
    if not words:
        return b""
    frames = await conversation.ask_all(b"CONFIG", b"SET", *words, write=True)
    for shard, frame in frames.items():
        if frame != OK:
            took = [conversation.name(other) for other, reply in frames.items() if reply == OK]
            return part_failed(conversation.name(shard), conversation.error_of(frame), took)
    return b""
