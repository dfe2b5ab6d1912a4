"""A conversation: a command that needs several requests, or a connection of its own, and is served by a coroutine.

It begins when all earlier requests of its client are answered, and takes the client's place in the order of replies. No
later request of the client begins before the conversation ends, as on a server that is busy with the client's command.
Its requests pass the same gates, doors and deadlines as any other request.

A handler is `async def handler(conversation) -> bytes`. It returns the reply frame, or raises Refusal with an error
line. handlers.py has the table of all handlers. A command that the lane can serve itself is never a conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

from protocol import errors
from protocol.commands import BadKeys, Command, Kind
from protocol.reply import BadFrame
from protocol.request import Asked, Block, Request
from protocol.scan import Elements, ProtocolError, Words
from pyproxy.deadline import Deadline
from pyproxy.events import Event, emit
from pyproxy.slices import batches
from pyproxy.worker.commands.context import Context
from pyproxy.worker.commands.placing import shards_of
from pyproxy.worker.lane.lane import Client, Lane, Route
from pyproxy.worker.lane.outcome import NOT_NOW, Later, Refused
from pyproxy.worker.lane.split import ask, ask_on
from pyproxy.worker.shard.pool import Lease, LeaseKind, LeasePool, NoLease

SLICE_S = 0.002  # the most of one turn of the loop for a conversation's own work on many parts
BATCH_PARTS = 500  # parts between two checks of the clock

MOMENT_S = 0.1  # in this time a command that does not wait is answered

LARGE_BYTES = 1 << 16  # less is kept however much of the memory budget is left

RETRY_S = 0.02  # before another attempt to get a lease for a write

MOVING_BYTES = 64  # what a conversation counts for that waits at a gate only because slots move

Handler = Callable[["Conversation"], Awaitable[bytes]]
Failed = dict[int, tuple[bytes, bool]]
Argv = Sequence[bytes] | Request
Part = TypeVar("Part")


class Refusal(Exception):
    """The conversation ends with this error line."""

    @property
    def line(self) -> bytes:
        return bytes(self.args[0])


class NotSent(Refusal):
    """The connection was lost before anything was sent on it."""


class SlotsMoved(Exception):
    """Slots have another owner than when the conversation was begun. It has not written, and is begun anew."""


class Conversation:
    """One command of one client, until its answer.

    `command`: of the subcommand, if `argv` has one.

    A handler may leave tasks behind (in a group, in a `gather`) that live on after the conversation is over. They can
    do nothing more for the client: each method that would raises CancelledError.
    """

    def __init__(
        self,
        client: Client,
        route: Route,
        command: Command,
        argv: Sequence[bytes],
        context: Context,
        lease_pool: LeasePool,
    ) -> None:
        self.client = client
        self.lane: Lane = client.lane
        self.route = route
        self.command = command
        self.argv = argv
        self.context = context
        self.lease_pool = lease_pool
        self._asked_again = asyncio.Event()
        self.stopped = False  # the client has closed its half, or the worker drains: no more waiting
        self._waits = False
        self._silent = False  # no answer if the wait is ended: the client has closed its half
        self._applied: list[int] = []  # shards that have applied a part of it
        self.wrote = False  # a write was sent that does not undo itself
        self._writes_to: Set[int] | None = None  # the shards of its keys, once somebody has asked after it wrote
        self.kept: Any = None  # of the handler, for when it is begun anew: what counts from the first time
        self._links = client.lane.links  # the map of slots when it was begun: another list after each change
        self._unblock: Callable[[], None] | None = None
        self._begun_at = 0.0  # on the loop's clock
        self._turn_began = 0.0  # when others had their turn last
        self._end = b""  # the error line if it is ended from outside
        self._ended = False  # it was ended from outside
        self._task: asyncio.Task[None] | None = None

    def begin(self, handler: Handler) -> Later:
        """Begin, unless earlier requests of the client are not answered yet (NOT_NOW)."""
        self._begun_at = self.lane.loop.time()
        outcome = self.client.converse(self)
        if outcome is not NOT_NOW:
            self._task = self.lane.loop.create_task(self._run(handler))
        return outcome

    async def _run(self, handler: Handler) -> None:
        try:
            reply = await self._handled(handler)
        except (Refusal, NoLease, BadKeys) as refusal:
            reply = self._with_what_is_done(refusal.line)
        except (BadFrame, ProtocolError):  # a server has sent an unexpected reply
            reply = self._with_what_is_done(self.unexpected())
        except asyncio.CancelledError:
            if not self._end:
                raise
            reply = self._with_what_is_done(self._end)
        except Exception:
            emit(Event.BUG, where=self, trace=traceback.format_exc())
            self.client.answer(self._with_what_is_done(errors.internal_error()))
            self.client.finish()
            return
        finally:
            self.context.writing.discard(self)
        if self._silent and reply == errors.unblocked():
            self.client.answer(b"")
            self.client.finish()
            return
        self.client.answer(reply)

    async def _handled(self, handler: Handler) -> bytes:
        while True:
            self._links = self.lane.links
            try:
                return await handler(self)
            except SlotsMoved:
                self._check_not_over()
                shards = self._involved()
                if self.command.kind is Kind.KEYED and len(shards) == 1 and not self.command.waits(self.argv):
                    handler = Conversation._as_it_is  # all of its keys have come together

    async def _as_it_is(self) -> bytes:
        shard = self.shard_of_keys()
        return await self.ask_request(shard, await self.request_of(self.argv), write=not self.command.is_read)

    def _check_slots(self) -> None:
        """Raises SlotsMoved. Not once it has written: then none of its slots move before it is over."""
        if self.lane.links is not self._links and not self.wrote:
            raise SlotsMoved

    def begins_to_write(self) -> None:
        self.wrote = True
        self.context.writing.add(self)

    def has_written_nothing(self) -> None:
        """The servers had nothing to do for the writes that were sent."""
        self.wrote = False
        self._writes_to = None
        self.context.writing.discard(self)

    def writes_to(self, shard: int) -> bool:
        """Whether it may write to this shard, now that it has begun: one without keys may write to all.

        Its shards stay the same until it is over, as none of its slots move before.
        """
        if self._writes_to is None:
            self._writes_to = self._involved()
        return not self._writes_to or shard in self._writes_to

    @property
    def is_over(self) -> bool:
        """Whether it is answered or refused, or its client has gone."""
        return self._ended or self.client.conversation is not self

    def _check_not_over(self) -> None:
        """Raises CancelledError."""
        if self.is_over:
            raise asyncio.CancelledError(f"{self!r} is over")

    def _with_what_is_done(self, line: bytes) -> bytes:
        return errors.half_done(line, [self.name(shard) for shard in self._applied]) if self._applied else line

    def applied(self, shard: int) -> None:
        """Record that this shard has applied a part: an error that ends it later names the shard."""
        if shard not in self._applied:
            self._applied.append(shard)

    def undone(self, shard: int) -> None:
        self._applied.remove(shard)

    # --- called by the lane ---

    def go_on(self) -> None:
        """A request that was refused with NOT_NOW may be made again."""
        self._asked_again.set()

    def left(self) -> None:
        """The client has gone."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    def half_closed(self) -> None:
        """The client has closed its half. A wait is ended without an answer, and no later request begins.

        From the beginning its server has a moment to answer, as a command that need not wait is to be carried out.
        """
        self._silent = True
        Deadline(MOMENT_S - (self.lane.loop.time() - self._begun_at), self.drain)

    def drain(self) -> None:
        """The worker drains: end the wait."""
        self.stopped = True
        if self._unblock is not None:
            self._unblock()
        elif self._waits:
            self.refuse(errors.unblocked())

    def refuse(self, line: bytes) -> None:
        """End it with this error line. In a transaction it is the EXEC."""
        self._end = line if self.client.transaction is None else errors.transaction_discarded(line)
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    @contextlib.contextmanager
    def waiting(self, unblock: Callable[[], None] | None = None) -> Iterator[None]:
        """Within the block it waits without a limit. A client that leaves, or a worker that drains, ends the wait.

        `unblock`: called instead of a cancellation, if the request must not be cut off. The block must end soon after.
        Raises Refusal if the wait must not begin any more.
        """
        self._check_not_over()
        self.check_not_stopped()
        self._waits, self._unblock = True, unblock
        self.context.waiting.add(self)
        try:
            yield
        finally:
            self._waits, self._unblock = False, None
            self.context.waiting.discard(self)

    @property
    def waits(self) -> bool:
        return self._waits

    async def in_slices(self, work: Iterator[int]) -> None:
        """Do the work a slice at a time, see slices.py. Its exceptions are raised here."""
        self._check_not_over()
        done: asyncio.Future[None] = self.lane.loop.create_future()

        def watched() -> Iterator[int]:
            try:
                for parts in work:
                    yield parts
                    if done.done():
                        return  # the conversation is over
                done.set_result(None)
            except Exception as exc:
                done.set_exception(exc)

        self.lane.slices.run(watched())
        await done

    async def in_turns(self, parts: Iterable[Part]) -> AsyncIterator[list[Part]]:
        """The parts in lists. After SLICE_S the other clients of the worker get a turn."""
        for some in batches(parts, BATCH_PARTS):
            yield some
            await self._turn()

    async def _turn(self) -> None:
        """Let the other clients have their turn, if this one's time is over."""
        if time.monotonic() - self._turn_began >= SLICE_S:
            await asyncio.sleep(0)
            self._check_not_over()
            self._turn_began = time.monotonic()

    async def request(self, count: int, words: Iterable[bytes]) -> Request:
        """The request of these words, made in slices. Raises ValueError if they are not `count`, or none."""
        encoded, made = [b"*%d\r\n" % count], 0
        async for some in self.in_turns(words):
            encoded.append(b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in some]))
            made += len(some)
        if not made or made != count:
            raise ValueError(f"expected a request of {count} words, got {made}")
        await self._turn()
        return Request.of_accepted(b"".join(encoded))

    async def request_of(self, argv: Argv) -> Request:
        """As `request`, of these words."""
        if isinstance(argv, Request):
            return argv
        if isinstance(argv, Words) or len(argv) <= BATCH_PARTS:
            return Request(argv)
        return await self.request(len(argv), argv)

    async def _block(self, commands: Iterable[Argv]) -> Block:
        """Raises ValueError for no commands."""
        left = iter(commands)
        block = Block([await self.request_of(argv) for argv in itertools.islice(left, 1)])
        async for some in self.in_turns(left):
            for argv in some:
                block.add(await self.request_of(argv))
        await self._turn()
        frame = block.frame
        await self._turn()
        block.timeout_class = self.lane.timeout_class_of(frame, block.queued)
        await self._turn()
        return block

    def check_not_stopped(self) -> None:
        """Raises Refusal if the wait has ended: nothing more may be taken from a shard."""
        if self.stopped:
            raise Refusal(errors.unblocked())

    # --- requests to the shards ---

    def error_of(self, frame: bytes) -> bytes:
        """The error line for an unexpected frame: the frame itself if it is an error."""
        return frame if frame.startswith(b"-") else self.unexpected()

    def unexpected(self) -> bytes:
        """The error line where a server has answered what cannot be: what came of a write is unknown then."""
        if "write" in self.command.flags and not self.wrote:
            return errors.unexpected_before_write(self.command.name)
        reads_only = self.command.is_read or "readonly" in self.command.flags  # XREAD that waits is not is_read
        return errors.unexpected_part(self.command.name, not reads_only)

    def shard_of(self, key: bytes) -> int:
        return self.lane.shard_of(key)

    @property
    def shards(self) -> range:
        return range(len(self.lane.links))

    def name(self, shard: int) -> str:
        return str(self.lane.links[shard].name)

    @property
    def reply_s(self) -> float:
        """How long a server may take to answer."""
        return self.context.setup.config.timeouts.reply_s

    def deadline_s(self, asked: Asked) -> float:
        """How long a server may take for this request. Slow commands have a longer deadline."""
        return self.lane.deadline_s(self.lane.timeout_class_of(asked.frame, asked.queued))

    def shard_of_keys(self, several: Callable[[Sequence[str]], bytes] | None = None) -> int:
        """The one shard of all keys of the command. Raises BadKeys, or Refusal if the keys are on several shards.

        `several`: makes the error line for that from the names of the shards; default: -CROSSSLOT.
        """
        shards = shards_of(self.lane, self.argv, self.command.keys(self.argv))
        if len(shards) != 1:
            names = [self.name(shard) for shard in sorted(shards)]
            raise Refusal(several(names) if several else errors.crossslot())
        (shard,) = shards
        return shard

    async def ask(self, shard: int, *argv: bytes, write: bool = False, primary: bool = False) -> bytes:
        """Ask one shard -> its reply frame, also if that is an error. Raises Refusal if there is no reply.

        `primary`: a read that no replica may answer.
        """
        return await self.ask_request(shard, await self.request_of(argv), write=write, primary=primary)

    async def ask_request(self, shard: int, request: Request, *, write: bool = False, primary: bool = False) -> bytes:
        """As `ask`."""
        frames, failed = await self._asked({shard: request}, write, primary)
        frame = frames[shard]
        if frame is None:
            raise Refusal((failed or {})[shard][0])
        return frame

    async def ask_each(
        self, parts: Mapping[int, Argv], *, write: bool = False, primary: bool = False
    ) -> dict[int, bytes]:
        """Ask several shards at once. `parts`: shard -> argv, or the request. -> shard -> reply frame, also an error.

        Raises Refusal if a shard did not reply. For writes its line names the shards that may have applied their part.
        """
        encoded = {shard: await self.request_of(argv) for shard, argv in parts.items()}
        frames, failed = await self._asked(encoded, write, primary)
        for shard, (line, _) in (failed or {}).items():
            if frames[shard] is None:
                raise Refusal(self._part_failed(shard, line, parts, failed or {}, write))
        return {shard: frame for shard in parts if (frame := frames[shard]) is not None}

    def _part_failed(self, shard: int, line: bytes, parts: Iterable[int], failed: Failed, write: bool) -> bytes:
        others = [other for other in parts if other != shard and not failed.get(other, (b"", False))[1]]
        return errors.part_failed(self.name(shard), line, [self.name(other) for other in others] if write else ())

    async def ask_all(self, *argv: bytes, write: bool = False, primary: bool = False) -> dict[int, bytes]:
        """Ask all shards the same, as `ask_each`."""
        return await self.ask_each(dict.fromkeys(self.shards, argv), write=write, primary=primary)

    async def ask_blocks(
        self,
        blocks: Mapping[int, Iterable[Argv]],
        *,
        write: bool = False,
        primary: bool = False,
        leaves_nothing: bool = False,
    ) -> dict[int, Elements]:
        """Run a transaction on each of these shards. `blocks`: shard -> commands. -> shard -> their reply frames.

        These are read one after another, which may raise ProtocolError: there are as many as the header says.

        Raises ValueError for a shard without commands, and Refusal as `ask_each` if a transaction was not run.
        `leaves_nothing`: its writes undo themselves, so it need not be known whether it was applied.
        """
        parts = {shard: await self._block(each) for shard, each in blocks.items()}
        frames, failed = await self._asked(parts, write, primary, leaves_nothing)
        for shard, (line, _) in (failed or {}).items():
            if leaves_nothing:
                raise Refusal(errors.part_failed(self.name(shard), errors.leaves_nothing(line)))
            raise Refusal(self._part_failed(shard, line, parts, failed or {}, write))
        try:
            answers = {shard: Elements(frames[shard] or b"", True) for shard in parts}
        except ProtocolError:
            raise Refusal(self.unexpected()) from None
        if any(len(answers[shard]) != part.queued for shard, part in parts.items()):
            raise Refusal(self.unexpected())
        return answers

    @contextlib.contextmanager
    def charged(self, size: int) -> Iterator[None]:
        """Within the block the client is charged so many bytes. Raises Refusal if they are many and are not left."""
        self._check_not_over()
        if size >= LARGE_BYTES and not self.lane.has_room(size):
            raise Refusal(errors.needs_too_much(self.command.name, self.lane.memory_limit))
        self.client.charge_command(size)
        try:
            yield
        finally:
            if not self.is_over:  # else its charge has ended with it
                self.client.charge_command(-size)

    async def _asked(
        self, parts: Mapping[int, Asked], write: bool, primary: bool, leaves_nothing: bool = False
    ) -> tuple[list[bytes | None], Failed | None]:
        answered: asyncio.Future[tuple[list[bytes | None], Failed | None]] = self.lane.loop.create_future()

        def on_answer(frames: list[bytes | None], failed: Failed | None) -> None:
            if not answered.done():
                answered.set_result((frames, failed))

        self._check_not_over()
        looked_for = self._bounds()
        for part in parts.values():
            await self._turn()
            if not self.lane.fits(part):
                raise Refusal(errors.too_large(min(self._bounds())))
        await self._turn()
        if write:
            await self.pass_moving_gates()

        def begin() -> Refused:
            self._check_slots()
            # a server may have said meanwhile that it takes less
            if self._bounds() != looked_for and not all(map(self.lane.fits, parts.values())):
                return errors.too_large(min(self._bounds()))
            refused = ask(self.client, self.route, parts, write, primary, on_answer)
            if refused is None and write and not leaves_nothing:
                self.begins_to_write()
            return refused

        with self.charged(sum(part.size for part in parts.values())):
            await self._until_now(begin)
            answer = await answered
        self._turn_began = time.monotonic()
        return answer

    def _bounds(self) -> tuple[int, int]:
        """The most bytes of an argument, and of a block, that the servers take."""
        return self.lane.bulk_bytes, self.lane.block_bytes

    async def _until_now(self, begin: Callable[[], Refused]) -> None:
        """Call `begin` again until it does not return NOT_NOW. Raises Refusal with the line that it returns."""
        while True:
            self._check_not_over()
            self._asked_again.clear()
            refused = begin()
            if refused is None:
                return
            if refused is not NOT_NOW:
                raise Refusal(refused)
            await self._asked_again.wait()

    # --- on a leased connection ---

    async def pass_gate(self, shard: int, size: int) -> None:
        """Wait at the gate of this shard with a write of so many bytes. Raises Refusal if the gate refuses it."""
        await self.pass_moving_gates()

        def begin() -> Refused:
            self._check_slots()
            return self.client.may_write(shard, size)

        await self._until_now(begin)

    async def pass_moving_gates(self) -> None:
        """Before the first write: wait at the gates of those of its shards whose slots are being moved.

        Once it has written, it passes them, and the move waits for its end: what a conversation does to several shards
        is done by one map of slots.
        """
        while not self.wrote and (closed := self.context.moving & self._involved()):
            await self._until_now(partial(self.client.may_write, min(closed), MOVING_BYTES))
            self._check_slots()

    def _involved(self) -> Set[int]:
        """The shards of its keys; of EXEC, of its blocks."""
        if self.client.transaction is not None:
            return set(self.client.transaction.blocks)
        try:
            return shards_of(self.lane, self.argv, self.command.keys(self.argv))
        except BadKeys:
            return set()

    @contextlib.asynccontextmanager
    async def lease(
        self, shard: int, kind: LeaseKind, write_bytes: int = 0, db: int | None = None
    ) -> AsyncIterator[Lease]:
        """A lease on the primary of a shard, in the client's protocol and database, or `db`. Raises NoLease.

        `write_bytes`: the size of the write that it is for. Such a lease waits at the gate of the shard first, as a new
        primary ends all leases; and again if the gate closes before there is a lease. Raises Refusal if the gate
        refuses the write.
        """
        async with contextlib.AsyncExitStack() as stack:
            give_up_at = self.lane.loop.time() + self.context.setup.config.timeouts.connect_s
            while True:
                self._check_not_over()
                if write_bytes:
                    await self.pass_gate(shard, write_bytes)
                try:
                    database = self.client.db if db is None else db
                    leased = self.lease_pool.lease(shard, kind, self.client.proto, database, past_gate=write_bytes > 0)
                    lease = await stack.enter_async_context(leased)
                    break
                except NoLease as exc:
                    soon = exc.transient and self.lane.loop.time() < give_up_at
                    if not write_bytes or not (soon or self.lane.links[shard].router.is_closed):
                        raise
                    await asyncio.sleep(RETRY_S)
            yield lease

    async def ask_on(
        self, lease: Lease, asked: Asked, *, write: bool, deadline_s: float | None = None, of_keys: bool = True
    ) -> bytes:
        """The reply to one request, or to the EXEC of a block, on a leased connection.

        A write passes the gate of its shard first. Errors of the server are replies. Raises Refusal where none comes:
        the connection is lost, or, with `deadline_s`, nothing came in time; then the connection is closed. Raises
        NotSent where it was lost before anything was sent.

        `of_keys`: it must go where the slots are; else it is about the server, or one of its connections.
        """
        shard = lease.link.index
        if write:
            await self.pass_gate(shard, asked.size)
        self._check_not_over()
        if of_keys:
            self._check_slots()
        if lease.lost:
            raise NotSent(errors.not_applied(lease.link.name, lease.link.node, lease.lost))
        answered: asyncio.Future[bytes] = self.lane.loop.create_future()

        def on_answer(frames: list[bytes | None], failed: Failed | None) -> None:
            if not answered.done():
                reply = frames[shard]
                if reply is not None:
                    answered.set_result(reply)
                else:
                    answered.set_exception(Refusal((failed or {})[shard][0]))

        def passed() -> None:
            if not answered.done():
                lease.drop(errors.no_reply(deadline_s or 0.0))

        if write:
            self.begins_to_write()
        ask_on(self.client, self.route, lease.backend, asked, write, on_answer)
        deadline = None if deadline_s is None else Deadline(deadline_s, passed)
        try:
            await asyncio.wait([answered])
            return answered.result()
        finally:
            if deadline is not None:
                deadline.cancel()
            if not answered.done():  # ended from outside: the reply would go to the next user of the connection
                answered.cancel()
                lease.drop(errors.LOST)
            elif not answered.cancelled():
                answered.exception()  # marks it as retrieved: a task that was cancelled in this turn does not

    def __repr__(self) -> str:
        return f"<Conversation {self.command.name.decode()} of {self.client!r}>"
