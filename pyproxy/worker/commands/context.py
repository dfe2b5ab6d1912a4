"""What a command may use of its worker (`Context`), and what a local command sees of its client (`Client`).

The lane makes the clients, and the worker's main module keeps its one `Context` up to date. A command reads both, and
changes only attributes of its own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from protocol.commands import Command
from pyproxy.deadline import within
from pyproxy.messages import Configured, FleetHealth, Script, ScriptsFlushed, Settings, Setup, ShardHealth, Topology
from pyproxy.metrics import Page
from pyproxy.scripts import Scripts, digest_of
from pyproxy.worker.commands.keyless import Keyless
from pyproxy.worker.pubsub.registry import Registry, Subscriber

SHARE_S = 1.0  # how long a client waits until the parent has given a script to all workers
SETTLE_S = 0.2  # how long it waits until the primaries that are up have a setting


class HasCommands(Protocol):
    """A transaction, as CLIENT LIST needs it."""

    @property
    def commands(self) -> Sequence[object]: ...


class HasKeys(Protocol):
    """The watch of a client, as CLIENT LIST needs it."""

    keys: int


class Waits(Protocol):
    """A conversation that waits, as the worker needs it."""

    @property
    def client(self) -> Client: ...
    @property
    def stopped(self) -> bool: ...
    def half_closed(self) -> None: ...


class Writes(Waits, Protocol):
    """A conversation that has begun to write, as the worker needs it."""

    def writes_to(self, shard: int) -> bool: ...


class Client(Protocol):
    """One client connection. In the worker it is a compiled class of the lane."""

    id: int
    proto: int  # 2 or 3
    db: int
    name: bytes
    lib_name: bytes
    lib_ver: bytes
    addr: str  # ip:port
    laddr: str
    fd: int
    created: float  # CLOCK_MONOTONIC, s
    last_active: float
    commands: int
    last_command: bytes  # as in the table: b"client|info"
    reply_mode: int  # REPLY_ON, REPLY_OFF or REPLY_SKIP (the next command only)
    transaction: HasCommands | None  # after MULTI
    conversation: Any  # its command that a coroutine serves
    queued_bytes: int  # bytes that it costs
    watched: HasKeys | None
    subscriber: Subscriber | None  # its subscriptions
    limited: bool  # it has subscriptions in RESP2
    closing: bool
    buffered_in: int  # bytes
    buffered_out: int

    def switch(self, proto: int, db: int) -> None:
        """Serve all later commands in this protocol and database."""

    def end_transaction(self) -> None:
        """Forget the queued commands, if there are any."""

    def end_watch(self) -> None:
        """Watch nothing any more."""

    def finish(self) -> None:
        """Close the connection after the answer to this command."""


@dataclass(slots=True)
class Context:
    """This worker, as it is now, and what its commands share."""

    setup: Setup
    page: Page
    topology: Topology
    health: FleetHealth | None  # None until the first health check
    table: Mapping[bytes, Command]
    clients: Callable[[], Collection[Client]]  # of this worker
    tell: Callable[[Configured | Script | ScriptsFlushed], None]  # the parent
    now: Callable[[], float] = time.monotonic
    settings: Settings = field(default_factory=lambda: Settings(0))
    waiting: set[Waits] = field(default_factory=set)  # conversations that block, or wait without a limit
    writing: set[Writes] = field(default_factory=set)  # conversations that have begun to write, and go on
    moving: set[int] = field(default_factory=set)  # shards whose gate is closed as slots move
    foreign: set[int] = field(default_factory=set)  # shards that have keys of slots of others
    ready_keys: dict[int, Any] = field(default_factory=dict)  # by database: cross_shard/ready_keys.py
    on_checked: Callable[[], None] = lambda: None  # called when none of their checks is in flight any more
    registry: Registry[Any] = field(default_factory=Registry)  # the subscriptions of all clients
    scripts: Scripts = field(init=False)
    keyless: Keyless = field(init=False)
    sharing: dict[bytes, asyncio.Event] = field(default_factory=dict)  # digest -> set when all workers know the text
    configured: int = 0  # how many settings were sent to the parent
    settling: dict[int, asyncio.Event] = field(
        default_factory=dict
    )  # number of a setting -> set when the primaries have it

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.setup.config.limits.scripts_bytes)
        self.keyless = Keyless(self.setup.config.scripts, self.scripts)

    def healths(self) -> list[ShardHealth]:
        """The last health check of each shard, in any order; empty before the first."""
        return list(self.health.shards) if self.health else []

    def configure(self, name: str, value: str) -> None:
        """Have the parent set this on all servers. Clients of other workers see it a little later."""
        self.settings = msgspec.structs.replace(self.settings, told={**self.settings.told, name: value})
        self.configured += 1
        self.tell(Configured(name, value, self.configured))

    async def until_settled(self) -> None:
        """Wait until the primaries that are up have all settings so far, or SETTLE_S have passed."""
        settled = self.settling.setdefault(self.configured, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with within(SETTLE_S):
                await settled.wait()

    def settled(self, number: int) -> None:
        """The primaries have this setting and those before it, as the parent reports."""
        for each in [each for each in self.settling if each <= number]:
            self.settling.pop(each).set()

    async def cache_script(self, text: bytes) -> None:
        """Remember a text that a server has accepted, and wait until all workers have it, at most SHARE_S.

        So the client may then use its digest on any connection. A worker without the text answers -NOSCRIPT, and the
        client sends the text again.
        """
        is_new = self.scripts.learn(text)
        if not is_new and not self.sharing:
            return  # the usual case, and a digest costs time
        digest = digest_of(text)
        if is_new:
            self.sharing[digest] = asyncio.Event()
            self.tell(Script(self.scripts.flushes, text))
        known = self.sharing.get(digest)
        if known is not None:
            try:
                async with within(SHARE_S):
                    await known.wait()
            except TimeoutError:
                self.sharing.pop(digest, None)  # the parent may never report it: nobody waits again

    def script_is_known(self, digest: bytes) -> None:
        """All workers have a text that this one has sent to the parent."""
        known = self.sharing.pop(digest, None)
        if known is not None:
            known.set()

    def flush_scripts(self) -> None:
        """Forget all texts, in all workers."""
        self.scripts.flush()
        self.tell(ScriptsFlushed())


LocalHandler = Callable[[Client, Sequence[bytes], Context], bytes]
"""What answers a local command: the client, its argv, this worker -> the reply frame."""
