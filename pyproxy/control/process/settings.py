"""Settings that clients have set (CONFIG SET): kept, sent to all workers, and set on every server.

    worker ── Configured ──▶ SettingsReconciler ──▶ Settings ──▶ all workers (and the state file)
           ◀── Settled ────         └──▶ CONFIG SET ──▶ every server; replicas too, as one may be primary one day

A client is answered whatever the servers do; it only waits a moment for the primaries that are up. So if a server does
not take the setting, that can only be an alarm. The setting is set again when the server was away, is another process
or has another role, and while that fails. Where servers refuse CONFIG (ElastiCache), they are left alone, and what they
are set to is all that a client may set.

Which settings, and what values, is not decided here, and nothing is ever read from a server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import notifications
from protocol.reply import Error
from pyproxy.access import Access
from pyproxy.control.failover.promoters import PromotionFailed
from pyproxy.control.health.node_connection import NodeConnection, NodeError
from pyproxy.events import Event, emit
from pyproxy.messages import FixedSetting, NodeHealth, Settings
from pyproxy.shard_map import Node

NAME = notifications.SETTING
"""The one that clients may set in any case, and that is compared with what it is fixed to."""

DEADLINE_S = 1.0  # of a connect, and of the replies
RETRY_S = 5.0  # after a failure
ASK_S, ASK_RETRY_S = 300.0, 15.0  # between two questions what a setting is fixed to; after one without an answer

FixedBy = Callable[[str], Awaitable[str | None]]
"""Promoter.setting."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The settings that a server is to have, as this process and in this role. Another one: it must be set again."""

    run_id: str
    role: str
    settings: tuple[tuple[str, str], ...]  # name, value


@dataclass(frozen=True, slots=True)
class Attempt:
    desired: DesiredState
    failure: str = ""
    setting: tuple[str, str] = ("", "")  # name and value of the one that failed
    at: float = 0.0  # CLOCK_MONOTONIC, s


class SettingsReconciler:
    """All shards. `state` is what the workers are sent; `changed` is called when it is another one.

    `fixed_by` asks, for each shard, what a setting is fixed to; `nodes` has the last checks of its servers; `start`
    has a coroutine run.
    """

    def __init__(
        self,
        access: Access,
        fixed_by: Mapping[str, FixedBy],
        nodes: Callable[[str], Mapping[Node, NodeHealth]],
        initial: Mapping[str, str],
        changed: Callable[[], None],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._access = access
        self._fixed_by = dict(fixed_by)
        self._nodes = nodes
        self._changed = changed
        self._start = start
        self._fixed: dict[str, str | None] = dict.fromkeys(fixed_by)  # by shard; those that are not are taken out
        self._attempts: dict[Node, Attempt] = {}
        self._busy: set[Node] = set()
        self._apply_again: set[Node] = set()  # somebody may have changed it there since
        self._waiting: list[Callable[[], None]] = []  # for the settings to be settled
        self.state = Settings(1, dict(initial), self._fixed_settings())

    def begin(self) -> None:
        """Find out what is fixed; until then, clients are asked to come again."""
        for shard in self._fixed_by:
            self._start(self._follow(shard), f"settings of {shard}")

    def add(self, shard: str, fixed_by: FixedBy) -> None:
        """Another shard, while it runs."""
        self._fixed_by[shard], self._fixed[shard] = fixed_by, None
        self._start(self._follow(shard), f"settings of {shard}")

    def configure(self, name: str, value: str, settled: Callable[[], None]) -> None:
        """A client has set this. The last one wins. `settled` is called when no primary that is up is left to tell."""
        self._waiting.append(settled)
        if self.state.told.get(name) == value:
            # Nothing new, but somebody may have changed it at a server: it is set again at each after its next check.
            self._apply_again = {node for each in self._fixed_by for node in self._nodes(each)}
            self._settle()
            return
        emit(Event.CONFIG_SET, setting=name, value=value)
        self._publish({**self.state.told, name: value})
        for shard in self._fixed_by:
            self.on_seen(shard)

    def on_seen(self, shard: str) -> None:
        """A server of this shard was checked: the settings are set on those that do not have them."""
        self._apply(shard)
        self._settle()

    def _apply(self, shard: str) -> None:
        if not self.state.told or shard in self._fixed:
            return
        for node, health in self._nodes(shard).items():
            if not health.reachable:
                self._attempts.pop(node, None)
            elif node not in self._busy and self._is_due(node, self._desired(health)):
                self._busy.add(node)
                self._apply_again.discard(node)
                self._start(self._set(shard, node, self._desired(health)), f"set the settings of {node}")

    def _settle(self) -> None:
        """Say so to who waits for it, if it is."""
        if self._waiting and not any(map(self._is_pending, self._fixed_by)):
            waiting, self._waiting = self._waiting, []
            for settled in waiting:
                settled()

    def _is_pending(self, shard: str) -> bool:
        """Whether its primary is up, and neither has nor has refused what clients have set."""
        if shard in self._fixed:
            return False
        healths = self._nodes(shard).items()
        primaries = [
            (node, self._desired(health)) for node, health in healths if health.reachable and health.role == "master"
        ]
        return any(self._is_new(node, desired) for node, desired in primaries)

    def _is_new(self, node: Node, wanted: DesiredState) -> bool:
        attempt = self._attempts.get(node)
        return attempt is None or attempt.desired != wanted

    def alarms(self, shard: str) -> list[str]:
        """What an operator must know of the settings of this shard."""
        if not self.state.told:
            return []
        value, fixed = self.state.told.get(NAME), self._fixed.get(shard)
        found = [
            f"{attempt.setting[0]} of {node} is not set to '{attempt.setting[1]}': {attempt.failure}"
            for node in self._nodes(shard)
            if (attempt := self._attempts.get(node)) and attempt.failure
        ]
        if value is not None and fixed is not None and fixed != value:
            found.append(f"{NAME} is '{fixed}' by its parameter group, and clients were told '{value}'")
        return found

    def _desired(self, health: NodeHealth) -> DesiredState:
        return DesiredState(health.run_id, health.role, tuple(sorted(self.state.told.items())))

    def _is_due(self, node: Node, wanted: DesiredState) -> bool:
        if node in self._apply_again or self._is_new(node, wanted):
            return True
        attempt = self._attempts[node]
        return bool(attempt.failure) and time.monotonic() >= attempt.at + RETRY_S

    async def _set(self, shard: str, node: Node, desired: DesiredState) -> None:
        """One attempt at a time: a server never gets two values in an order that nobody knows."""
        try:
            setting, failure = await self._ask(node, desired.settings)
            self._note(shard, node, Attempt(desired, failure, setting, time.monotonic()))
        finally:
            self._busy.discard(node)
        health = self._nodes(shard).get(node)
        if health is not None and self._is_new(node, self._desired(health)):
            self._apply(shard)  # another value by now
        self._settle()

    async def _ask(self, node: Node, settings: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], str]:
        """What it did not do, and why; empty: it did all."""
        commands = [(b"CONFIG", b"SET", name.encode(), value.encode()) for name, value in settings]
        try:
            connection = await NodeConnection.open(node, self._access, DEADLINE_S)
            try:
                replies = await connection.ask(*commands, deadline_s=DEADLINE_S)
            finally:
                connection.close()
        except NodeError as exc:
            return settings[0], str(exc)
        for setting, reply in zip(settings, replies, strict=True):
            if isinstance(reply, Error):
                return setting, reply.line.decode(errors="replace")
        return ("", ""), ""

    def _note(self, shard: str, node: Node, attempt: Attempt) -> None:
        before = self._attempts.get(node)
        was = before.failure if before else ""
        if attempt.failure and attempt.failure != was:
            emit(Event.CONFIG_SET_FAILED, shard=shard, node=node, setting=attempt.setting[0], why=attempt.failure)
        if was and not attempt.failure:
            emit(Event.CONFIG_SET_DONE, shard=shard, node=node, setting=before.setting[0] if before else "")
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
                await asyncio.sleep(ASK_RETRY_S)
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

    def _publish(self, values: dict[str, str]) -> None:
        state = Settings(self.state.version + 1, values, self._fixed_settings())
        if (state.told, state.fixed) != (self.state.told, self.state.fixed):
            self.state = state
            self._changed()

    def _fixed_settings(self) -> list[FixedSetting]:
        return [FixedSetting(shard, NAME, value) for shard, value in self._fixed.items()]

    def __repr__(self) -> str:
        return f"<SettingsReconciler {self.state}>"
