# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Commands that ask several shards: one part for each out, one answer back.  Hot path; compiled.

    MGET a b c d  ──▶  s1: MGET a d     *2 A D ──┐
                       s4: MGET b       *1 B   ──┼──▶  *4 A B C D
                       s7: MGET c       *1 C   ──┘

A transaction over several shards is a block for each of them, and the answers of all in the order of its commands.

The keys of a part keep their order, duplicates included, so the answer is put together by walking the original order once
and taking each shard's next element.  All doors are asked before any part is sent: a refusal means that nothing was applied.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memcpy

from protocol.scan cimport FRAME, ReplyScan, Words, counted, header, scan_reply, short_bulk, short_count
from pyproxy.worker.lane.lane cimport (
    Backend, Client, Lane, Park, Pending, Route, Split, bug, choose_backend, cut_off, refusal_at_gate)

from time import monotonic

from protocol import errors, request
from protocol.keyspecs import BadKeys, Places
from pyproxy.worker.lane.outcome import NOT_NOW, PLACED


def install(Lane lane not None, slices not None):
    """Has the lane call this module for commands whose table row says how their parts are merged.

    `slices`: a pyproxy.slices.Slices, for those of very many parts.
    """
    lane.slices = slices
    lane.splitter = begin
    lane.merger = merged
    lane.gatherer = gather


cdef enum:
    REPLAY_BYTES = 262144   # a larger write cannot be held or sent again once it was begun
    SURE_BYTES = 983040     # nor a larger read
    LARGE = 16384           # from here on bytes are passed on as they are, not joined

cdef double SLICE_S = 0.004     # of one turn, for the answers to one transaction


cdef inline Py_ssize_t _digits(Py_ssize_t value) noexcept nogil:
    cdef Py_ssize_t n = 1
    while value >= 10:
        value //= 10
        n += 1
    return n


cdef inline char *_number(char *out, char kind, Py_ssize_t value) noexcept nogil:
    """Writes a header such as *3 or $5 with its CR LF, -> behind it."""
    cdef Py_ssize_t n = _digits(value), i
    out[0] = kind
    for i in range(n):
        out[n - i] = <char>(c'0' + value % 10)
        value //= 10
    out[n + 1] = c'\r'
    out[n + 2] = c'\n'
    return out + n + 3


cdef inline Py_ssize_t _bulk_size(bytes value):
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    return _digits(n) + n + 5


cdef inline char *_bulk(char *out, bytes value):
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    out = _number(out, c'$', n)
    memcpy(out, PyBytes_AS_STRING(value), n)
    out[n] = c'\r'
    out[n + 1] = c'\n'
    return out + n + 2


cdef struct Share:
    Py_ssize_t keys
    Py_ssize_t bytes
    char *cursor


cdef bint begin(Client client, Route route, const char *frame, Py_ssize_t size) except -1:
    """Splits a command by the shards of its keys and sends the parts; see Splitter."""
    cdef Py_ssize_t keys = _keys(route, frame)
    cdef Lane lane = client.lane
    cdef int shards = <int>len(client.pool), involved
    cdef Share *shares
    cdef bytes owners
    cdef const char *ptr = _first_key(frame)
    if keys < 0:
        client.put_answer(errors.wrong_arity(route.name))
        return True
    if keys > WIDE_KEYS or size > WIDE_BYTES:
        return begin_wide(client, route, frame, size, keys)
    owners = PyBytes_FromStringAndSize(NULL, keys * 2)
    shares = <Share *>PyMem_RawCalloc(shards, sizeof(Share))
    if shares == NULL:
        raise MemoryError
    try:
        involved = _share_out(lane, route, &ptr, owners, 0, keys, shares)
        if involved == 1:
            return _whole(client, route, (<unsigned short *>PyBytes_AS_STRING(owners))[0], frame, size)
        return _parts(client, route, frame, owners, shares, shards, involved, size)
    finally:
        PyMem_RawFree(shares)


def cut(Lane lane not None, Route route not None, argv not None):
    """A command of a transaction -> the shard of each of its keys (as `Split.order`), and each shard's part of it."""
    if type(argv) is Words and (<Words>argv).placed is not None and argv.placed.links is lane.links and argv.placed.parts:
        return argv.placed.owners, argv.placed.parts
    return _cut_at_once(lane, route, request.Request(argv).frame)


cdef tuple _cut_at_once(Lane lane, Route route, bytes whole):
    cdef int shards = <int>len(lane.links), shard
    cdef const char *frame = PyBytes_AS_STRING(whole)
    cdef const char *ptr = _first_key(frame)
    cdef Py_ssize_t keys = _keys(route, frame)
    cdef object of_frame = request.Request.of_frame
    cdef bytes owners
    cdef Share *shares
    cdef list frames
    if keys < 0:
        raise ValueError(f"{route.name!r} lacks a value")
    owners = PyBytes_FromStringAndSize(NULL, keys * 2)
    shares = <Share *>PyMem_RawCalloc(shards, sizeof(Share))
    if shares == NULL:
        raise MemoryError
    try:
        _share_out(lane, route, &ptr, owners, 0, keys, shares)
        frames = _cut(route, frame, owners, shares, shards)
    finally:
        PyMem_RawFree(shares)
    return owners, {shard: of_frame(frames[shard]) for shard in range(shards) if frames[shard] is not None}


cdef Py_ssize_t _keys(Route route, const char *frame):
    """How many keys it has, each with its value where the step is 2; -1: a value is missing."""
    cdef Py_ssize_t argc = 0
    header(frame, &argc)
    return -1 if (argc - 1) % route.step else (argc - 1) // route.step


cdef inline const char *_first_key(const char *frame) noexcept nogil:
    """Where the header of its first key begins: behind its name."""
    cdef Py_ssize_t n = 0
    cdef const char *ptr = header(header(frame, &n), &n)
    return ptr + n + 2


cdef inline const char *_past(const char *ptr, int count) noexcept nogil:
    """Behind so many arguments."""
    cdef Py_ssize_t n = 0
    while count:
        ptr = header(ptr, &n) + n + 2
        count -= 1
    return ptr


cdef int _share_out(Lane lane, Route route, const char **first, bytes owners, Py_ssize_t begin, Py_ssize_t until,
                    Share *shares) except -1:
    """Finds the shards of these keys, of which the first is at `first`; the next is there then -> how many are new."""
    cdef unsigned short *order = <unsigned short *>PyBytes_AS_STRING(owners)
    cdef Py_ssize_t i, n = 0
    cdef int shard, involved = 0
    cdef const char *ptr = first[0]
    cdef const char *key
    cdef const char *end
    for i in range(begin, until):
        key = header(ptr, &n)
        end = _past(key + n + 2, route.step - 1)
        shard = lane.owner[lane.slot(key, n)]
        order[i] = <unsigned short>shard
        if shares[shard].keys == 0:
            involved += 1
        shares[shard].keys += 1
        shares[shard].bytes += end - ptr
        ptr = end
    first[0] = ptr
    return involved


cdef list _cut(Route route, const char *frame, bytes owners, Share *shares, int shards):
    """The frame for each shard, None for those that have no key of it."""
    cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(owners)
    cdef Py_ssize_t i, keys = PyBytes_GET_SIZE(owners) // 2
    cdef int shard
    cdef list frames = _headed(route, shares, shards)
    cdef const char *ptr = _first_key(frame)
    cdef const char *end
    for i in range(keys):
        shard = order[i]
        end = _past(ptr, route.step)
        memcpy(shares[shard].cursor, ptr, end - ptr)
        shares[shard].cursor += end - ptr
        ptr = end
    return frames


cdef list _headed(Route route, Share *shares, int shards):
    """The frame for each shard as far as the name, and room for its keys; None for those that have none."""
    cdef Py_ssize_t words
    cdef int shard
    cdef list frames = [None] * shards
    cdef bytes part, name = route.upper
    for shard in range(shards):
        if shares[shard].keys:
            words = 1 + shares[shard].keys * route.step
            part = PyBytes_FromStringAndSize(NULL, _digits(words) + 3 + _bulk_size(name) + shares[shard].bytes)
            shares[shard].cursor = _bulk(_number(PyBytes_AS_STRING(part), c'*', words), name)
            frames[shard] = part
    return frames


cdef bint _whole(Client client, Route route, int shard, const char *frame, Py_ssize_t size) except -1:
    """All keys on one shard: the command goes as it is."""
    cdef Backend backend = choose_backend(client, <Backend>client.pool[shard], route.write, size)
    cdef Pending place
    if backend is None:
        return _declined(client)
    place = client.begun(size)
    place.write = route.write
    place.shard = shard
    if not route.write or (backend.replays_writes and route.replayable and size <= REPLAY_BYTES):
        place.request = PyBytes_FromStringAndSize(frame, size)
    backend.put(place, frame, size)
    client.placed(place)
    return True


cdef bint _declined(Client client) except -1:
    """A command that may not be sent is refused, or else is offered again; see Splitter."""
    if client.lane.declined is NOT_NOW:
        return False
    client.put_answer(<bytes?>client.lane.declined)
    return True


cdef bint _parts(Client client, Route route, const char *frame, bytes owners, Share *shares, int shards, int involved,
                 Py_ssize_t size) except -1:
    cdef int shard
    cdef Split split
    cdef list asked, frames, backends = client.pool
    if client.upstreams is not None or not _all_plain(backends, shares, shards):
        backends = list(backends)
        asked = [shard for shard in range(shards) if shares[shard].keys]
        if not _admitted(client, route.write, asked, size, backends):
            return _declined(client)
    frames = _cut(route, frame, owners, shares, shards)
    split = _split(client, route, owners, involved, size)
    shard = 0
    while shard < shards:
        try:        # as in `_send`, and entered once
            while shard < shards:
                if frames[shard] is not None:
                    _send_part(<Backend>backends[shard], split, <bytes>frames[shard], 0, False, -1)
                shard += 1
        except Exception:
            split.not_sent(<Backend>backends[shard])
            shard += 1
    return True


cdef bint _all_plain(list pool, Share *shares, int shards):
    """Whether nobody need be asked: all is as usual at every shard that has a part."""
    cdef int shard
    for shard in range(shards):
        if shares[shard].keys and not (<Backend>pool[shard]).plain:
            return False
    return True


cdef bint _admitted(Client client, bint write, shards, Py_ssize_t size, list backends) except -1:
    """Whether a part may be sent to each of these shards; if not, `lane.declined` says why.

    `backends`: a copy of the client's pool; for a read from a replica it is changed.
    """
    cdef Lane lane = client.lane
    cdef Backend backend
    cdef bytes line = None
    if write:
        for shard in shards:    # first who refuses, so that nobody waits in vain
            backend = <Backend>client.pool[shard]
            line = refusal_at_gate(client, backend, size)
            if line is not None:
                lane.declined = errors.part_failed(backend.link.name, line)
                return False
    for shard in shards:
        backend = choose_backend(client, <Backend>client.pool[shard], write, size)
        if backend is None:
            if lane.declined is not NOT_NOW:
                lane.declined = errors.part_failed((<Backend>client.pool[shard]).link.name, lane.declined)
            return False
        backends[shard] = backend
    return True


cdef Split _split(Client client, Route route, bytes owners, int parts, Py_ssize_t size):
    cdef Split split = _split_at(client, route, owners, parts, client.begun(size))
    split.place.shard = -1
    client.placed(split.place)
    return split


cdef Split _split_at(Client client, Route route, bytes owners, int parts, Pending place):
    """A split for this place in the client's order."""
    cdef Split split = Split.__new__(Split)
    if parts < 1:
        raise ValueError("expected at least one part, got none: nobody would ever answer")
    split.lane = client.lane
    split.route = route
    split.write = route.write
    split.order = owners
    split.left = parts
    split.frames = [None] * len(client.pool)
    split.place = place
    client.lane.splits += 1
    return split


cdef int _send(Backend backend, Split split, bytes frame, int queued, bint stays, int pace) except -1:
    """One part out.  Its split has begun, so a part that cannot be put has failed, and the others go on.

    `pace`: of its slowest command; -1: it is looked for.
    """
    try:
        _send_part(backend, split, frame, queued, stays, pace)
    except Exception:
        split.not_sent(backend)
    return 0


cdef inline int _send_part(Backend backend, Split split, bytes frame, int queued, bint stays, int pace) except -1:
    cdef Pending part = split.part(backend.shard, PyBytes_GET_SIZE(frame))
    if queued or split.on_answered is not None:
        part.pace = split.lane.pace_of(frame, queued) if pace < 0 else pace
    part.stays = stays
    if queued:
        part.queued = queued
        part.ahead = queued + 1
    if part.size <= SURE_BYTES if not part.write else (
            backend.replays_writes and split.route.replayable and part.size <= REPLAY_BYTES):
        part.request = frame
    if part.size < LARGE:
        return backend.put(part, PyBytes_AS_STRING(frame), part.size)
    return _put(backend, part, frame, part.size)


cdef int _put(Backend backend, Pending item, object frame, Py_ssize_t size) except -1:
    """Bytes, or a bytearray that nobody changes any more: large ones are not copied."""
    cdef Lane lane = backend.lane
    cdef object donated = lane.donated
    lane.donated = frame
    try:
        backend.put(item, PyBytes_AS_STRING(<bytes>frame) if type(frame) is bytes else PyByteArray_AS_STRING(frame), size)
    finally:
        lane.donated = donated
    return 0


def fan_out(Client client not None, Route route not None, asked not None):
    """Asks every shard the same Request.  -> PLACED, NOT_NOW, or the refusal to answer."""
    cdef bytes frame = asked.frame
    cdef int shard, shards = <int>len(client.pool), queued = asked.queued
    cdef Split split
    cdef list backends = list(client.pool)
    if not _admitted(client, route.write, range(shards), PyBytes_GET_SIZE(frame), backends):
        return client.lane.declined
    split = _split(client, route, b"", shards, PyBytes_GET_SIZE(frame))
    for shard in range(shards):
        _send(<Backend>backends[shard], split, frame, queued, False, -1)
    return PLACED


def execute(Client client not None, Route route not None, dict blocks not None, list commands not None, bint write):
    """Sends a transaction: shard index -> its Block.

    `commands`: of each command the index of its shard, or, if it is cut, (its route, the shard of each key, its shards),
    or, if the answer is made of the shard's, (its route, what makes it, its shard in a tuple), or, if by a way of its own
    of several shards', (what makes it of the list of theirs, these shards), or its answer itself.
    -> as `fan_out`.
    """
    cdef Split split
    cdef list backends = list(client.pool)
    cdef Py_ssize_t size = 0
    cdef list parts = [(shard, <bytes?>each.frame, <int>each.queued) for shard, each in blocks.items()]
    for each in blocks.values():
        size += each.size
    if not _admitted(client, write, list(blocks), size, backends):
        return client.lane.declined
    split = _split(client, route, b"", <int>len(blocks), size)
    split.write = write
    split.commands = commands
    for shard, frame, queued in parts:
        _send(<Backend>backends[shard], split, <bytes>frame, queued, False, -1)
    return PLACED


def relay(Client client not None, Route route not None, int shard, asked not None, answer not None):
    """Sends a Request to one shard; the client gets `answer(reply frame)`, or the error as it is.  -> as `fan_out`."""
    cdef bytes frame = asked.frame
    cdef int queued = asked.queued
    cdef Backend backend = choose_backend(client, <Backend>client.pool[shard], route.write, len(frame))
    cdef Split split
    if backend is None:
        return client.lane.declined
    split = Split.__new__(Split)
    split.lane = client.lane
    split.route = route
    split.write = route.write
    split.left = 1
    split.frames = [None] * len(client.pool)
    split.make_answer = answer
    split.place = client.begun(len(frame))
    split.place.write = route.write
    split.place.shard = shard
    client.placed(split.place)
    _send(backend, split, frame, queued, False, -1)
    return PLACED


# --- conversations ----------------------------------------------------------------------------------------------------


def ask(Client client not None, Route route not None, parts not None, bint write, bint primary, asked):
    """Sends what a conversation asks: shard index -> a Request or a Block.

    `primary`: a read that no replica may answer.

    `asked(frames, failed)` is called when all have answered: by shard the frames that came, or None; and a dict by shard
    of (error line, whether it surely was not applied), or None where there was no error, neither ours nor a server's.
    -> None; NOT_NOW where the client was parked, and its conversation will be told to go on; the refusal.
    """
    cdef Lane lane = client.lane
    cdef Split split
    cdef Backend backend
    cdef list backends = list(client.pool)
    cdef Py_ssize_t size = 0
    cdef list going = [(shard, <bytes?>each.frame, <int>each.queued, <int>each.pace) for shard, each in parts.items()]
    for each in parts.values():
        size += each.size
    if primary and not write:
        for shard in parts:
            backend = <Backend>client.pool[shard]
            if not backend.admit(client, size):
                return lane.declined
            backends[shard] = backend
    elif len(parts) == 1:
        for shard in parts:
            backend = choose_backend(client, <Backend>client.pool[shard], write, size)
            if backend is None:
                return lane.declined
            backends[shard] = backend
    else:
        if not _admitted(client, write, list(parts), size, backends):
            return lane.declined
    split = _asking(client, route, <int>len(parts), asked)
    split.write = write
    for shard, frame, queued, pace in going:
        _send(<Backend>backends[shard], split, <bytes>frame, queued, primary, pace)
    return None


def ask_on(Client client not None, Route route not None, Backend backend not None, part not None, bint write, asked):
    """Sends a Request or a Block on a connection that only this conversation uses; `asked` as for `ask`."""
    cdef bytes frame = part.frame
    cdef int queued = part.queued
    cdef Split split = _asking(client, route, 1, asked)
    split.write = write
    _send(backend, split, frame, queued, False, -1)


cdef Split _asking(Client client, Route route, int parts, asked):
    cdef Split split = Split.__new__(Split)
    if parts < 1:
        raise ValueError("expected at least one shard to ask, got none: nobody would ever answer")
    if client.conversation is None or client.head is None:
        raise ValueError("expected a conversation that goes on, got one that is over")
    split.lane = client.lane
    split.route = route
    split.left = parts
    split.frames = [None] * len(client.pool)
    split.place = client.head       # that of the conversation: it is the only one
    split.on_answered = asked
    return split


# --- answers ----------------------------------------------------------------------------------------------------------


cdef bytes merged(Split split, Pending place, Py_ssize_t size):
    """The one answer to a split request whose parts have all been answered, as a reply frame.

    `size`: bytes of the answers. None: it takes more than a turn, and `place` will get it.
    """
    cdef str how = split.route.merged_by
    cdef Assembly assembly
    if split.make_answer is not None:
        return _answered(split)
    if split.failed:
        return _failure(split) if split.commands is None else errors.transaction_discarded(_failure(split))
    try:
        if split.commands is not None:
            assembly = Assembly(split.lane, split.commands, split.frames, split.write)
            if not assembly.step():
                assembly.place = place
                split.lane.loop.call_soon(assembly.go_on)
            return assembly.reply
        if how == "gather":
            if size > WIDE_BYTES or PyBytes_GET_SIZE(split.order) > 2 * WIDE_KEYS:
                if place is not None:
                    merge_wide(split, place, size)
                    return None
            return _gather(split)
        if how == "sum":
            return _sum(split)
        if how == "concat":
            if size > WIDE_BYTES and place is not None:
                merge_wide(split, place, size)
                return None
            return _concat(split)
        for frame in split.frames:
            if frame is not None and frame != b"+OK\r\n":
                raise ValueError
        return b"+OK\r\n"
    except ValueError:
        return _unexpected(split.lane, split.route.name, split.write)


cdef bytes _unexpected(Lane lane, bytes name, bint write):
    """The answers do not fit together."""
    lane.errors += 1
    if write:
        lane.uncertain += 1
    return errors.unexpected_part(name, write)


cdef bytes _failure(Split split):
    """One part failed: never a value; for a write, which shards may have applied theirs."""
    lines = {line for line, _ in split.failed.values()}
    asked = [shard for shard, frame in enumerate(split.frames) if frame is not None or shard in split.failed]
    if len(lines) == 1 and len(asked) == len(split.failed) > 1:
        return lines.pop()      # all said the same, so nobody did anything: it is about the command, not a shard
    names = [link.name for link in split.lane.links]
    shard = min(split.failed)
    applied = []
    if split.write:
        applied = [names[other] for other in asked
                   if other != shard and not split.failed.get(other, (b"", False))[1]]
        if applied:
            split.lane.uncertain += 1
    return errors.part_failed(names[shard], split.failed[shard][0], applied)


cdef bytes _answered(Split split):
    """The answer of the one shard, as it is to be said to the client."""
    if split.failed:
        ((line, _),) = split.failed.values()
        return line
    (frame,) = [frame for frame in split.frames if frame is not None]
    return split.make_answer(frame)


cdef bytes _sum(Split split):
    """The counts of all parts; each is a number of keys, so far below 64 bits."""
    cdef bytes frame, digits
    cdef object total = 0
    for value in split.frames:
        if value is None:
            continue
        frame = value
        digits = frame[1:PyBytes_GET_SIZE(frame) - 2]
        if not frame.startswith(b":") or not digits.isdigit() or len(digits) > 15:
            raise ValueError
        total += int(digits)
    return b":%d\r\n" % total


cdef Py_ssize_t _elements(bytes frame, Py_ssize_t *body) except -1:
    """How many elements an array has, and where the first begins; ValueError if it is none."""
    cdef long long count = short_count(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
    if count >= 0:
        body[0] = 4
        return count
    body[0] = counted(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), &count)
    if body[0] == 0 or count < 0 or PyBytes_AS_STRING(frame)[0] != c'*':
        raise ValueError
    return count


cdef bytes _concat(Split split):
    cdef Py_ssize_t count = 0, body = 0
    cdef list bodies = []
    for frame in split.frames:
        count += _elements(<bytes?>frame, &body)
        bodies.append((<bytes>frame)[body:])
    return b"*%d\r\n" % count + b"".join(bodies)


@cython.final
cdef class Assembly:
    """The answers to the commands of a transaction in their order, put together a slice at a time: there may be very many."""

    cdef readonly bytes reply       # once `step` has said that it is done
    cdef Lane lane
    cdef list commands
    cdef list frames
    cdef Py_ssize_t *offsets        # of each shard: where its next answer begins in its frame
    cdef Py_ssize_t done            # of the commands
    cdef bytearray out
    cdef Pending place              # who is to get it; None: whoever calls `step`
    cdef bint write

    def __init__(self, Lane lane not None, list commands not None, list frames not None, bint write):
        """`commands`, `write`: as for `execute`; `frames`: what the shards answered, by shard.  ValueError if that is no array."""
        cdef Py_ssize_t body = 0
        cdef int shard
        self.lane = lane
        self.write = write
        self.commands = commands
        self.frames = frames
        self.offsets = <Py_ssize_t *>PyMem_RawCalloc(len(frames) + 1, sizeof(Py_ssize_t))
        if self.offsets == NULL:
            raise MemoryError
        for shard in range(<int>len(frames)):
            if frames[shard] is not None:
                _elements(<bytes>frames[shard], &body)
                self.offsets[shard] = body
        self.out = bytearray(b"*%d\r\n" % len(commands))

    def __dealloc__(self):
        PyMem_RawFree(self.offsets)

    def step(self):
        """Goes on for a moment -> whether it is done."""
        cdef double until = monotonic() + SLICE_S
        cdef Py_ssize_t count = len(self.commands)
        cdef int shard
        try:
            while self.done < count:
                self._one(self.commands[self.done])
                self.done += 1
                if not self.done & 31 and monotonic() > until:
                    return False
            for shard in range(<int>len(self.frames)):
                if self.frames[shard] is not None and self.offsets[shard] != len(<bytes>self.frames[shard]):
                    raise ValueError
            self.reply = bytes(self.out)
        except ValueError:
            self.reply = _unexpected(self.lane, b"exec", self.write)
        return True

    def go_on(self):
        """In a later turn; `place` gets the answer, unless its client has gone."""
        cdef Client client = self.place.client
        if client is None:
            return
        try:
            if self.step():
                self.lane.settle(self.place, self.reply)
            else:
                self.lane.loop.call_soon(self.go_on)
        except Exception:
            bug(client)
            cut_off(client)     # its answer is lost, and those behind it wait for that

    cdef int _one(self, command) except -1:
        """The answer to one command."""
        cdef Split whole
        cdef Py_ssize_t length
        cdef int shard
        cdef bytes frame
        if type(command) is int:
            shard = command
            length = self._next_length(shard)
            self._append(PyBytes_AS_STRING(<bytes>self.frames[shard]) + self.offsets[shard], length)
            self.offsets[shard] += length
            return 0
        if type(command) is bytes:
            frame = command
        elif len(<tuple>command) == 2:
            make, shards = command
            frame = make([self._next_answer(shard) for shard in shards])
        else:
            route, owners, shards = command
            whole = Split.__new__(Split)
            whole.lane = self.lane
            whole.route = route
            whole.write = whole.route.write
            if type(owners) is bytes:
                whole.order = owners
            else:
                whole.make_answer = owners
            whole.frames = [None] * len(self.frames)
            for shard in shards:
                frame = self._next_answer(shard)
                whole.frames[shard] = frame
                if frame.startswith(b"-"):
                    whole._failed(shard, frame, True)
            frame = merged(whole, None, 0)
        self._append(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        return 0

    cdef Py_ssize_t _next_length(self, int shard) except -1:
        """How long the next answer of a shard is."""
        cdef bytes frame = self.frames[shard]
        cdef Py_ssize_t length = 0, left
        cdef ReplyScan state
        if frame is None:
            raise ValueError
        state.left = 0
        state.pos = 0
        left = PyBytes_GET_SIZE(frame) - self.offsets[shard]
        if (left <= 0 or scan_reply(PyBytes_AS_STRING(frame) + self.offsets[shard], left, &state, True, left, &length)
                != FRAME):
            raise ValueError
        return length

    cdef bytes _next_answer(self, int shard):
        """The next answer of a shard."""
        cdef Py_ssize_t length = self._next_length(shard), ptr = self.offsets[shard]
        self.offsets[shard] += length
        return (<bytes>self.frames[shard])[ptr:ptr + length]

    cdef int _append(self, const char *p, Py_ssize_t n) except -1:
        cdef Py_ssize_t size = len(self.out)
        PyByteArray_Resize(self.out, size + n)
        memcpy(PyByteArray_AS_STRING(self.out) + size, p, n)
        return 0


cdef const char **_opened(list frames, Py_ssize_t keys, Py_ssize_t *size) except NULL:
    """For each shard where the next element of its array begins, then for each where the array ends; to be freed.

    `size`: of all elements, in bytes.  ValueError where they are not as many as the keys.
    """
    cdef Py_ssize_t body = 0, n = 0, total = 0
    cdef int shard, shards = <int>len(frames)
    cdef bytes frame
    cdef const char **cursors = <const char **>PyMem_RawCalloc(shards * 2, sizeof(char *))
    if cursors == NULL:
        raise MemoryError
    try:
        for shard in range(shards):
            if frames[shard] is None:
                continue
            frame = <bytes>frames[shard]
            n += _elements(frame, &body)
            cursors[shard] = PyBytes_AS_STRING(frame) + body
            cursors[shards + shard] = PyBytes_AS_STRING(frame) + PyBytes_GET_SIZE(frame)
            total += PyBytes_GET_SIZE(frame) - body
        if n != keys:
            raise ValueError
    except ValueError:
        PyMem_RawFree(cursors)
        raise
    size[0] = total
    return cursors


cdef inline Py_ssize_t _element(const char *ptr, const char *end) except -1:
    """The bytes of the element at `at`."""
    cdef Py_ssize_t n = end - ptr, length = short_bulk(ptr, n)
    cdef ReplyScan state
    if not length:
        state.left = 0
        state.pos = 0
        if n <= 0 or scan_reply(ptr, n, &state, True, n, &length) != FRAME:
            raise ValueError
    return length


cdef bytes _gather(Split split):
    """The elements of all parts in the order of the request's keys, as they came."""
    cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(split.order)
    cdef Py_ssize_t keys = PyBytes_GET_SIZE(split.order) // 2, i, total = 0, length
    cdef int shard, shards = <int>len(split.frames)
    cdef bytes out
    cdef char *to
    cdef const char **cursors = _opened(split.frames, keys, &total)
    try:
        out = PyBytes_FromStringAndSize(NULL, _digits(keys) + 3 + total)
        to = _number(PyBytes_AS_STRING(out), c'*', keys)
        for i in range(keys):
            shard = order[i]
            length = _element(cursors[shard], cursors[shards + shard])
            memcpy(to, cursors[shard], length)
            to += length
            cursors[shard] += length
        return out
    finally:
        PyMem_RawFree(cursors)


include "many_keys.pxi"
include "words.pxi"
