"""A transaction of one client, from its MULTI to EXEC or DISCARD.

Its commands wait here, checked as far as can be without a server. At EXEC they go out in one piece to the shard of
their keys; where they have several, to none, or, with `transactions = "split"`, in a piece to each. A piece is atomic,
the whole is not.

Commands on keys that they name, and scripts, go to a shard; PUBLISH too, its channel counts as a key. What all shards
are asked (DBSIZE, scripts of which the configuration says that) is a part of each block. What the proxy answers itself
(PING) it answers at EXEC, and so it does where a server would find the form wrong (MSET of a key without a value).
SELECT and CLIENT REPLY cannot be in one: they would change a connection that others share. A block with a script goes
out on a connection of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from protocol import errors
from protocol.commands import BadKeys, Command, Kind
from protocol.request import Block, Request
from pyproxy.worker.keyless import MERGES, REFUSE, UNKNOWN, Keyless, merged
from pyproxy.worker.lane import NOT_NOW, Client, Lane, Route
from pyproxy.worker.pubsub import PUBLISH, Sort
from pyproxy.worker.split import cut, execute, together

QUEUED = b"+QUEUED\r\n"
Counted = Callable[[Sort, bytes], Callable[[bytes], bytes]]
"""What makes the answer of a PUBLISH there; see Hub.counted."""

Local = Callable[[bytes, Client, Sequence[bytes]], bytes]
"""What answers the commands that the proxy answers itself: the name, who asks, argv."""

NOT_IN_A_BLOCK = (b"auth", b"client|reply", b"config|set", b"hello", b"select")
"""Those that change what comes after them, or take their time."""

OVERHEAD = 64  # bytes that a queued command, and each of its words, costs beside its own


@dataclass(slots=True)
class Queued:
    """A command that waits for EXEC."""

    route: Route
    argv: list[bytes]
    keys: Sequence[int]  # where in argv they stand
    answer: Callable[[bytes], bytes] | None = None  # makes its answer of the server's
    said: Callable[[], bytes] | None = None  # makes its answer without one
    way: str = ""  # of a script on all shards: how their answers become one


class Transaction:
    """Between MULTI and EXEC."""

    def __init__(self, counted: Counted, local: Local, keyless: Keyless) -> None:
        self._counted = counted
        self._local = local
        self._keyless = keyless
        self.commands: list[Queued] = []
        self.refused = False  # one of its commands was, so EXEC runs none
        self.write = False
        self.scripts: list[list[bytes]] = []  # those of its commands that run one, functions too

    def take(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> bytes:
        """+QUEUED, or why it is not."""
        line = self._queue(client, route, command, argv)
        if line:
            self.refused = True
        return line or QUEUED

    def _queue(self, client: Client, route: Route, command: Command, argv: Sequence[bytes]) -> bytes:
        answer, said, way = None, None, ""
        keys: Sequence[int] = ()
        match command.kind:
            case Kind.PLAIN:
                keys = (command.first_key,)
            case Kind.SPLIT if not command.is_whole(len(argv)):
                said = partial(errors.wrong_arity, command.name)
            case Kind.SPLIT:
                keys = range(command.first_key, len(argv), command.step)
            case Kind.KEYED | Kind.CONVERSATION if command.kind is Kind.KEYED or command.may_wait or runs_code(command):
                try:
                    keys = command.keys(argv)
                except BadKeys as bad:
                    if not command.is_malformed(argv):
                        return bad.line
                    said = partial(bytes, bad.line)
                if said is None and len(_shards(client.lane, argv, keys)) != 1:
                    return errors.crossslot()
                if said is None and runs_code(command):
                    if not keys:
                        way = self._keyless.way(argv, len(client.lane.links))
                    if way == REFUSE:
                        return self._keyless.refusal(argv)
                    if way == UNKNOWN:
                        said = partial(bytes, errors.no_script())
                    else:
                        self.scripts.append(list(argv))
            case Kind.PUBSUB if command.name in PUBLISH:
                keys = (1,)
                answer = self._counted(PUBLISH[command.name], argv[1])
            case Kind.FANOUT:
                pass
            case Kind.LOCAL if command.name not in NOT_IN_A_BLOCK:
                said = partial(self._local, command.name, client, list(argv))
            case Kind.REFUSED:
                return errors.refused(command.name, command.reason)
            case _:
                return errors.not_in_transaction(command.name)
        self.commands.append(Queued(route, list(argv), keys, answer, said, way))
        self.write = self.write or (said is None and not command.is_read)
        client.queued(sum(map(len, argv)) + OVERHEAD * (len(argv) + 1))
        return b""

    def execute(self, client: Client, route: Route, over_shards: bool) -> object:
        """EXEC, whose route this is: its answer, None (a place was taken), or NOT_NOW."""
        if self.refused:
            return errors.exec_aborted()
        if not self.commands:
            return b"*0\r\n"
        lane = client.lane
        blocks, commands = self.blocks(lane)
        if not blocks:
            return together(lane, answered(commands), [])
        if not all(map(lane.fits, blocks.values())):
            return errors.block_too_large(min(lane.bulk_bytes, lane.block_bytes))
        if len(blocks) == 1 and not self.is_assembled:
            ((shard, block),) = blocks.items()
            reply = client.send(shard, block, self.write, True)
        elif len(blocks) == 1 or over_shards:
            reply = execute(client, route, blocks, answered(commands), self.write)
        else:
            return errors.transaction_over_shards([lane.links[shard].name for shard in sorted(blocks)])
        return errors.transaction_discarded(reply) if isinstance(reply, bytes) else reply

    @property
    def is_assembled(self) -> bool:
        """Whether an answer in it is not a server's."""
        return any(each.answer or each.said for each in self.commands)

    def blocks(self, lane: Lane) -> tuple[dict[int, Block], list[Any]]:
        """For each shard its block; and how the answers are found: see `split.execute`.

        What the proxy answers itself is not done yet: see `answered`. A command whose keys are on several shards is
        cut, as it is outside of a transaction.
        """
        requests: dict[int, list[Request]] = {}
        commands: list[Any] = []
        for each in self.commands:
            if each.said is not None:
                commands.append(each.said)
                continue
            if each.route.command.kind is Kind.FANOUT or each.way in MERGES:
                everywhere, request = range(len(lane.links)), Request(each.argv)
                for shard in everywhere:
                    requests.setdefault(shard, []).append(request)
                if each.way in MERGES:
                    commands.append((partial(_merged, lane, each.route, each.way), everywhere))
                else:
                    commands.append((each.route, b"", everywhere))
                continue
            asked = _shards(lane, each.argv, each.keys)
            if len(asked) == 1:
                (shard,) = asked
                requests.setdefault(shard, []).append(Request(each.argv))
                commands.append((each.route, each.answer, (shard,)) if each.answer else shard)
            else:
                owners, parts = cut(lane, each.route, each.argv)
                for shard, part in parts.items():
                    requests.setdefault(shard, []).append(part)
                commands.append((each.route, owners, tuple(parts)))
        return {shard: Block(of_shard) for shard, of_shard in requests.items()}, commands


def answered(commands: Sequence[Any]) -> list[Any]:
    """The `commands` of `Transaction.blocks`, with what the proxy answers itself done and answered."""
    return [each() if callable(each) else each for each in commands]


def _merged(lane: Lane, route: Route, way: str, frames: Sequence[bytes]) -> bytes:
    """The one answer of all shards to a script."""
    names = [link.name for link in lane.links]
    return merged(route.name, way, dict(zip(names, frames, strict=True)), route.write)


def runs_code(command: Command) -> bool:
    """A script or a function."""
    return "@scripting" in command.categories and command.has_keys


def _shards(lane: Lane, argv: Sequence[bytes], keys: Sequence[int]) -> set[int]:
    """Of a command; a script without keys is run on the shard of the empty key."""
    return {lane.shard_of(argv[position]) for position in keys} or {lane.shard_of(b"")}


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


def run(client: Client, route: Route, over_shards: bool) -> object:
    """EXEC. A client that is parked keeps its transaction, and comes again."""
    if client.transaction is None:
        return errors.without_multi("EXEC")
    reply: object = client.transaction.execute(client, route, over_shards)
    if reply is not NOT_NOW:
        client.end_transaction()
    return reply
