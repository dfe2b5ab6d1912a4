"""A transaction of one client, from its MULTI to EXEC or DISCARD.

Its commands are queued here, after all checks that need no server. At EXEC they are sent as one block to the shard of
their keys. If the keys are on several shards, EXEC is refused. With `transactions = "split"` each shard gets a block.
Each block is atomic, the whole is not.

A command with keys goes to their shard, and so does a script. PUBLISH does too: its channel counts as a key. A command
for all shards (DBSIZE, a script that the configuration runs on all) is a part of each block. The proxy answers local
commands (PING) itself, at EXEC, and also commands that a server would refuse by their form (MSET of a key without its
value). SELECT and CLIENT REPLY cannot be queued: they would change a connection that clients share. A block with a
script goes out on a leased connection (executing.py).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from protocol import errors
from protocol.commands import BadKeys, Command, Kind
from protocol.request import Block, Request, size_of
from protocol.scan import Words
from pyproxy.worker.commands.keyless import MERGES, REFUSE, UNKNOWN, Keyless, merged
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.merge import Assembly
from pyproxy.worker.lane.outcome import NOT_NOW, Outcome
from pyproxy.worker.lane.split import cut, execute
from pyproxy.worker.pubsub.registry import PUBLISH, ChannelKind

QUEUED = b"+QUEUED\r\n"
Counted = Callable[[ChannelKind, bytes], Callable[[bytes], bytes]]
"""Kind and channel of a PUBLISH -> what makes its answer from the server's reply; see Hub.publish_answer."""

Local = Callable[[bytes, Client, Sequence[bytes]], bytes]
"""What answers local commands: name, client, argv -> reply."""

NOT_IN_A_BLOCK = (b"auth", b"client|reply", b"config|set", b"hello", b"select")
"""Local commands that change how later commands are served, or that wait."""

Answer = Callable[[bytes], bytes]

SLICE_S = 0.004  # the most of one turn of the loop for one transaction

OVERHEAD = 64  # bytes for each queued command and each of its words, beside the words themselves
PLACE = 10  # bytes for each word of a large command, where nothing is made of its words: where it is, and its shard


class Transaction:
    """The commands between MULTI and EXEC. The shards of a command are found when it is queued, not all at EXEC.

    `blocks`: shard -> its block. `commands`: for each command how its answer is found, see `split.execute`. For one
    that the proxy answers itself, a callable that makes the answer, until `answer_own` has replaced it by the answer.
    `is_assembled`: at least one answer is not the reply of a server.
    """

    def __init__(self, counted: Counted, local: Local, keyless: Keyless) -> None:
        self._counted = counted
        self._local = local
        self._keyless = keyless
        self.blocks: dict[int, Block] = {}
        self.commands: list[Any] = []
        self.is_assembled = False
        self._own: deque[int] = deque()  # indexes of the commands that the proxy answers itself
        self._assembly: Assembly | None = None  # for an EXEC without a block
        self.refused = False  # a command was refused, so EXEC runs none
        self.write = False
        self.scripts: list[Sequence[bytes]] = []  # calls of scripts and functions
        self._queued: list[tuple[Route, Command, Sequence[bytes]]] = []  # all of it, as it came
        self._links: list[Any] | None = None  # the map of slots by which it is placed: another list after each change

    def take(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> bytes:
        """Queue a command -> +QUEUED, or the error line."""
        self.follow_moves(client)
        self._links = client.lane.links
        line = self._queue(client, route, command, argv)
        if line:
            self.refused = True
            return line
        self._queued.append((route, command, argv))
        client.queued(_cost(argv))
        return QUEUED

    def follow_moves(self, client: Client) -> None:
        """Place all commands anew if slots have moved since they were queued.

        It is refused if the keys of one of them are on several shards by now, and it cannot be split.
        """
        if self._links is None or self._links is client.lane.links:
            return
        self._links = client.lane.links
        self.blocks, self.commands, self.scripts = {}, [], []
        self._own.clear()
        self.is_assembled, self._assembly, self.write = False, None, False
        for each in self._queued:
            self.refused |= bool(self._queue(client, *each))

    def _queue(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> bytes:
        convert, own_answer, way = None, None, ""
        keys: Sequence[int] = ()
        match command.kind:
            case Kind.PLAIN:
                keys = (command.first_key,)
            case Kind.SPLIT if not command.is_whole(len(argv)):
                own_answer = partial(errors.wrong_arity, command.name)
            case Kind.SPLIT:
                keys = range(command.first_key, len(argv), command.step)
            case Kind.KEYED | Kind.CONVERSATION if command.kind is Kind.KEYED or command.may_wait or runs_code(command):
                try:
                    keys = command.keys(argv)
                except BadKeys as bad:
                    if not command.is_malformed(argv):
                        return bad.line
                    own_answer = partial(bytes, bad.line)
                if own_answer is None and len(_shards(client.lane, argv, keys)) != 1:
                    return errors.crossslot()
                if own_answer is None and runs_code(command):
                    if not keys:
                        way = self._keyless.way(argv, len(client.lane.links))
                    if way == REFUSE:
                        return self._keyless.refusal(argv)
                    if way == UNKNOWN:
                        own_answer = partial(bytes, errors.no_script())
                    else:
                        self.scripts.append(argv)
            case Kind.PUBSUB if command.name in PUBLISH:
                keys = (1,)
                convert = self._counted(PUBLISH[command.name], argv[1])
            case Kind.FANOUT:
                pass
            case Kind.LOCAL if command.name not in NOT_IN_A_BLOCK:
                own_answer = partial(self._local, command.name, client, list(argv))
            case Kind.REFUSED:
                return errors.refused(command.name, command.reason)
            case _:
                return errors.not_in_transaction(command.name)
        self._place(client.lane, route, argv, keys, convert, own_answer, way)
        self.write = self.write or (own_answer is None and not command.is_read)
        return b""

    def execute(self, client: Client, route: Route, over_shards: bool) -> Outcome:
        """EXEC. `route`: that of EXEC. `over_shards`: several shards may each get a block of it."""
        self.follow_moves(client)
        if self.refused:
            return errors.exec_aborted()
        if not self.commands:
            return b"*0\r\n"
        if len(self.blocks) > 1 and not over_shards:
            return errors.transaction_over_shards([client.lane.links[shard].name for shard in sorted(self.blocks)])
        if not self.answer_own():
            client.later()
            return NOT_NOW
        if not self.blocks:
            return self._answer_alone(client)
        outcome: Outcome
        if not all(map(client.lane.fits, self.blocks.values())):
            return errors.block_too_large(min(client.lane.bulk_bytes, client.lane.block_bytes))
        if len(self.blocks) == 1 and not self.is_assembled:
            ((shard, block),) = self.blocks.items()
            outcome = client.send(shard, block, self.write, True)
        else:
            outcome = execute(client, route, self.blocks, self.commands, self.write)
        return errors.transaction_discarded(outcome) if isinstance(outcome, bytes) else outcome

    def answer_own(self) -> bool:
        """Answer local commands, for at most SLICE_S -> whether all are answered."""
        until = time.monotonic() + SLICE_S
        while self._own:
            place = self._own.popleft()
            self.commands[place] = self.commands[place]()
            if time.monotonic() >= until:
                return not self._own
        return True

    def _answer_alone(self, client: Client) -> Outcome:
        """The answer to an EXEC without a block; NOT_NOW while it is not complete."""
        if self._assembly is None:
            self._assembly = Assembly(client.lane, self.commands, [], False)
        if self._assembly.step():
            return self._assembly.reply
        client.later()
        return NOT_NOW

    def _place(
        self,
        lane: Lane,
        route: Route,
        argv: Sequence[bytes],
        keys: Sequence[int],
        convert: Answer | None,
        own_answer: Callable[[], bytes] | None,
        way: str,
    ) -> None:
        """Put a command into the blocks of its shards. One with keys on several shards is split, as outside of MULTI.

        `convert`: makes the answer from the server's reply. `own_answer`: makes it without a server. `way`: how the
        answers of all shards to a script are merged.
        """
        if own_answer is not None:
            self._own.append(len(self.commands))
            self.commands.append(own_answer)
            self.is_assembled = True
            return
        if route.command.kind is Kind.FANOUT or way in MERGES:
            everywhere, request = range(len(lane.links)), Request(argv)
            for shard in everywhere:
                self._add(shard, request)
            self.commands.append(
                (partial(_merged, lane, route, way), everywhere) if way in MERGES else (route, b"", everywhere)
            )
            return
        shards = _shards(lane, argv, keys)
        if len(shards) == 1:
            (shard,) = shards
            self._add(shard, Request(argv))
            self.commands.append((route, convert, (shard,)) if convert is not None else shard)
            self.is_assembled = self.is_assembled or convert is not None
            return
        owners, parts = cut(lane, route, argv)
        for shard, part in parts.items():
            self._add(shard, part)
        self.commands.append((route, owners, tuple(parts)))

    def _add(self, shard: int, request: Request) -> None:
        block = self.blocks.get(shard)
        if block is None:
            self.blocks[shard] = Block([request])
        else:
            block.add(request)


def _cost(argv: Sequence[bytes]) -> int:
    """About how many bytes it costs to keep a command until EXEC."""
    size = 2 * size_of(argv)  # as it came, and as it is sent
    return size + (PLACE * len(argv) + OVERHEAD if isinstance(argv, Words) else OVERHEAD * (len(argv) + 1))


async def in_order(lane: Lane, transaction: Transaction, frames: list[bytes | None]) -> bytes:
    """The answer to EXEC from the arrays that answered its blocks, by shard, made in turns of at most SLICE_S."""
    while not transaction.answer_own():  # noqa: ASYNC110 - it does the work itself
        await asyncio.sleep(0)
    try:
        assembly = Assembly(lane, transaction.commands, frames, transaction.write)
    except ValueError:  # a frame is no array
        return errors.unexpected_part(b"exec", transaction.write)
    while not assembly.step():  # noqa: ASYNC110
        await asyncio.sleep(0)
    return assembly.reply


def _merged(lane: Lane, route: Route, way: str, frames: Sequence[bytes]) -> bytes:
    """The merged answer of all shards to a script."""
    names = [link.name for link in lane.links]
    # shards that were added meanwhile were not asked
    return merged(route.name, way, dict(zip(names, frames, strict=False)), route.write)


def runs_code(command: Command) -> bool:
    """Whether it calls a script or a function."""
    return "@scripting" in command.categories and command.has_keys


def _shards(lane: Lane, argv: Sequence[bytes], keys: Sequence[int]) -> set[int] | frozenset[int]:
    """The shards of a command. A script without keys is run on the shard of the empty key."""
    return shards_of(lane, argv, keys) or {lane.shard_of(b"")}


def begin(client: Client, counted: Counted, local: Local, keyless: Keyless) -> bytes:
    """MULTI."""
    if client.transaction is not None:
        return errors.multi_in_multi()
    client.transaction = Transaction(counted, local, keyless)
    return b"+OK\r\n"


def discard(client: Client) -> bytes:
    if client.transaction is None:
        return errors.without_multi("DISCARD")
    client.end_transaction()
    client.end_watch()
    return b"+OK\r\n"


def run(client: Client, route: Route, over_shards: bool) -> Outcome:
    """EXEC. A parked client keeps its transaction, as EXEC is offered again."""
    if client.transaction is None:
        return errors.without_multi("EXEC")
    outcome: Outcome = client.transaction.execute(client, route, over_shards)
    if outcome is not NOT_NOW:
        client.end_transaction()
    return outcome
