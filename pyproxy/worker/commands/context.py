"""What the commands that the proxy answers itself may look at: the client that asks, and the worker it asks.

Declarations only. The hot path makes the client, and the worker's main module keeps the one `Context` up to date.
Whoever gets them reads, and changes nothing but the attributes of that one client.
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

REPLY_ON, REPLY_OFF, REPLY_SKIP = 0, 1, 2

SHARE_S = 1.0  # how long the parent's word is waited for that all workers know a script
SETTLE_S = 0.2  # and that the primaries have a setting: a client that sets one waits no longer, whatever they do


class HasCommands(Protocol):
    """A transaction, as far as it is shown."""

    @property
    def commands(self) -> Sequence[object]: ...


class HasKeys(Protocol):
    """What a client watches, as far as it is shown."""

    keys: int


class Waits(Protocol):
    """A conversation, as far as it is shown."""

    @property
    def client(self) -> Client: ...
    @property
    def stopped(self) -> bool: ...
    def half_closed(self) -> None: ...


class Client(Protocol):
    """One client connection; in the worker it is a compiled class."""

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
    transaction: HasCommands | None  # begun by MULTI
    conversation: Any  # its command that takes more than one question
    queued_bytes: int  # what it costs
    watched: HasKeys | None
    subscriber: Subscriber | None  # what it is subscribed to
    limited: bool  # it is, in RESP2
    closing: bool
    buffered_in: int  # bytes
    buffered_out: int

    def switch(self, proto: int, db: int) -> None:
        """Every later command is served in this protocol and database."""

    def end_transaction(self) -> None:
        """Forget what was queued, if anything was."""

    def end_watch(self) -> None:
        """Nothing is watched any more."""

    def finish(self) -> None:
        """Close the connection once this command and those before it are answered."""


@dataclass(slots=True)
class Context:
    """This worker, as it is now."""

    setup: Setup
    page: Page
    topology: Topology
    health: FleetHealth | None  # None until the parent has looked once
    table: Mapping[bytes, Command]
    clients: Callable[[], Collection[Client]]  # of this worker
    tell: Callable[[Configured | Script | ScriptsFlushed], None]  # the parent
    now: Callable[[], float] = time.monotonic
    settings: Settings = field(default_factory=lambda: Settings(0))
    waiting: set[Waits] = field(default_factory=set)  # for something that may never come
    ready_keys: dict[int, Any] = field(default_factory=dict)  # by database: cross_shard/ready_keys.py
    register: Registry[Any] = field(default_factory=Registry)  # who is subscribed to what
    scripts: Scripts = field(init=False)
    keyless: Keyless = field(init=False)
    sharing: dict[bytes, asyncio.Event] = field(default_factory=dict)  # digests of which not all workers know yet
    configured: int = 0  # settings that the parent was told
    settling: dict[int, asyncio.Event] = field(default_factory=dict)  # those that somebody waits for

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.setup.config.limits.scripts_bytes)
        self.keyless = Keyless(self.setup.config.scripts, self.scripts)

    def healths(self) -> list[ShardHealth]:
        """The last look at each shard, in no order that matters; empty before the first."""
        return list(self.health.shards) if self.health else []

    def configure(self, name: str, value: str) -> None:
        """Have this set on all servers. Clients of this worker see it at once, those of others when the parent says."""
        self.settings = msgspec.structs.replace(self.settings, told={**self.settings.told, name: value})
        self.configured += 1
        self.tell(Configured(name, value, self.configured))

    async def until_settled(self) -> None:
        """Returns when the primaries that are up have what was configured by now; SETTLE_S are waited at most."""
        settled = self.settling.setdefault(self.configured, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with within(SETTLE_S):
                await settled.wait()

    def settled(self, number: int) -> None:
        """The parent says so, of this setting and those before it."""
        for each in [each for each in self.settling if each <= number]:
            self.settling.pop(each).set()

    async def cache_script(self, text: bytes) -> None:
        """Keep a text that a server has taken; returns when all workers know it.

        So a client that has heard of it may name it to any of them. Without the parent's word that is not waited for
        long: whoever does not know it asks for it again.
        """
        is_new = self.scripts.learn(text)
        if not is_new and not self.sharing:
            return  # as nearly always, and a digest is not made for nothing
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
                self.sharing.pop(digest, None)  # the word may be lost, and nobody is to wait for it again

    def script_is_known(self, digest: bytes) -> None:
        """All workers have been told of a text that this one has learned."""
        known = self.sharing.pop(digest, None)
        if known is not None:
            known.set()

    def flush_scripts(self) -> None:
        """Forget all texts, and have all workers do so."""
        self.scripts.flush()
        self.tell(ScriptsFlushed())


LocalHandler = Callable[[Client, Sequence[bytes], Context], bytes]
"""What answers a local command: the client, its argv, this worker -> the reply frame."""
