# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Commands that ask several shards: one part for each out, one answer back.  Hot path; compiled.

    MGET a b c d  ──▶  s1: MGET a d     *2 A D ──┐
                       s4: MGET b       *1 B   ──┼──▶  *4 A B C D
                       s7: MGET c       *1 C   ──┘

A transaction over several shards is a block for each of them, and the answers of all in the order of its commands.

Sharing out the keys is share.pyx, sending is sending.pyx, putting the answers together merge.pyx; many_keys.pyx and
words.pyx do it in slices.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree

from protocol.scan cimport Words
from pyproxy.worker.lane.lane cimport REPLAY_BYTES, Backend, Client, Lane, Pending, Route, Split, choose_backend
from pyproxy.worker.lane.many_keys cimport begin_sliced
from pyproxy.worker.lane.merge cimport merged
from pyproxy.worker.lane.sending cimport admit_all, decline, new_split, send, send_all
from pyproxy.worker.lane.share cimport Share, count_keys, cut_parts, first_key, share_out
from pyproxy.worker.lane.steps cimport SLICE_ABOVE_BYTES, SLICE_ABOVE_KEYS
from pyproxy.worker.lane.words cimport prepare

from protocol import errors, request
from pyproxy.worker.lane.check import check
from pyproxy.worker.lane.outcome import PLACED


def install(Lane lane not None, slices not None):
    """Has the lane call this module and those below it: they know the lane, so it does not import them.

    `slices`: a pyproxy.slices.Slices, for those of very many parts.
    """
    lane.slices = slices
    lane.splitter = begin
    lane.merger = merged
    lane.preparer = prepare
    lane.checker = check


cdef bint begin(Client client, Route route, const char *frame, Py_ssize_t size) except -1:
    """Splits a command by the shards of its keys and sends the parts; see Splitter."""
    cdef Py_ssize_t keys = count_keys(route, frame)
    cdef Lane lane = client.lane
    cdef int shards = <int>len(client.pool), involved
    cdef Share *shares
    cdef bytes owners
    cdef const char *ptr = first_key(frame)
    if keys < 0:
        client.put_answer(errors.wrong_arity(route.name))
        return True
    if keys > SLICE_ABOVE_KEYS or size > SLICE_ABOVE_BYTES:
        return begin_sliced(client, route, frame, size, keys)
    owners = PyBytes_FromStringAndSize(NULL, keys * 2)
    shares = <Share *>PyMem_RawCalloc(shards, sizeof(Share))
    if shares == NULL:
        raise MemoryError
    try:
        involved = share_out(lane, route, &ptr, owners, 0, keys, shares)
        if involved == 1:
            return _send_whole(client, route, (<unsigned short *>PyBytes_AS_STRING(owners))[0], frame, size)
        return _send_parts(client, route, frame, owners, shares, shards, involved, size)
    finally:
        PyMem_RawFree(shares)


cdef bint _send_whole(Client client, Route route, int shard, const char *frame, Py_ssize_t size) except -1:
    """All keys on one shard: the command goes as it is."""
    cdef Backend backend = choose_backend(client, <Backend>client.pool[shard], route.write, size)
    cdef Pending place
    if backend is None:
        return decline(client)
    place = client.new_pending(size)
    place.write = route.write
    place.shard = shard
    if not route.write or (backend.replays_writes and route.replayable and size <= REPLAY_BYTES):
        place.request = PyBytes_FromStringAndSize(frame, size)
    backend.put(place, frame, size)
    client.enqueue(place)
    return True


cdef bint _send_parts(
        Client client, Route route, const char *frame, bytes owners, Share *shares, int shards, int involved,
        Py_ssize_t size) except -1:
    cdef int shard
    cdef Split split
    cdef list asked, frames, backends = client.pool
    if client.upstreams is not None or not _all_plain(backends, shares, shards):
        backends = list(backends)
        asked = [shard for shard in range(shards) if shares[shard].keys]
        if not admit_all(client, route.write, asked, size, backends):
            return decline(client)
    frames = cut_parts(route, frame, owners, shares, shards)
    split = new_split(client, route, owners, involved, size)
    send_all(backends, split, frames)
    return True


cdef bint _all_plain(list pool, Share *shares, int shards):
    """Whether nobody need be asked: all is as usual at every shard that has a part."""
    cdef int shard
    for shard in range(shards):
        if shares[shard].keys and not (<Backend>pool[shard]).plain:
            return False
    return True


def cut(Lane lane not None, Route route not None, argv not None):
    """A command of a transaction -> the shard of each of its keys (as `Split.order`), and each shard's part of it."""
    placed = (<Words>argv).placed if type(argv) is Words else None
    if placed is not None and placed.links is lane.links and placed.parts:
        return placed.owners, placed.parts
    return _cut_at_once(lane, route, request.Request(argv).frame)


cdef tuple _cut_at_once(Lane lane, Route route, bytes whole):
    cdef int shards = <int>len(lane.links), shard
    cdef const char *frame = PyBytes_AS_STRING(whole)
    cdef const char *ptr = first_key(frame)
    cdef Py_ssize_t keys = count_keys(route, frame)
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
        share_out(lane, route, &ptr, owners, 0, keys, shares)
        frames = cut_parts(route, frame, owners, shares, shards)
    finally:
        PyMem_RawFree(shares)
    return owners, {shard: of_frame(frames[shard]) for shard in range(shards) if frames[shard] is not None}


def fan_out(Client client not None, Route route not None, asked not None):
    """Asks every shard the same Request.  -> PLACED, NOT_NOW, or the refusal to answer."""
    cdef bytes frame = asked.frame
    cdef int shard, shards = <int>len(client.pool), queued = asked.queued
    cdef Split split
    cdef list backends = list(client.pool)
    if not admit_all(client, route.write, range(shards), PyBytes_GET_SIZE(frame), backends):
        return client.lane.declined
    split = new_split(client, route, b"", shards, PyBytes_GET_SIZE(frame))
    for shard in range(shards):
        send(<Backend>backends[shard], split, frame, queued, False, -1)
    return PLACED


def execute(Client client not None, Route route not None, dict blocks not None, list commands not None, bint write):
    """Sends a transaction: shard index -> its Block.

    `commands`: of each command the index of its shard, or, if it is cut, (its route, the shard of each key, its
    shards), or, if the answer is made of the shard's, (its route, what makes it, its shard in a tuple), or, if by a way
    of its own of several shards', (what makes it of the list of theirs, these shards), or its answer itself.
    -> as `fan_out`.
    """
    cdef Split split
    cdef list backends = list(client.pool)
    cdef Py_ssize_t size = 0
    cdef list parts = [(shard, <bytes?>each.frame, <int>each.queued) for shard, each in blocks.items()]
    for each in blocks.values():
        size += each.size
    if not admit_all(client, write, list(blocks), size, backends):
        return client.lane.declined
    split = new_split(client, route, b"", <int>len(blocks), size)
    split.write = write
    split.commands = commands
    for shard, frame, queued in parts:
        send(<Backend>backends[shard], split, <bytes>frame, queued, False, -1)
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
    split.place = client.new_pending(len(frame))
    split.place.write = route.write
    split.place.shard = shard
    client.enqueue(split.place)
    send(backend, split, frame, queued, False, -1)
    return PLACED


# --- conversations ----------------------------------------------------------------------------------------------------


def ask(Client client not None, Route route not None, parts not None, bint write, bint primary, asked):
    """Sends what a conversation asks: shard index -> a Request or a Block.

    `primary`: a read that no replica may answer.

    `asked(frames, failed)` is called when all have answered: by shard the frames that came, or None; and a dict by
    shard of (error line, whether it surely was not applied), or None where there was no error, neither ours nor a
    server's.

    -> None; NOT_NOW where the client was parked, and its conversation will be told to go on; the refusal.
    """
    cdef Lane lane = client.lane
    cdef Split split
    cdef Backend backend
    cdef list backends = list(client.pool)
    cdef Py_ssize_t size = 0
    cdef list going = [
        (shard, <bytes?>each.frame, <int>each.queued, <int>each.timeout_class) for shard, each in parts.items()]
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
        if not admit_all(client, write, list(parts), size, backends):
            return lane.declined
    split = _asking(client, route, <int>len(parts), asked)
    split.write = write
    for shard, frame, queued, timeout_class in going:
        send(<Backend>backends[shard], split, <bytes>frame, queued, primary, timeout_class)
    return None


def ask_on(Client client not None, Route route not None, Backend backend not None, part not None, bint write, asked):
    """Sends a Request or a Block on a connection that only this conversation uses; `asked` as for `ask`."""
    cdef bytes frame = part.frame
    cdef int queued = part.queued
    cdef Split split = _asking(client, route, 1, asked)
    split.write = write
    send(backend, split, frame, queued, False, -1)


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
