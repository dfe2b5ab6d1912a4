"""Of commands with very many keys on several shards no turn of the event loop does more than a slice."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, overload
from zlib import crc32

import pytest

from protocol.reply import encode
from protocol.request import Asked, Block
from protocol.scan import Elements
from protocol.scan import argv as words_of
from protocol.table import TABLE
from pyproxy.worker.commands import blocking, streams
from pyproxy.worker.commands import conversation as conversations
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.conversation import BATCH_PARTS, Conversation, Failed, Handler
from pyproxy.worker.commands.cross_shard import operands, per_key
from tests.pyproxy.worker.commands.stand_ins import worker
from tests.pyproxy.worker.commands.test_conversation import StandInClient

KEYS = 20_000
SHARDS = 3


class Looked(Sequence[bytes]):
    """The words of a command, or what was answered, which count how many are looked at in each turn of the loop."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self._words = words
        self._in_turn = 0
        self.most_in_turn = 0
        self.looks = 0

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        self.look(len(range(*index.indices(len(self)))) if isinstance(index, slice) else 1)
        return self._words[index]

    def look(self, count: int) -> None:
        self.looks += count
        self._in_turn += count
        self.most_in_turn = max(self.most_in_turn, self._in_turn)

    def __iter__(self) -> Iterator[bytes]:
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return len(self._words)

    def turn(self) -> None:
        self._in_turn = 0


def owner(key: bytes) -> int:
    return crc32(key) % SHARDS


class Shards:
    """Stand in for the lane: a key belongs to the shard of its checksum, and all is as large as it may be."""

    links = tuple(SimpleNamespace(name=f"s{index}") for index in range(SHARDS))
    bulk_bytes = block_bytes = 1 << 40

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def shard_of(self, key: bytes) -> int:
        return owner(key)

    def fits(self, asked: Asked) -> bool:
        return True

    def has_room(self, size: int) -> bool:
        return True

    def timeout_class_of(self, frame: bytes, queued: int) -> int:
        return 0


class Asking(Conversation):
    """Its shards are asked nothing: they have no key, and what is written is applied."""

    async def _asked(
        self, parts: Mapping[int, Asked], write: bool, primary: bool, leaves_nothing: bool = False
    ) -> tuple[list[bytes | None], Failed | None]:
        await asyncio.sleep(0)
        answers: list[bytes | None] = [None] * SHARDS
        for shard, part in parts.items():
            if isinstance(part, Block):
                answers[shard] = (
                    b"*%d\r\n" % part.queued + (GROUPS if b"XINFO" in part.frame else b"$-1\r\n") * part.queued
                )
            else:
                answers[shard] = ANSWERS[words_of(part.frame)[0]]
        return answers, None


GROUPS = encode([[b"name", b"group"]], 2)
ANSWERS = {
    b"EXISTS": b":0\r\n",
    b"MSETNX": b":1\r\n",
    b"SUNION": b"*0\r\n",
    b"SINTERSTORE": b":0\r\n",
    b"PFCOUNT": b":0\r\n",
    b"LMPOP": b"*-1\r\n",
    b"ZMPOP": b"*-1\r\n",
    b"BLPOP": b"*-1\r\n",
    b"XREAD": b"*-1\r\n",
    b"XINFO": b"-ERR no such key\r\n",
    b"XREADGROUP": b"*-1\r\n",
}
NAMES = [b"key:%d" % number for number in range(KEYS)]
BY_SHARD = sorted(NAMES, key=owner)


GROUP = [b"GROUP", b"group", b"consumer"]
BLOCK = [b"BLOCK", b"1"]
COMMANDS: Mapping[str, tuple[Sequence[bytes], Mapping[bytes, Handler]]] = {
    "SUNION": ([b"SUNION", *NAMES], operands.HANDLERS),
    "SINTERSTORE": ([b"SINTERSTORE", b"to", *NAMES], operands.HANDLERS),
    "PFCOUNT": ([b"PFCOUNT", *NAMES], operands.HANDLERS),
    "MSETNX": ([b"MSETNX", *NAMES], per_key.HANDLERS),
    "LMPOP": ([b"LMPOP", b"%d" % KEYS, *BY_SHARD, b"LEFT"], per_key.HANDLERS),
    "BLPOP": ([b"BLPOP", *BY_SHARD, b"0.001"], blocking.HANDLERS),
    "ZMPOP": ([b"ZMPOP", b"%d" % KEYS, *BY_SHARD, b"MIN"], per_key.HANDLERS),
    "XREAD": ([b"XREAD", b"STREAMS", *NAMES, *[b"0"] * KEYS], streams.ACROSS),
    "XREADGROUP": ([b"XREADGROUP", *GROUP, b"STREAMS", *NAMES, *[b">"] * KEYS], streams.ACROSS),
    "XREAD BLOCK": (
        [b"XREAD", *BLOCK, b"STREAMS", *NAMES, *[b"0"] * (KEYS - 1), b"$"],
        {b"xread": blocking.wait},
    ),
    "XREADGROUP BLOCK": (
        [b"XREADGROUP", *GROUP, *BLOCK, b"STREAMS", *NAMES, *[b">"] * KEYS],
        {b"xreadgroup": blocking.wait},
    ),
}


async def served(words: Looked, answers: Looked, handler: Handler, context: Context) -> bytes:
    """The answer to this command, while each turn of the loop is counted."""
    client: Any = StandInClient()
    client.lane = Shards()
    client.charge_command = lambda size: None
    nobody: Any = None
    conversation = Asking(client, nobody, TABLE[words[0].lower()], words, context, nobody)
    client.conversation = conversation
    loop = asyncio.get_running_loop()
    counting: list[asyncio.Handle] = []

    def count() -> None:
        words.turn()
        answers.turn()
        counting[:] = [loop.call_soon(count)]

    count()
    try:
        return await handler(conversation)
    finally:
        counting[0].cancel()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_turn_looks_at_more_words_than_a_slice_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "SLICE_S", 0.0)  # the smallest slices that there are
    monkeypatch.setattr(blocking, "shards_of", lambda *_: set(range(SHARDS)))  # the lane has found them, see words.pyx
    sent, handlers = COMMANDS[name]
    words, answers = Looked(sent), Looked(())

    class Counted(Elements):
        def __next__(self) -> bytes:
            answers.look(1)
            return super().__next__()

    monkeypatch.setattr(conversations, "Elements", Counted)
    with worker(cross_shard="emulate") as context:
        reply = asyncio.run(served(words, answers, handlers[sent[0].lower()], context))
    assert reply == ANSWERS[sent[0]]
    assert words.looks >= KEYS
    assert words.most_in_turn <= 2 * BATCH_PARTS + 16
    assert answers.most_in_turn <= BATCH_PARTS + 16


def test_a_request_is_not_made_of_another_number_of_words() -> None:
    async def make(count: int) -> object:
        return await (await asking()).request(count, [b"GET", b"key"])

    for count in (0, 1, 3):
        with pytest.raises(ValueError, match="got 2"):
            asyncio.run(make(count))


async def asking() -> Conversation:
    client: Any = StandInClient()
    client.lane = Shards()
    nobody: Any = None
    client.conversation = conversation = Asking(client, nobody, TABLE[b"get"], [b"GET", b"key"], nobody, nobody)
    return conversation
