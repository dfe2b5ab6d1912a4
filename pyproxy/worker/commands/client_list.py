"""CLIENT LIST in a worker with very many clients: their lines are made in slices."""

from protocol.reply import Verbatim, encode
from pyproxy.worker.commands import local_client
from pyproxy.worker.commands.conversation import Conversation, Refusal

MANY = 256
"""Up to so many clients, CLIENT LIST is a local command (local_client.py)."""

LINE_BYTES = 512
"""The memory for a line, or a little more."""


async def listed(conversation: Conversation) -> bytes:
    """The answer of local_client.py, made in slices."""
    try:
        clients = local_client.chosen(conversation.argv, conversation.context)
    except local_client.ClientError as wrong:
        raise Refusal(wrong.line) from None
    lines: list[bytes] = []
    with conversation.charged(LINE_BYTES * len(clients)):
        await conversation.in_slices(local_client.described(clients, conversation.context.now(), lines))
        return encode(Verbatim(b"".join(lines)), conversation.client.proto)
