"""Commands that read several keys, where these are on several shards: the values are copied to one shard.

    SUNION a b c  ──▶  s1: MEMORY USAGE b   s2: MEMORY USAGE c      too much together: refused
                  ──▶  s1: DUMP b           s2: DUMP c
                  ──▶  s0: MULTI   RESTORE t0   RESTORE t1   SUNION a t0 t1   DEL t0 t1   EXEC

So the server itself runs the command and finds its errors. A command that writes runs on the shard of its destination,
any other on the shard with most of its keys. No client sees the copies, as one block makes and deletes them. Other
clients may change the originals between DUMP and the block. All else is as on one server.

The block passes the gate of its shard as a write, also if the command only reads.
"""

from __future__ import annotations

import secrets
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice

from protocol import errors, reply
from protocol.reply import NIL_BULK, BadFrame, Error
from protocol.request import Request
from protocol.scan import ProtocolError
from pyproxy.worker.commands.conversation import Argv, Conversation, Handler, Refusal
from pyproxy.worker.commands.cross_shard.keys import shards_of_each, words_at

COPY_MS = b"60000"
"""The expiry of a copy. It matters only on a server that refuses MULTI and so runs the block's commands singly."""

KEY_BYTES = 400
"""The memory for a key that is copied, beside its value: its names and theirs in the dictionaries."""

OK = b"+OK\r\n"


async def fetch(conversation: Conversation, keys: Mapping[int, Sequence[int]], *, primary: bool) -> dict[bytes, bytes]:
    """The values of these keys as DUMP gives them, without keys that do not exist. `keys`: shard -> places in argv.

    Raises Refusal also if together they are too large.
    """
    existing = await _measure(conversation, keys, primary)
    if not existing:
        return {}
    found: dict[bytes, bytes] = {}
    blocks = {shard: ([b"DUMP", key] for key in each) for shard, each in existing.items()}
    frames = await conversation.ask_blocks(blocks, primary=primary)
    total = 0
    with conversation.charged(sum(len(each.frame) for each in frames.values())):
        for shard, each in existing.items():
            async for some in conversation.in_turns(zip(each, frames.pop(shard), strict=True)):
                for key, frame in some:
                    payload = value(conversation, shard, frame)
                    if payload is not None:
                        if not isinstance(payload, bytes):
                            raise BadFrame(f"expected a value of DUMP, got {frame[:64]!r}")
                        found[key] = payload
                        total += len(payload)
    check_size(conversation, total)
    return found


async def _measure(
    conversation: Conversation, keys: Mapping[int, Sequence[int]], primary: bool
) -> dict[int, dict[bytes, None]]:
    """Ask the servers for the sizes before anything is fetched -> shard -> its keys that exist, each once.

    Raises Refusal if they are too large.
    """
    blocks = {
        shard: ([b"MEMORY", b"USAGE", key] for key in words_at(conversation, each)) for shard, each in keys.items()
    }
    frames = await conversation.ask_blocks(blocks, primary=primary)
    existing: dict[int, dict[bytes, None]] = {}
    total = 0
    for shard, each in keys.items():
        async for some in conversation.in_turns(zip(words_at(conversation, each), frames.pop(shard), strict=True)):
            for key, frame in some:
                if frame in NIL_BULK.values():
                    continue
                size = value(conversation, shard, frame)
                if key not in existing.setdefault(shard, {}):
                    existing[shard][key] = None
                    total += size if isinstance(size, int) else 0
    check_size(conversation, total)
    return existing


def check_size(conversation: Conversation, size: int) -> None:
    """Raise Refusal if a command may not copy so many bytes."""
    limit = conversation.context.setup.config.limits.cross_shard_bytes
    if size > limit:
        raise Refusal(errors.too_much_to_copy(conversation.command.name, size, limit))


def value(conversation: Conversation, shard: int, frame: bytes) -> reply.Value:
    """The value of a shard's reply. Raises Refusal for an error."""
    decoded = reply.decode(frame)
    if isinstance(decoded, Error):
        raise Refusal(errors.part_failed(conversation.name(shard), frame))
    return decoded


async def _run(conversation: Conversation) -> bytes:
    command = conversation.command
    positions = command.keys(conversation.argv)
    _refuse_patterns(conversation.argv, positions, command.name)
    shards = await shards_of_each(conversation, positions)
    counts: Counter[int] = Counter()
    async for some in conversation.in_turns(shards):
        counts.update(some)
    home = _home(conversation, counts)
    foreign: dict[int, array[int]] = {}
    is_foreign = bytearray(len(conversation.argv))
    async for found in conversation.in_turns(zip(positions, shards, strict=True)):
        for position, shard in found:
            if shard != home:
                foreign.setdefault(shard, array("I")).append(position)
                is_foreign[position] = True
    payloads = await fetch(conversation, foreign, primary=not command.is_read)
    prefix = _of_shard(conversation, home, b"pyproxy:copy:{%b:%d}:")
    cost = 2 * sum(map(len, payloads.values())) + KEY_BYTES * len(payloads)  # the values, and the request with them
    with conversation.charged(cost):
        names: dict[bytes, bytes] = {}
        async for keys in conversation.in_turns(payloads):
            for key in keys:
                names[key] = b"%b%d" % (prefix, len(names))
        missing = _of_shard(conversation, home, b"{pyproxy:%b%d}")  # nobody writes it
        words = (
            names.get(word, missing) if is_foreign[position] else word
            for position, word in enumerate(conversation.argv)
        )
        request = await conversation.request(len(conversation.argv), words)
        if not names:
            return await conversation.ask_request(home, request, write=not command.is_read, primary=True)
        if not command.is_read and not _of_one_version(conversation, [home, *foreign]):
            await _block(conversation, home, payloads, names)
        return await _block(conversation, home, payloads, names, request)


def _home(conversation: Conversation, keys: Counter[int]) -> int:
    """The shard that runs the command: of its destination, or with most of its keys."""
    if not conversation.command.is_read:
        flags = conversation.command.key_flags(conversation.argv)
        written = next(position for position, of_key in flags if "RO" not in of_key)
        return conversation.shard_of(conversation.argv[written])
    return keys.most_common(1)[0][0]


async def _block(
    conversation: Conversation,
    home: int,
    payloads: Mapping[bytes, bytes],
    names: Mapping[bytes, bytes],
    request: Request | None = None,
) -> bytes:
    """Restore the copies, run the command if there is one, delete the copies -> its reply. Raises Refusal."""
    harmless = request is None or conversation.command.is_read
    restores: Iterator[Argv] = ([b"RESTORE", names[key], COPY_MS, payload] for key, payload in payloads.items())
    delete = await conversation.request(1 + len(names), chain([b"DEL"], names.values()))
    blocks = {home: chain(restores, [request] if request is not None else [], [delete])}
    frames = (await conversation.ask_blocks(blocks, write=True, leaves_nothing=harmless))[home]
    problem, answer, deleted = b"", b"", b""
    try:
        async for some in conversation.in_turns(islice(frames, len(names))):
            problem = problem or next((frame for frame in some if frame != OK), b"")
        answer = next(frames) if request is not None else b""
        deleted = next(frames)
        is_whole = next(frames, None) is None
    except ProtocolError:
        is_whole = False
    if not is_whole or problem or deleted != b":%d\r\n" % len(names):
        if not harmless:
            raise Refusal(
                errors.uncertain(conversation.name(home), conversation.lane.links[home].node, errors.INCOMPLETE)
            )
        if not is_whole:
            raise Refusal(conversation.unexpected())
        raise Refusal(errors.not_restored(conversation.name(home), problem or errors.COPIES_EXPIRED))
    return answer


def _of_shard(conversation: Conversation, home: int, pattern: bytes) -> bytes:
    """A name that nobody can know before, in a slot of the shard. `pattern`: where a nonce and a number go."""
    nonce = secrets.token_hex(8).encode()
    names = (pattern % (nonce, number) for number in count())
    return next(name for name in names if conversation.shard_of(name) == home)


def _of_one_version(conversation: Conversation, shards: Iterable[int]) -> bool:
    """Whether these shards run the same version, by their last health check.

    If not, a block without the command tests first whether the values can be restored: a block goes on after a RESTORE
    that is refused, and the command would write a wrong result.
    """
    healths = {health.name: health.info for health in conversation.context.healths()}
    seen = [healths.get(conversation.name(shard), {}) for shard in shards]
    versions = {(info.get("redis_version"), info.get("valkey_version")) for info in seen}
    return len(versions) == 1 and versions != {(None, None)}


def _refuse_patterns(argv: Sequence[bytes], positions: Sequence[int], name: bytes) -> None:
    """SORT BY and GET read keys that are not named, and are not on the shard of the destination."""
    if name != b"sort":
        return
    for place in range(2, len(argv) - 1):
        if argv[place].lower() in (b"by", b"get") and place not in positions and b"*" in argv[place + 1]:
            raise Refusal(errors.crossslot())


_COMMANDS = """
    sinter sunion sdiff sintercard sinterstore sunionstore sdiffstore
    zinter zunion zdiff zintercard zinterstore zunionstore zdiffstore zrangestore
    geosearchstore georadius georadiusbymember
    pfcount pfmerge bitop lcs sort
"""

HANDLERS: dict[bytes, Handler] = {name.encode(): _run for name in _COMMANDS.split()}
