"""The texts of scripts and functions on a server: which of them it has, and giving it those that it lacks.

All questions go out on a leased connection, never on one that clients share (see scripting.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.keyspecs import number
from protocol.lua import may_use_keys
from protocol.reply import BadFrame, Error, Value, decode, fields, listed, text_of
from protocol.request import Request
from pyproxy.scripts import digest_of
from pyproxy.worker.commands.conversation import Conversation, Refusal
from pyproxy.worker.commands.keyless import AUTO
from pyproxy.worker.shard.pool import Lease


async def ask_server(conversation: Conversation, lease: Lease, *argv: bytes) -> bytes:
    deadline_s = conversation.context.setup.config.timeouts.silence_s
    return await conversation.ask_on(lease, Request(argv), write=False, deadline_s=deadline_s)


# --- functions without keys -------------------------------------------------------------------------------------------


async def check_keyless_functions(conversation: Conversation, lease: Lease, calls: Iterable[Sequence[bytes]]) -> None:
    """Raise Refusal if one of these calls without keys is of a function whose library may use keys.

    The server is asked for the code each time, as another client may have loaded another library. If it does not have
    the function, it refuses the call itself.
    """
    for argv in calls:
        if any(may_use_keys(code) for code in await _code_of(conversation, lease, argv[1])):
            lease.reusable = True
            raise Refusal(conversation.context.keyless.refusal(argv))


async def _code_of(conversation: Conversation, lease: Lease, function: bytes) -> list[bytes]:
    """The code of the library with this function, and of libraries whose names differ only in case; empty: no library.

    Raises Refusal if the server replies with an error.
    """
    for library in _libraries(await ask_server(conversation, lease, b"FUNCTION", b"LIST")):
        functions = [fields(each) for each in listed(library.get(b"functions"))]
        if function.lower() in [text_of(each, b"name").lower() for each in functions]:
            name = text_of(library, b"library_name")
            shown = _libraries(
                await ask_server(conversation, lease, b"FUNCTION", b"LIST", b"LIBRARYNAME", name, b"WITHCODE")
            )
            return [text_of(each, b"library_code") for each in shown]
    return []


def _libraries(frame: bytes) -> list[dict[bytes, Value]]:
    """The libraries in a reply to FUNCTION LIST. Raises Refusal for an error, BadFrame for any other reply."""
    reply = decode(frame)
    if isinstance(reply, Error):
        raise Refusal(frame)
    return [fields(each) for each in listed(reply)]


# --- in a transaction -------------------------------------------------------------------------------------------------


async def load_missing(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """Load the texts that the server lacks, of those that these calls name by digest and that are known here.

    Raises Refusal as `check_keyless_functions` does.
    """
    if lease.link.index == conversation.shard_of(b""):
        await check_keyless_functions(
            conversation, lease, [argv for argv in scripts if _needs_keyless_check(conversation, argv)]
        )
    named = {argv[1].lower() for argv in scripts if argv[0].lower().startswith(b"evalsha")}
    known = [digest for digest in named if digest in conversation.context.scripts]
    has = await _present(conversation, lease, known)
    for digest in known:
        text = conversation.context.scripts.text(digest)
        if digest not in has and text is not None:
            await ask_server(conversation, lease, b"SCRIPT", b"LOAD", text)


def _needs_keyless_check(conversation: Conversation, argv: Sequence[bytes]) -> bool:
    """Whether it is a call without keys of a function that may run on one shard only if its library uses no keys."""
    is_without = argv[0].lower().startswith(b"fcall") and number(argv[2]) == 0
    return is_without and conversation.context.keyless.way(argv, len(conversation.shards)) == AUTO


async def cache_texts(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """After these calls were run there: remember the texts that the server has accepted, in all workers."""
    texts = {digest_of(argv[1]): argv[1] for argv in scripts if argv[0].lower() in (b"eval", b"eval_ro")}
    unknown = [digest for digest in texts if digest not in conversation.context.scripts]
    for digest in await _present(conversation, lease, unknown):
        await conversation.context.cache_script(texts[digest])


async def _present(conversation: Conversation, lease: Lease, digests: Sequence[bytes]) -> list[bytes]:
    """The digests whose texts the server has; none if it does not answer."""
    if not digests:
        return []
    try:
        has = parse_exists(await ask_server(conversation, lease, b"SCRIPT", b"EXISTS", *digests), len(digests))
    except (Refusal, BadFrame):
        return []
    return [digest for digest, there in zip(digests, has, strict=True) if there]


def parse_exists(frame: bytes, count: int) -> list[bool]:
    """The reply to SCRIPT EXISTS of so many digests. Raises BadFrame if it has another form."""
    reply = listed(decode(frame))
    if len(reply) != count or any(each not in (0, 1) for each in reply):
        raise BadFrame(f"expected {count} times 0 or 1, got {frame[:64]!r}")
    return [each == 1 for each in reply]
