"""From names to copies: DUMP and the time of expiry at the source, RESTORE or UNLINK at the destination.

Batches of names come in. Several are in flight, bounded by the bytes of their values. Everything of one name is done in
order: a name is busy from the sending of its DUMP to the answer of its RESTORE, and is not sent again meanwhile. A name
that could not be copied is given back, with what was answered.

Each database has connections of its own. With SELECT among other commands, one that is refused (-BUSY) would take those
behind it to another database.

The frame of a DUMP's answer is a bulk string, as is the argument of RESTORE, so values are passed on as they came.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.reply import decode
from pyproxy.mover.connection import Connection, Lost
from pyproxy.mover.dirty import Dirty, Mark
from pyproxy.mover.stream_dump import groups

BATCH_NAMES = 500
BATCH_BYTES = 1 << 20
"""Of the values of one batch, unless it has one name only."""

WINDOW_NAMES = 6000
WINDOW_BYTES = 32 << 20
"""Of values in flight. One that is larger is in flight alone."""

UNKNOWN_BYTES = 1 << 16
"""Of a value whose size the server does not tell."""

LARGE = 1 << 16
"""Bytes of a value that is not copied once more to have a command in one piece."""

_DUMP = b"*2\r\n$4\r\nDUMP\r\n$%d\r\n%b\r\n*2\r\n$11\r\nPEXPIRETIME\r\n$%d\r\n%b\r\n"
_DUMP_BEFORE_7_0 = b"*2\r\n$4\r\nDUMP\r\n$%d\r\n%b\r\n*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n"
_TIME = b"*1\r\n$4\r\nTIME\r\n"
_SIZE = b"*3\r\n$6\r\nMEMORY\r\n$5\r\nUSAGE\r\n$%d\r\n%b\r\n"
_GROUPS = b"*3\r\n$5\r\nXINFO\r\n$6\r\nGROUPS\r\n$%d\r\n%b\r\n"
_RESTORE = b"*6\r\n$7\r\nRESTORE\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
_RESTORE_END = b"$6\r\nABSTTL\r\n$7\r\nREPLACE\r\n"
_UNLINK = b"*2\r\n$6\r\nUNLINK\r\n$%d\r\n%b\r\n"

_FOREVER = b":-1\r\n"
_GONE = b":-2\r\n"
TOLD = frozenset((*range(6), *range(9, 15), 16, 17, 18, 20, *range(22, 26)))
"""The first byte of a DUMP, for types whose changes a server tells of: strings, lists, sets, sorted sets and hashes. Of
streams it tells what is added and deleted, but of their groups nothing (XGROUP, XREADGROUP, XACK, XCLAIM): see
`stream_dump`. A type that is not known here, as those of modules, counts as one that it does not tell of."""

_NIL = b"$-1\r\n"
_ERROR = ord("-")
_INTEGER = ord(":")


@dataclass(frozen=True, slots=True)
class Batch:
    """Names, in each of some databases. `size`: of their values, as far as the source knows."""

    names: Sequence[bytes]
    databases: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Refused:
    """One name that could not be copied: which server refused what, and how."""

    name: bytes
    connection: Connection
    command: bytes
    line: bytes


@dataclass(frozen=True, slots=True)
class Lines:
    """The connections of one database."""

    look: Connection  # to the source, for questions
    source: Connection  # for values
    destination: Connection


OnRefused = Callable[[Refused, Mark], None]
Run = Callable[[Coroutine[Any, Any, None]], object]
"""Has a part of the work done, beside others."""


class Copier:
    """Of one move. `run` is set by the owner: it is given the rest of each batch, a coroutine that may raise Lost."""

    run: Run

    def __init__(
        self,
        lines: Mapping[int, Lines],
        dirty: Dirty,
        has_pexpiretime: bool,
        on_refused: OnRefused,
        on_done: Callable[[], None],
    ) -> None:
        self.busy: dict[bytes, int] = {}  # names in flight: in how many batches
        self.last = 0  # the number of the batch that was sent last
        self.untold: set[bytes] = set()  # copied names that may have changed without a word of the source: see TOLD
        self.without_groups: set[bytes] = set()  # copied streams: they are such names as soon as they have groups
        self.keys_done = 0
        self.bytes_done = 0
        self._lines = lines
        self._dirty = dirty
        self._has_pexpiretime = has_pexpiretime
        self._on_refused = on_refused
        self._on_done = on_done
        self._size = 0  # of all batches in flight
        self._count = 0  # of their names
        self._in_flight: dict[int, Batch] = {}

    def has_room(self, size: int, level: float = 1.0) -> bool:
        """Whether a batch of this size may be sent, at this part of the full speed."""
        names, most = WINDOW_NAMES * level, WINDOW_BYTES * level
        return not self._in_flight or (self._count < names and self._size + size <= most)

    def answered_up_to(self, number: int) -> bool:
        """Whether all batches up to this number are done."""
        first = next(iter(self._in_flight), None)
        return first is None or first > number

    async def sizes(self, names: Sequence[bytes], databases: Iterable[int]) -> list[int]:
        """Of the values of each name in all these databases, in bytes of the source's memory; 0 for what is gone."""
        found = [0] * len(names)
        asked = b"".join([_SIZE % (len(name), name) for name in names])
        for answers in [self._lines[database].look.send(asked, len(names)) for database in databases]:
            for index, frame in enumerate(await answers):
                if frame[0] == _INTEGER:
                    found[index] += int(frame[1:-2])
                elif frame[0] == _ERROR:
                    found[index] += UNKNOWN_BYTES
        return found

    async def find_groups(self) -> None:
        """What streams have got groups since they were copied becomes untold."""
        names = list(self.without_groups)
        if not names:
            return
        asked = b"".join([_GROUPS % (len(name), name) for name in names])
        for answers in [lines.look.send(asked, len(names)) for lines in self._lines.values()]:
            for name, frame in zip(names, await answers, strict=True):
                # Else: no groups, or an error, as it is no stream there any more; that was told.
                if frame[:1] == b"*" and frame != b"*0\r\n":
                    self.untold.add(name)

    def send(self, batch: Batch) -> None:
        """Send the DUMPs of a batch. None of its names may be busy, and there must be one."""
        for name in batch.names:
            self.busy[name] = self.busy.get(name, 0) + 1
        self.last += 1
        self._in_flight[self.last] = batch
        self._size += batch.size
        self._count += len(batch.names)
        marks = self._on_sent(batch)
        count = 2 * len(batch.names)
        if self._has_pexpiretime:
            asked = b"".join([_DUMP % (len(name), name, len(name), name) for name in batch.names])
        else:
            count += 1
            asked = _TIME + b"".join([_DUMP_BEFORE_7_0 % (len(name), name, len(name), name) for name in batch.names])
        dumped = [self._lines[database].source.send(asked, count) for database in batch.databases]
        self.run(self._finish(self.last, batch, marks, dumped))

    def _on_sent(self, batch: Batch) -> Mapping[bytes, Mark]:
        """The rule of copying: from here on whatever changes makes the names dirty again."""
        return self._dirty.sent(batch.names)

    async def _finish(
        self, number: int, batch: Batch, marks: Mapping[bytes, Mark], dumped: "list[asyncio.Future[list[bytes]]]"
    ) -> None:
        refused: list[Refused] = []
        restored = []
        if marks:  # it is of all databases
            self.untold.difference_update(batch.names)
            self.without_groups.difference_update(batch.names)
        for database, dumps in zip(batch.databases, dumped, strict=True):
            lines = self._lines[database]
            names, command = self._restores(batch.names, await dumps, lines.source, refused)
            if names:
                restored.append((lines.destination, names, lines.destination.send(command, len(names))))
        for destination, names, answers in restored:
            for name, frame in zip(names, await answers, strict=True):
                if frame[0] == _ERROR:
                    refused.append(Refused(name, destination, b"RESTORE", frame[1:-2]))
        del self._in_flight[number]
        self._size -= batch.size
        self._count -= len(batch.names)
        for name in batch.names:
            left = self.busy[name] - 1
            if left:
                self.busy[name] = left
            else:
                del self.busy[name]
        self.keys_done += len(batch.names) - len({each.name for each in refused})
        never = Mark(0, asyncio.get_running_loop().time())
        for each in refused:
            self._on_refused(each, marks.get(each.name, never))
        self._on_done()

    def _restores(
        self, names: Sequence[bytes], frames: list[bytes], source: Connection, refused: list[Refused]
    ) -> tuple[list[bytes], list[bytes]]:
        """What makes the destination have what these answers say: whose commands they are, and they in pieces."""
        now = 0 if self._has_pexpiretime else _time(frames.pop(0))
        done: list[bytes] = []
        pieces: list[bytes] = []
        largest = 0
        for name, value, expires in zip(names, frames[::2], frames[1::2], strict=True):
            if value[0] == _ERROR or expires[0] == _ERROR:
                line = value if value[0] == _ERROR else expires
                refused.append(Refused(name, source, b"DUMP", line[1:-2]))
                continue
            done.append(name)
            if value == _NIL or expires == _GONE:
                pieces.append(_UNLINK % (len(name), name))
                continue
            size = len(value)
            self.bytes_done += size
            if size > largest:
                largest = size
            begins = value.index(b"\n") + 1
            if value[begins] not in TOLD:
                (self.untold if groups(value, begins) != 0 else self.without_groups).add(name)
            at = b"0" if expires == _FOREVER else b"%d" % (now + int(expires[1:-2]))
            pieces.append(_RESTORE % (len(name), name, len(at), at))
            pieces.append(value)
            pieces.append(_RESTORE_END)
        return done, pieces if largest > LARGE else [b"".join(pieces)]

    def __repr__(self) -> str:
        return f"<Copier {len(self.busy)} names of {self._size} bytes in flight, {self.keys_done} done>"


def _time(frame: bytes) -> int:
    """Of the answer to TIME, in ms."""
    answer = decode(frame)
    if isinstance(answer, list) and len(answer) == 2 and all(isinstance(part, bytes) for part in answer):
        seconds, micros = answer
        return int(seconds) * 1000 + int(micros) // 1000
    raise Lost(f"answered TIME with {answer!r:.60}")
