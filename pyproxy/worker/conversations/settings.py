"""CONFIG SET of notify-keyspace-events, and of settings that the operator allows (`config_set`).

What is set is kept by the parent, which sets it on all servers, and on those that come later; the client is answered
when the primaries that are up have it, or a moment later whatever they do. Whether a value of the operator's settings
is right, the servers know: all primaries are asked first, and if one does not take it, its answer is the client's.
"""

from __future__ import annotations

from protocol import notifications
from protocol.errors import part_failed
from protocol.reply import OK
from pyproxy.worker import local
from pyproxy.worker.conversation import Conversation


async def configure(talk: Conversation) -> bytes:
    """+OK; or an error, and nothing is kept."""
    line = local.unsettable(talk.argv, talk.here) or await _asked_first(talk)
    if line:
        return line
    reply = local.answer(b"config|set", talk.client, talk.argv, talk.here)
    await talk.here.until_settled()
    return reply


async def _asked_first(talk: Conversation) -> bytes:
    """What a primary says that does not take the operator's settings; empty: all took them."""
    ours, words = notifications.SETTING.encode(), []
    for name, value in zip(talk.argv[2::2], talk.argv[3::2], strict=True):
        if name.lower() != ours:
            words += [name.lower(), value]
    if not words:
        return b""
    frames = await talk.ask_all(b"CONFIG", b"SET", *words, write=True)
    for shard, frame in frames.items():
        if frame != OK:
            took = [talk.name(other) for other, said in frames.items() if said == OK]
            return part_failed(talk.name(shard), frame, took)
    return b""
