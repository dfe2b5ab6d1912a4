# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""How the parts of a command are sent, if all of their shards take them.  Hot path; compiled.

All doors and gates are asked before any part is sent: a refusal means that nothing was applied.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from pyproxy.worker.lane.lane cimport (
    LARGE, REPLAY_BYTES, SAFE_REQUEST_BYTES, Backend, Client, Lane, Pending, Route, Split, choose_backend,
    refusal_at_gate)

from protocol import errors
from pyproxy.worker.lane.outcome import NOT_NOW


cdef bint admit_all(Client client, bint write, shards, Py_ssize_t size, list backends) except -1:
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


cdef bint decline(Client client) except -1:
    """A command that may not be sent is refused, or else is offered again; see Splitter."""
    if client.lane.declined is NOT_NOW:
        return False
    client.put_answer(<bytes?>client.lane.declined)
    return True


cdef Split new_split(Client client, Route route, bytes owners, int parts, Py_ssize_t size):
    cdef Split split = new_split_at(client, route, owners, parts, client.new_pending(size))
    split.place.shard = -1
    client.enqueue(split.place)
    return split


cdef Split new_split_at(Client client, Route route, bytes owners, int parts, Pending place):
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


cdef int send_all(list backends, Split split, list frames) except -1:
    """To each shard its frame of these, if it has one; as `send`."""
    cdef Py_ssize_t shard = 0, shards = len(frames)
    while shard < shards:
        try:        # entered once
            while shard < shards:
                if frames[shard] is not None:
                    _send_part(<Backend>backends[shard], split, <bytes>frames[shard], 0, False, -1)
                shard += 1
        except Exception:
            split.not_sent(<Backend>backends[shard])
            shard += 1
    return 0


cdef int send(Backend backend, Split split, bytes frame, int queued, bint primary_only, int timeout_class) except -1:
    """One part out.  Its split has begun, so a part that cannot be put has failed, and the others go on.

    `timeout_class`: of its slowest command; -1: it is looked for.
    """
    try:
        _send_part(backend, split, frame, queued, primary_only, timeout_class)
    except Exception:
        split.not_sent(backend)
    return 0


cdef inline int _send_part(
        Backend backend, Split split, bytes frame, int queued, bint primary_only, int timeout_class) except -1:
    cdef Pending part = split.part(backend.shard, PyBytes_GET_SIZE(frame))
    if queued or split.on_answered is not None:
        part.timeout_class = split.lane.timeout_class_of(frame, queued) if timeout_class < 0 else timeout_class
    part.primary_only = primary_only
    if queued:
        part.queued = queued
        part.ahead = queued + 1
    if part.size <= SAFE_REQUEST_BYTES if not part.write else (
            backend.replays_writes and split.route.replayable and part.size <= REPLAY_BYTES):
        part.request = frame
    if part.size < LARGE:
        return backend.put(part, PyBytes_AS_STRING(frame), part.size)
    return put_uncopied(backend, part, frame, part.size)


cdef int put_uncopied(Backend backend, Pending item, object frame, Py_ssize_t size) except -1:
    """Bytes, or a bytearray that nobody changes any more: large ones are not copied."""
    cdef Lane lane = backend.lane
    cdef object donated = lane.donated
    cdef const char *ptr
    lane.donated = frame
    try:
        ptr = PyBytes_AS_STRING(<bytes>frame) if type(frame) is bytes else PyByteArray_AS_STRING(frame)
        backend.put(item, ptr, size)
    finally:
        lane.donated = donated
    return 0
