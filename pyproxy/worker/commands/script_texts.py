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
    """Raises Refusal where one of these calls without keys is of a function whose library may use keys.

    The server is asked for its code each time: another client may have loaded another library. One that it does not
    have is left to the server to say.
    """
    for argv in calls:
        if any(may_use_keys(code) for code in await _code_of(conversation, lease, argv[1])):
            lease.keep = True
            raise Refusal(conversation.context.keyless.refusal(argv))


async def _code_of(conversation: Conversation, lease: Lease, function: bytes) -> list[bytes]:
    """Of the library that has this function, and of those whose names differ from its own in case alone; empty: none.

    Raises Refusal where the server does not say.
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
    """Of an answer to FUNCTION LIST: maps, or flat lists. Raises Refusal for an error, BadFrame for anything else."""
    said = decode(frame)
    if isinstance(said, Error):
        raise Refusal(frame)
    return [fields(each) for each in listed(said)]


# --- in a transaction -------------------------------------------------------------------------------------------------


async def load_missing(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """Give the server the texts that it lacks, of those that these calls name by their digests and that are known.

    Raises Refusal where a function may not be called as one of them does.
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
    """Whether it is a function without keys that runs on one shard only if its library uses none."""
    is_without = argv[0].lower().startswith(b"fcall") and number(argv[2]) == 0
    return is_without and conversation.context.keyless.way(argv, len(conversation.shards)) == AUTO


async def cache_texts(conversation: Conversation, lease: Lease, scripts: Sequence[Sequence[bytes]]) -> None:
    """These were run there: their texts are known now, if the server took them."""
    texts = {digest_of(argv[1]): argv[1] for argv in scripts if argv[0].lower() in (b"eval", b"eval_ro")}
    unknown = [digest for digest in texts if digest not in conversation.context.scripts]
    for digest in await _present(conversation, lease, unknown):
        await conversation.context.cache_script(texts[digest])


async def _present(conversation: Conversation, lease: Lease, digests: Sequence[bytes]) -> list[bytes]:
    """Those that the server has; none where it does not say."""
    if not digests:
        return []
    try:
        has = parse_exists(await ask_server(conversation, lease, b"SCRIPT", b"EXISTS", *digests), len(digests))
    except (Refusal, BadFrame):
        return []
    return [digest for digest, there in zip(digests, has, strict=True) if there]


def parse_exists(frame: bytes, count: int) -> list[bool]:
    """The answer to SCRIPT EXISTS of so many digests. Raises BadFrame."""
    said = listed(decode(frame))
    if len(said) != count or any(each not in (0, 1) for each in said):
        raise BadFrame(f"expected {count} times 0 or 1, got {frame[:64]!r}")
    return [each == 1 for each in said]
