"""MEMORY DOCTOR and MEMORY PURGE, on all shards."""

from protocol import errors
from protocol.reply import OK, Verbatim, decode, encode
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal


async def _doctor(conversation: Conversation) -> bytes:
    """The report of each shard, after its name."""
    text = b""
    for shard, frame in (await conversation.ask_all(*conversation.argv, primary=True)).items():
        reply = decode(frame)
        if not isinstance(reply, bytes):
            raise Refusal(_not_done(conversation, shard, frame))
        text += b"%b: %b\n" % (conversation.name(shard).encode(), reply.rstrip())
    return encode(Verbatim(text), conversation.client.proto)


async def _purge(conversation: Conversation) -> bytes:
    """If it fails on some shards only, nothing is lost."""
    for shard, frame in (await conversation.ask_all(*conversation.argv, primary=True)).items():
        if frame != OK:
            raise Refusal(_not_done(conversation, shard, frame))
    return OK


def _not_done(conversation: Conversation, shard: int, frame: bytes) -> bytes:
    return errors.part_failed(conversation.name(shard), conversation.error_of(frame))


HANDLERS: dict[bytes, Handler] = {b"memory|doctor": _doctor, b"memory|purge": _purge}
