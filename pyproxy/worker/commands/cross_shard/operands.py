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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count

from protocol import errors, reply
from protocol.reply import BadFrame, Error
from pyproxy.worker.commands.conversation import Conversation, Handler, Refusal

COPY_MS = b"60000"
"""The expiry of a copy. It matters only on a server that refuses MULTI and so runs the block's commands singly."""

OK = b"+OK\r\n"


async def fetch(
    conversation: Conversation, keys: Mapping[int, Sequence[bytes]], *, primary: bool
) -> dict[bytes, bytes]:
    """The values of these keys as DUMP gives them, without keys that do not exist. `keys`: shard -> keys.

    Raises Refusal also if together they are too large.
    """
    await _measure(conversation, keys, primary)
    found: dict[bytes, bytes] = {}
    blocks = {shard: [[b"DUMP", key] for key in each] for shard, each in keys.items()}
    frames = await conversation.ask_blocks(blocks, primary=primary)
    for shard, each in keys.items():
        async for some in conversation.in_turns(zip(each, frames.pop(shard), strict=True)):
            for key, frame in some:
                payload = value(conversation, shard, frame)
                if payload is not None:
                    if not isinstance(payload, bytes):
                        raise BadFrame(f"expected a value of DUMP, got {frame[:64]!r}")
                    found[key] = payload
    check_size(conversation, sum(map(len, found.values())))
    return found


async def _measure(conversation: Conversation, keys: Mapping[int, Sequence[bytes]], primary: bool) -> None:
    """Ask the servers for the sizes before anything is fetched. Raises Refusal if they are too large."""
    blocks = {shard: [[b"MEMORY", b"USAGE", key] for key in each] for shard, each in keys.items()}
    frames = await conversation.ask_blocks(blocks, primary=primary)
    total = 0
    for shard, each in frames.items():
        async for some in conversation.in_turns(each):
            total += sum(size for frame in some if isinstance(size := value(conversation, shard, frame), int))
    check_size(conversation, total)


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
    shards: dict[bytes, int] = {}
    keys: Counter[int] = Counter()
    async for some in conversation.in_turns(positions):
        for position in some:
            key = conversation.argv[position]
            shards[key] = shard = conversation.shard_of(key)
            keys[shard] += 1
    home = _home(conversation, keys)
    foreign: dict[int, list[bytes]] = {}
    async for found in conversation.in_turns(shards.items()):
        for key, shard in found:
            if shard != home:
                foreign.setdefault(shard, []).append(key)
    payloads = await fetch(conversation, foreign, primary=not command.is_read)
    names = _names(conversation, home, chain.from_iterable(foreign.values()))
    argv = list(conversation.argv)
    async for some in conversation.in_turns(positions):
        for position in some:
            argv[position] = names.get(argv[position], argv[position])
    restores = [[b"RESTORE", names[key], COPY_MS, payload] for key, payload in payloads.items()]
    with conversation.charged(2 * sum(map(len, payloads.values()))):  # the values, and the request with them
        if restores and not command.is_read and not _of_one_version(conversation, [home, *foreign]):
            await _block(conversation, home, restores)
        return await _block(conversation, home, restores, argv)


def _home(conversation: Conversation, keys: Counter[int]) -> int:
    """The shard that runs the command: of its destination, or with most of its keys."""
    if not conversation.command.is_read:
        written = [
            position for position, flags in conversation.command.key_flags(conversation.argv) if "RO" not in flags
        ]
        return conversation.shard_of(conversation.argv[written[0]])
    return keys.most_common(1)[0][0]


async def _block(
    conversation: Conversation, home: int, restores: Sequence[Sequence[bytes]], argv: Sequence[bytes] = ()
) -> bytes:
    """Restore the copies, run the command if there is one, delete the copies -> its reply. Raises Refusal."""
    commands = [*restores, *([argv] if argv else [])]
    if restores:
        commands.append([b"DEL", *(words[1] for words in restores)])
    harmless = not argv or conversation.command.is_read
    frames = (await conversation.ask_blocks({home: commands}, write=True, leaves_nothing=harmless))[home]
    problems = [frame for frame in frames[: len(restores)] if frame != OK]
    if problems or (restores and frames[-1] != b":%d\r\n" % len(restores)):
        if not harmless:
            raise Refusal(
                errors.uncertain(conversation.name(home), conversation.lane.links[home].node, errors.INCOMPLETE)
            )
        raise Refusal(errors.not_restored(conversation.name(home), problems[0] if problems else errors.COPIES_EXPIRED))
    return frames[len(restores)] if argv else b""


def _names(conversation: Conversation, home: int, keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Key -> the name of its copy: unique, and in a slot of the shard."""
    nonce = secrets.token_hex(8).encode()
    for number in count():
        prefix = b"pyproxy:copy:{%b:%d}:" % (nonce, number)
        if conversation.shard_of(prefix) == home:
            break
    return {key: b"%b%d" % (prefix, number) for number, key in enumerate(keys)}


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
