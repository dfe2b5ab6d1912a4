"""Settings that clients were told are set: kept, told to all workers, and set on every server.

    worker ── Configured ──▶ Keeper ──▶ Settings ──▶ all workers            (and the state file)
                               └──▶ CONFIG SET ──▶ every server, replicas too, as one of them may be primary one day

A client is answered before any server is asked, so a server that does not do it can only be an alarm. It is told again
when it was away, is another process or has another role, and while it has failed. Where servers do not let themselves
be told (ElastiCache), they are left alone, and what they are set to is all that a client may set.

Which settings, and what values, is not decided here, and nothing is ever read from a server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from protocol import notifications
from protocol.reply import Error
from pyproxy.access import Access
from pyproxy.control.node import NodeConnection, NodeError
from pyproxy.control.promoters import PromotionFailed
from pyproxy.events import Event, emit
from pyproxy.messages import FixedSetting, NodeLook, Settings
from pyproxy.shardmap import Node

NAME = notifications.SETTING
"""The one there is."""

DEADLINE_S = 1.0  # of a connect, and of the replies
AGAIN_S = 5.0  # after a failure
ASK_S, ASK_AGAIN_S = 300.0, 15.0  # between two questions what a setting is fixed to; after one without an answer

FixedBy = Callable[[str], Awaitable[str | None]]
"""Promoter.setting."""


@dataclass(frozen=True, slots=True)
class Sitting:
    """What a server was told, and which process in which role it was then. Another sitting: it must be told again."""

    run_id: str
    role: str
    value: str


@dataclass(frozen=True, slots=True)
class Attempt:
    sitting: Sitting | None  # None: somebody may have changed it since
    failure: str = ""
    at: float = 0.0  # CLOCK_MONOTONIC, s


class Keeper:
    """All shards. `state` is what the workers are told; `changed` is called when it is another one.

    `fixed_by` asks, for each shard, what a setting is fixed to; `nodes` has the last looks at its servers; `start`
    has a coroutine run.
    """

    def __init__(
        self,
        access: Access,
        fixed_by: Mapping[str, FixedBy],
        nodes: Callable[[str], Mapping[Node, NodeLook]],
        told: Mapping[str, str],
        changed: Callable[[], None],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._access = access
        self._fixed_by = fixed_by
        self._nodes = nodes
        self._changed = changed
        self._start = start
        self._fixed: dict[str, str | None] = dict.fromkeys(fixed_by)  # by shard; those that are not are taken out
        self._attempts: dict[Node, Attempt] = {}
        self._busy: set[Node] = set()
        self.state = Settings(1, dict(told), self._fixed_settings())

    def begin(self) -> None:
        """Find out what is fixed; until then, clients are asked to come again."""
        for shard in self._fixed_by:
            self._start(self._follow(shard), f"settings of {shard}")

    def configure(self, name: str, value: str) -> None:
        """A client has set this. The last one wins."""
        if name != NAME:
            return
        if self._value == value:
            # Nothing new, but somebody may have changed it at a server: said again to each at its next look.
            self._attempts = {node: replace(attempt, sitting=None) for node, attempt in self._attempts.items()}
            return
        emit(Event.CONFIG_SET, setting=name, value=value)
        self._publish({**self.state.told, name: value})
        for shard in self._fixed_by:
            self.on_seen(shard)

    def on_seen(self, shard: str) -> None:
        """A server of this shard was looked at: those that do not have what clients were told, are told."""
        if self._value is None or shard in self._fixed:
            return
        for node, look in self._nodes(shard).items():
            if not look.reachable:
                self._attempts.pop(node, None)
            elif node not in self._busy and self._is_due(self._attempts.get(node), _sitting(look, self._value)):
                self._busy.add(node)
                self._start(self._set(shard, node, _sitting(look, self._value)), f"set {NAME} of {node}")

    def alarms(self, shard: str) -> list[str]:
        """What an operator must know of the settings of this shard."""
        value, fixed = self._value, self._fixed.get(shard)
        found = [
            f"{NAME} of {node} is not set to '{value}': {attempt.failure}"
            for node in self._nodes(shard)
            if (attempt := self._attempts.get(node)) and attempt.failure
        ]
        if value is not None and fixed is not None and fixed != value:
            found.append(f"{NAME} is '{fixed}' by its parameter group, and clients were told '{value}'")
        return found

    @property
    def _value(self) -> str | None:
        return self.state.told.get(NAME)

    def _is_due(self, attempt: Attempt | None, wanted: Sitting) -> bool:
        if attempt is None or attempt.sitting != wanted:
            return True
        return bool(attempt.failure) and time.monotonic() >= attempt.at + AGAIN_S

    async def _set(self, shard: str, node: Node, sitting: Sitting) -> None:
        """One attempt at a time: a server is never told two values in an order that nobody knows."""
        try:
            failure = await self._ask(node, sitting.value)
            self._note(shard, node, Attempt(sitting, failure, time.monotonic()))
        finally:
            self._busy.discard(node)

    async def _ask(self, node: Node, value: str) -> str:
        """Why it did not do it; empty: it did."""
        try:
            connection = await NodeConnection.open(node, self._access, DEADLINE_S)
            try:
                command = (b"CONFIG", b"SET", NAME.encode(), value.encode())
                (reply,) = await connection.ask(command, deadline_s=DEADLINE_S)
            finally:
                connection.close()
        except NodeError as exc:
            return str(exc)
        return reply.line.decode(errors="replace") if isinstance(reply, Error) else ""

    def _note(self, shard: str, node: Node, attempt: Attempt) -> None:
        before = self._attempts.get(node)
        was = before.failure if before else ""
        if attempt.failure and attempt.failure != was:
            emit(Event.CONFIG_SET_FAILED, shard=shard, node=node, setting=NAME, why=attempt.failure)
        if was and not attempt.failure:
            emit(Event.CONFIG_SET_DONE, shard=shard, node=node, setting=NAME)
        self._attempts[node] = attempt

    async def _follow(self, shard: str) -> None:
        """What the setting is fixed to there, as long as it may change."""
        unanswered = ""
        while True:
            try:
                value = await self._fixed_by[shard](NAME)
            except PromotionFailed as exc:  # what was known stands
                if str(exc) != unanswered:
                    unanswered = str(exc)
                    emit(Event.CONFIG_SET_FAILED, shard=shard, setting=NAME, why=unanswered)
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            unanswered = ""
            if value is None:
                del self._fixed[shard]
                self._publish(self.state.told)
                self.on_seen(shard)
                return
            flags = notifications.parse(value.encode())
            self._fixed[shard] = value if flags is None else flags
            self._publish(self.state.told)
            await asyncio.sleep(ASK_S)

    def _publish(self, told: dict[str, str]) -> None:
        state = Settings(self.state.version + 1, told, self._fixed_settings())
        if (state.told, state.fixed) != (self.state.told, self.state.fixed):
            self.state = state
            self._changed()

    def _fixed_settings(self) -> list[FixedSetting]:
        return [FixedSetting(shard, NAME, value) for shard, value in self._fixed.items()]

    def __repr__(self) -> str:
        return f"<Keeper {self.state}>"


def _sitting(look: NodeLook, value: str) -> Sitting:
    return Sitting(look.run_id, look.role, value)
