"""What clients were told, against what the servers hold in the end: lost, twice, misrouted, out of order.

In come the operations of all clients (`Op`), what was seen of the servers beside them (`Fence`), when something was
done to them (`Incident`), and what each holds after it (`State`). Out comes a `Verdict`. Pure: no clock, no socket.

Every written value names its key, its client and its number ("key|client|number"), and:

- a list is pushed to by any client, each value once: what is lost, there twice or out of order is known exactly;
- a counter belongs to one client, by INCR alone: an answer that is not above the one before it proves that what lies
  between was lost, one that skips more than the increments of unknown fate proves that one was applied twice;
- a register belongs to one client, by SET: a read that began after a write was acknowledged must show it, or a later
  one. Of its losses only the last is seen, so the count of lost writes is a lower bound.

A write is *confirmed* if it is certain that a replica had it, too: whichever node executed it was asked PUBLISH and
WAIT after its acknowledgement, on a connection of its own, and answered at least 1. An acknowledged write that is not
confirmed may be lost in an incident of its shard (replication is asynchronous); anything else may not.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

Reply = str | int | list[str | None] | None

WRITES = ("SET", "INCR", "RPUSH")

NOT_APPLIED = ("TRYAGAIN", "READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "MISCONF")
"""First words of errors that promise that the write was not, and never will be, applied."""


class Op(msgspec.Struct, array_like=True):
    """One request of one client. Times are CLOCK_MONOTONIC, s."""

    client: str
    number: int  # its place in the client's order
    shard: str  # the only one it touches; empty: several, or none
    verb: str  # SET GET INCR RPUSH MGET ECHO
    key: str  # of MGET all, with blanks between
    value: str  # that was written, or is to be echoed
    sent_at: float
    answered_at: float = 0.0  # 0: no answer came
    reply: Reply = None
    error: str = ""  # the text of an error reply; or, without an answer, how the connection ended

    @property
    def acknowledged(self) -> bool:
        return self.answered_at > 0 and not self.error

    @property
    def refused(self) -> bool:
        """Answered so that it cannot have been applied."""
        return self.answered_at > 0 and self.error.partition(" ")[0] in NOT_APPLIED

    @property
    def unknown(self) -> bool:
        """It may have been applied, and may still be."""
        return not self.acknowledged and not self.refused

    def __str__(self) -> str:
        return f"{self.client}#{self.number} {self.verb} {self.key} {self.value}".rstrip()


class Fence(msgspec.Struct, array_like=True):
    """PUBLISH and WAIT, asked of one node directly. `replicas` had everything that it executed before `sent_at`."""

    shard: str
    node: str
    sent_at: float
    answered_at: float
    replicas: int  # -1: it is a replica itself, or is not there; it executes no write


@dataclass(frozen=True, slots=True)
class Incident:
    """Something was done to a shard. In between reads may be as old as a replica is, and unconfirmed writes be lost."""

    shard: str
    since: float
    until: float
    may_lose: bool = True  # false for a planned promotion


@dataclass(frozen=True, slots=True)
class State:
    """What one node holds in the end: strings, or lists."""

    shard: str
    node: str
    is_primary: bool
    keys: Mapping[str, str | list[str]]


@dataclass(slots=True)
class Verdict:
    """All that was found. `lost` may happen to Redis; nothing else may happen at all."""

    lost: list[str] = field(default_factory=list)  # acknowledged, unconfirmed, in an incident
    lost_for_no_reason: list[str] = field(default_factory=list)  # confirmed, or not in an incident that explains it
    duplicates: list[str] = field(default_factory=list)
    misrouted: list[str] = field(default_factory=list)  # answers to something else, keys where they do not belong
    disordered: list[str] = field(default_factory=list)
    refused_but_applied: list[str] = field(default_factory=list)
    stale: int = 0  # reads that an incident explains
    confirmed: int = 0  # acknowledged writes, of the shards that were fenced
    lost_window_s: float = 0.0  # between the first acknowledgement that was lost and the last

    @property
    def violations(self) -> list[str]:
        """What no fault of servers or networks excuses."""
        named = {
            "lost, though confirmed or for no reason": self.lost_for_no_reason,
            "applied twice": self.duplicates,
            "misrouted": self.misrouted,
            "out of order": self.disordered,
            "refused, but applied": self.refused_but_applied,
        }
        return [f"{what}: {each}" for what, found in named.items() for each in found]


def check(
    ops: Iterable[Op], states: Sequence[State], fences: Iterable[Fence] = (), incidents: Sequence[Incident] = ()
) -> Verdict:
    """Everything that can be held against this history."""
    found = Checker(states, _Fences(fences), incidents)
    by_key: dict[str, list[Op]] = defaultdict(list)
    for op in sorted(ops, key=lambda op: (op.client, op.number)):
        found.answer(op)
        if op.verb in (*WRITES, "GET"):
            by_key[op.key].append(op)
    for key, about in by_key.items():
        judge = {"RPUSH": found.list_, "INCR": found.counter}.get(about[0].verb, found.register)
        judge(key, about)
    found.placement(by_key)
    found.window()
    return found.verdict


def value_of(key: str, client: str, number: int) -> str:
    """What a client writes to a key, once in its life."""
    return f"{key}|{client}|{number}"


class _Fences:
    """What is known of the nodes of a shard over time."""

    def __init__(self, fences: Iterable[Fence]) -> None:
        self._of: dict[str, dict[str, list[Fence]]] = defaultdict(lambda: defaultdict(list))
        for each in sorted(fences, key=lambda each: each.sent_at):
            self._of[each.shard][each.node].append(each)

    def confirm(self, op: Op) -> bool:
        """Whether every node that may have executed it went on to say that a replica has it."""
        said = [self._by(of_node, op) for of_node in self._of.get(op.shard, {}).values()]
        return True in said and False not in said

    @staticmethod
    def _by(fences: list[Fence], op: Op) -> bool | None:
        """None: this node cannot have executed it, as it was a replica or gone all the while."""
        after = bisect_left(fences, op.answered_at, key=lambda each: each.sent_at)
        if after == len(fences):
            return False
        before = after - 1
        while before >= 0 and fences[before].answered_at > op.sent_at:
            before -= 1
        around = fences[max(before, 0) : after + 1]
        if around and all(each.replicas < 0 for each in around):
            return None
        for each in fences[after:]:
            if each.replicas != 0:
                return each.replicas > 0
        return False


class Checker:
    """One run over one history."""

    def __init__(self, states: Sequence[State], fences: _Fences, incidents: Sequence[Incident]) -> None:
        self.verdict = Verdict()
        self._states = states
        self._primary = {state.shard: state.keys for state in states if state.is_primary}
        self._fences = fences
        self._incidents = incidents
        self._lost: dict[int, Op] = {}
        self._fenced = {incident.shard for incident in incidents}

    # --- one operation alone ---

    def answer(self, op: Op) -> None:
        """An answer must be one to this very request."""
        if not op.acknowledged:
            return
        if op.verb in WRITES and op.shard in self._fenced:
            self.verdict.confirmed += self._fences.confirm(op)
        reply = op.reply
        match op.verb:
            case "SET":
                fits = reply == "OK"
            case "INCR" | "RPUSH":
                fits = isinstance(reply, int)
            case "ECHO":
                fits = reply == op.value
            case "GET":
                fits = _of_key(op.key, reply)
            case _:
                keys = op.key.split()
                fits = isinstance(reply, list) and len(reply) == len(keys) and all(map(_of_key, keys, reply))
        if not fits:
            self.verdict.misrouted.append(f"{op} was answered {reply!r}")

    # --- all operations on one key ---

    def list_(self, key: str, ops: list[Op]) -> None:
        written = {op.value: op for op in ops}
        held = self._held(ops)
        values = held if isinstance(held, list) else []
        for value, times in Counter(values).items():
            if times > 1:
                self.verdict.duplicates.append(f"{value} is there {times} times")
        self._strangers(key, written)
        place = {value: index for index, value in enumerate(values)}
        last: dict[str, Op] = {}
        for op in ops:
            if not op.acknowledged:
                continue
            if op.value not in place:
                self._lose(op)
                continue
            before = last.get(op.client)
            if before is not None and place[before.value] > place[op.value]:
                self.verdict.disordered.append(f"{op} stands before {before}")
            last[op.client] = op

    def counter(self, key: str, ops: list[Op]) -> None:
        kept: list[tuple[int, int, Op]] = []  # the number it was answered, how many unknown ones it skipped, itself
        spare = 0  # increments of unknown fate that no later answer has counted

        def roll_back(number: int) -> int:
            """Forget what is at or above `number`; how many are between the rest and it."""
            nonlocal spare
            while kept and kept[-1][0] >= number:
                _, skipped, lost = kept.pop()
                spare += skipped
                self._lose(lost)
            return number - 1 - (kept[-1][0] if kept else 0)

        def skip(count: int, where: str) -> int:
            nonlocal spare
            counted = min(count, spare)
            spare -= counted
            if count > counted:
                self.verdict.duplicates.append(f"{where} counts {count - counted} increments too many")
            return counted

        for op in ops:
            if op.unknown:
                spare += 1
            elif op.acknowledged and isinstance(op.reply, int):
                kept.append((op.reply, skip(roll_back(op.reply), str(op)), op))
        held = self._held(ops)
        skip(roll_back((int(held) if isinstance(held, str) else 0) + 1), f"{key} in the end")

    def register(self, key: str, ops: list[Op]) -> None:
        sets = [op for op in ops if op.verb == "SET"]
        written = {op.value: op for op in sets}
        self._strangers(key, written)
        place = {op.value: index for index, op in enumerate(sets)}
        done = sorted((op.answered_at, place[op.value]) for op in sets if op.acknowledged)
        newest = -1
        newest_by: list[tuple[float, int]] = []  # when, and the newest that was acknowledged by then
        for at, index in done:
            newest = max(newest, index)
            newest_by.append((at, newest))
        mine: dict[str, int] = defaultdict(lambda: -1)  # the newest that a client set itself, whenever it was answered
        for op in ops:
            if op.verb == "SET" and op.acknowledged:
                mine[op.client] = place[op.value]
            elif op.verb == "GET" and op.acknowledged and _of_key(key, op.reply):
                until = bisect_left(newest_by, (op.sent_at, -1))
                known = max(mine[op.client], newest_by[until - 1][1] if until else -1)
                shown = place.get(op.reply, -1) if isinstance(op.reply, str) else -1
                if shown < 0 and op.reply is not None:
                    self.verdict.misrouted.append(f"{op} was answered {op.reply}, which nobody wrote")
                elif shown >= 0 and sets[shown].refused:
                    self.verdict.refused_but_applied.append(f"{sets[shown]}: {sets[shown].error}; {op} showed it")
                else:
                    self._read(op, sets, known, shown)
        held = place.get(str(self._held(ops)), -1)
        if newest > held and not (held >= 0 and sets[held].unknown):
            self._lose(sets[newest])

    def _read(self, op: Op, sets: list[Op], newest: int, seen: int) -> None:
        """A read that began when `newest` was acknowledged showed `seen`."""
        if seen >= newest or (seen >= 0 and sets[seen].unknown):  # what is unknown may come late
            return
        of_shard = [each for each in self._incidents if each.shard == op.shard]
        if any(each.since <= op.answered_at and op.sent_at <= each.until for each in of_shard):
            self.verdict.stale += 1
        elif self._excuse(sets[newest]) and self._after(op):
            self._lose(sets[newest])
        else:
            self.verdict.disordered.append(f"{op} showed {op.reply}, after {sets[newest]} was acknowledged")

    # --- the servers ---

    def placement(self, by_key: Mapping[str, list[Op]]) -> None:
        """A key may stand on the nodes of its shard alone."""
        for state in self._states:
            for key in state.keys:
                if key in by_key and by_key[key][0].shard != state.shard:
                    self.verdict.misrouted.append(f"{key} of {by_key[key][0].shard} stands on {state.node}")

    def window(self) -> None:
        times = [op.answered_at for op in self._lost.values()]
        self.verdict.lost_window_s = max(times) - min(times) if times else 0.0

    def _held(self, ops: list[Op]) -> str | list[str] | None:
        return self._primary.get(ops[0].shard, {}).get(ops[0].key)

    def _strangers(self, key: str, written: Mapping[str, Op]) -> None:
        """Whatever node it is on: nobody may hold what was refused, or was never written."""
        seen: set[str] = set()
        for state in self._states:
            held = state.keys.get(key, [])
            seen.update([held] if isinstance(held, str) else held)
        for value in sorted(seen):
            if value not in written:
                self.verdict.misrouted.append(f"{key} holds {value}, which nobody wrote to it")
            elif written[value].refused:
                self.verdict.refused_but_applied.append(f"{written[value]}: {written[value].error}")

    # --- what was lost ---

    def _lose(self, op: Op) -> None:
        if id(op) in self._lost:
            return
        self._lost[id(op)] = op
        told = f"{op}, acknowledged at {op.answered_at:.3f}"
        if self._fences.confirm(op):
            self.verdict.lost_for_no_reason.append(f"{told} and confirmed")
        elif self._excuse(op):
            self.verdict.lost.append(told)
        else:
            self.verdict.lost_for_no_reason.append(told)

    def _excuse(self, op: Op) -> bool:
        """Whether it was acknowledged before the end of an incident that may lose it."""
        return any(i.may_lose and i.shard == op.shard and op.answered_at <= i.until for i in self._incidents)

    def _after(self, op: Op) -> bool:
        return any(i.shard == op.shard and op.sent_at > i.until for i in self._incidents)


def _of_key(key: str, reply: object) -> bool:
    return reply is None or (isinstance(reply, str) and reply.startswith(f"{key}|"))
