"""CLIENT LIST in a worker with very many clients: their lines are made a slice at a time."""

from protocol.reply import Verbatim, encode
from pyproxy.worker.commands import local
from pyproxy.worker.commands.conversation import Conversation, Refusal

MANY = 256
"""Clients; up to so many are listed at once."""

LINE_BYTES = 512
"""What a line takes, or a little more."""


async def listed(talk: Conversation) -> bytes:
    """As `local` says it of few."""
    try:
        clients = local.chosen(talk.argv, talk.here)
    except local.ClientError as wrong:
        raise Refusal(wrong.line) from None
    lines: list[bytes] = []
    with talk.charged(LINE_BYTES * len(clients)):
        await talk.in_slices(local.described(clients, talk.here.now(), lines))
        return encode(Verbatim(b"".join(lines)), talk.client.proto)
