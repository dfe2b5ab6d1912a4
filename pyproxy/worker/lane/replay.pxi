# What was begun and may not be sent, or was sent and refused.  Included by lane.pyx.
#
# The gate is closed, or no connection can be made: writes that are in the queue and were never given to a connection
# leave it for `kept`, and wait there for the gate, or for the end of their time.  A write that the server refused for a
# reason of its own is taken back, and joins them, if every later write of its client on this connection was
# refused too; else all get the answers that came.


cdef bint owes_write(Backend backend) except -1:
    """Whether a write was given to a connection and is not answered, whoever waits for it or has gone."""
    cdef Pending item = backend.head
    cdef Py_ssize_t i
    for i in range(backend.count - backend.unflushed):
        if item.write:
            return True
        item = item.next_out
    return False


# --- kept ---


cdef int keep_unsent(Backend backend) except -1:
    """Nothing can or may be sent: writes are kept or refused, and reads sent elsewhere if they can be."""
    cdef Pending item
    cdef Client owner
    cdef bytes line
    cdef list reads = []
    cdef set keeping = set()
    cdef Py_ssize_t size
    if not backend.unflushed:
        return 0
    for held in take_unsent(backend):
        item = <Pending>held
        owner = backend._owner(item)
        backend._forgive(item)      # its deadline has passed, and it is not sent any more
        if owner is None or item.done:
            continue        # nobody waits for it any more
        if item.write:
            # one that is too large to be sent again cannot be held either
            size = item.size if item.request is not None else <Py_ssize_t>1 << 62
            line = backend.refusal
            if backend.router is not None:
                line = backend.router.keep(backend, owner, size, item.kept_since or item.sent_at, 1)
            if line is None:
                keep(backend, item, owner)
                keeping.add(owner)
            else:
                backend._refuse(item, line, True)
        elif owner in keeping or (backend.taking is not None and owner in backend.taking):
            keep(backend, item, owner)
        else:
            reads.append(item)
    if reads:
        send_elsewhere(backend, reads)
    return 0


cdef int send_elsewhere(Backend backend, list reads) except -1:
    """Reads that were not sent go to another server of the shard, or stay, or wait for one, or are refused.

    They wait at the primary's backend: that of a replica is forgotten with its connection.
    """
    cdef object found = backend.router.elsewhere(backend) if backend.router is not None and backend.wire is None else None
    cdef Backend other = found if found is not None else backend, target
    cdef Client owner
    cdef Pending item
    for held in reads:
        item = <Pending>held
        owner = <Client>backend._owner(item)
        target = backend if item.stays or owner.is_unresolved(backend.shard) else other
        if target.door == Door.SHUT:
            since = item.kept_since or item.sent_at
            if item.request is not None and backend.router is not None and backend.router.read_waits(owner, item.size, since):
                keep(backend.router.home(backend), item, owner)
            else:
                backend._refuse(item, target.refusal, True)
            continue
        owner.reads_at(target)
        item.sent_at = backend.lane.now
        put_again(target, item)
        if target.door == Door.IDLE:
            target.link.connect(target)
    return 0


cdef bint read_elsewhere(Backend backend, Pending item) except -1:
    """A read that the primary did not answer in time, nor anything since, is asked once of the refuge -> whether it is.

    Not where its client has a later write on this connection, or the read would see the future; nor where an earlier one
    may still be applied, or it would see the past.  Nor where the primary may be busy rather than silent: what is asked
    twice would keep both busy, so it is little, and cheap.
    """
    cdef object owner = backend._owner(item)
    cdef Backend other
    cdef Pending ghost, before = None, each = item.next_out
    if (owner is None or item.done or item.retried or item.stays or item.request is None or backend.router is None
            or backend.router.link is not backend.link or backend.last_frame >= item.sent_at
            or (backend.wire is not None and backend.wire.last_bytes >= item.sent_at) or not is_cheap(backend, item)
            or (<Client>owner).is_unresolved(backend.shard)):
        return False
    while each is not None:
        if each.write and backend._owner(each) is owner:
            return False
        each = each.next_out
    found = backend.router.refuge(backend)
    if found is None:
        return False
    other = found
    if other.count >= ELSEWHERE or other.unanswered:
        return False
    ghost = Pending.__new__(Pending)    # in its turn, for the reply that may still come
    ghost.sent_at = item.sent_at
    ghost.queued = item.queued
    ghost.ahead = item.ahead
    ghost.next_out = item.next_out
    if backend.head is item:
        backend.head = ghost
    else:
        before = backend.head
        while before.next_out is not item:
            before = before.next_out
        before.next_out = ghost
    if backend.tail is item:
        backend.tail = ghost
    item.next_out = None
    item.retried = True
    item.sent_at = backend.lane.now
    put_again(other, item)
    if other.door == Door.IDLE:
        other.link.connect(other)
    return True


cdef bint is_cheap(Backend backend, Pending item) except -1:
    """Whether a read names keys, is answered by little as far as is known, and does not keep a server at work."""
    cdef Client owner = backend._owner(item)
    cdef Split whole = item.whole
    cdef Py_ssize_t n = 0
    cdef const char *at
    cdef Route route
    if (item.queued or owner.typical >= CHEAP_REPLY or PyBytes_GET_SIZE(item.request) > LARGE
            or (whole is not None and (whole.asked is not None or not whole.order))):
        return False
    at = header(header(PyBytes_AS_STRING(item.request), &n), &n)
    route = backend.lane.route_at(at, n)
    return route is not None and not item.pace and (route.plain_key > 0 or route.merge != "")


cdef int try_kept_reads(Backend backend) except -1:
    """There is somebody to read from: the reads that wait for that, and for no write of their client, are sent there."""
    cdef list kept = backend.kept, reads = []
    cdef set writing = {backend._owner(<Pending>held) for held in kept if (<Pending>held).write}
    backend.kept = []
    for held in kept:
        if backend._owner(<Pending>held) in writing:
            backend.kept.append(held)
        elif backend._owner(<Pending>held) is not None:
            reads.append(held)
    return send_elsewhere(backend, reads) if reads else 0


cdef list take_unsent(Backend backend):
    """Takes what was never given to a connection out of the queue -> in its order."""
    cdef list taken = [], none = []
    cdef Py_ssize_t canaries = 0
    cdef Pending item = backend.head, last = None
    cdef Py_ssize_t sent = backend.count - backend.unflushed, i
    cdef bint aging_stays = False
    for i in range(sent):
        if item is backend.aging:
            aging_stays = True
        last = item
        item = item.next_out
    while item is not None:
        if item.expected is None:
            taken.append(item)
        else:
            canaries += 1       # there will be another
        item = item.next_out
    # nothing from here on can fail
    if last is None:
        backend.head = None
    else:
        last.next_out = None
    backend.tail = last
    for held in taken:
        item = <Pending>held
        item.next_out = None
        if item.pace == SHARD_WIDE:
            backend._count_shard_wide(-1)
    if not aging_stays:
        backend.aging = None
    backend.canaries -= canaries
    backend.count = sent
    backend.unflushed = 0
    backend.out_len = 0
    backend.chunks = none
    backend.out_bytes = 0
    backend._release()
    return taken


cdef int put_again(Backend backend, Pending item) except -1:
    """At the end of the queue, from the request that was kept; its deadline is as it was."""
    cdef double sent_at = item.sent_at
    if PyBytes_GET_SIZE(item.request) > SURE_BYTES:     # another server may not take so much
        backend._fail(item, errors.LOST, True)
        return 0
    item.ahead = item.queued + 1 if item.queued else 0
    try:
        backend.put(item, PyBytes_AS_STRING(item.request), PyBytes_GET_SIZE(item.request))
        item.sent_at = sent_at
    except Exception:
        bug(backend)
        backend._fail(item, errors.FAULT, True)
    return 0


cdef int keep(Backend backend, Pending item, Client owner) except -1:
    """What its client sends behind it waits too: nothing may overtake it."""
    backend.kept.append(item)
    item.kept_since = item.kept_since or item.sent_at   # its time does not begin anew when it is kept again
    owner.parked |= Park.SWITCH
    if item.write:
        backend.router.gate.keep(item.size)
    return 0


cdef int unkeep(Backend backend, Pending item) except -1:
    if item.write:
        backend.router.gate.unkeep(item.size)
    return 0


cdef int release(Backend backend) except -1:
    """The gate is open: what was kept is sent in its order, but nothing of a client that has gone."""
    cdef Pending item
    cdef list kept = backend.kept
    cdef dict going = {}        # client -> what is said to it, if it is gone
    backend.kept = []
    if not kept:
        return 0
    kept.sort(key=_by_age)      # what was taken back was sent before what had not been sent
    for held in kept:
        item = <Pending>held
        unkeep(backend, item)
        owner = backend._owner(item)
        if owner is None:
            backend.router.ended(item.write, "dropped_client_gone")
            continue
        if owner not in going:
            going[owner] = backend.router.has_gone(owner)
        if going[owner] is not None:
            backend.router.ended(item.write, "dropped_client_gone")
            backend._refuse(item, going[owner], True)
            (<Client>owner).finish()    # what it sent behind that is not done either
        elif backend.door == Door.SHUT:
            backend.router.ended(item.write, "refused_held")
            backend._refuse(item, backend.refusal, True)
        else:
            backend.router.ended(item.write, "drained")
            item.sent_at = backend.lane.now
            (<Client>owner).reads_at(backend)
            put_again(backend, item)
    if backend.count and backend.door == Door.IDLE:
        backend.link.connect(backend)
    return 0


cdef int refuse_kept(Backend backend, double before, bytes line) except -1:
    """Refuses the writes of clients of whom something has been kept since before then; their reads go on."""
    cdef Pending item
    cdef list kept = backend.kept, reads = []
    cdef set due = set()
    if not kept:
        return 0
    for held in kept:
        item = <Pending>held
        if item.kept_since <= before:
            due.add(backend._owner(item))
    if not due:
        return 0
    backend.kept = []
    for held in kept:
        item = <Pending>held
        owner = backend._owner(item)
        if owner not in due:
            backend.kept.append(item)
            continue
        unkeep(backend, item)
        if owner is None:
            backend.router.ended(item.write, "dropped_client_gone")
        elif item.write:
            backend.router.gate.give_up(owner.id)
            backend.router.ended(True, "refused_held")
            backend._refuse(item, line, True)
        else:
            reads.append(item)
    if reads:
        send_elsewhere(backend, reads)
    return 0


cdef int forget(Backend backend, Client client, bytes line) except -1:
    """A client has gone, or (with a line to say) closed its half: what is kept of it is never sent."""
    cdef Pending item
    cdef list kept = backend.kept
    if line is None and backend.taking is not None:
        backend.taking.pop(client, None)
        if not backend.taking:
            backend.taking = None
    if not kept:
        return 0
    backend.kept = []
    for held in kept:
        item = <Pending>held
        if backend._owner(item) is not client:
            backend.kept.append(item)
            continue
        unkeep(backend, item)
        backend.router.ended(item.write, "dropped_client_gone")
        if line is not None:
            backend._refuse(item, line, True)
            client.finish()
    return 0


# --- taken back ---


cdef bint take_back(Backend backend, Pending item, const char *p, Py_ssize_t n) except -1:
    """The server refused a write, and says that it did not do it -> whether the answer may wait for what follows."""
    cdef Client owner = backend._owner(item)
    cdef str code = _refusal_code(p, n)
    cdef Taking taking
    cdef Pending later
    cdef Py_ssize_t i
    if (owner is None or item.request is None or backend.router is None or backend.router.link is not backend.link
            or not backend.router.gate.takes_back(code)):
        return False
    taking = Taking.__new__(Taking)
    taking.items = [(item, PyBytes_FromStringAndSize(p, n))]
    later = backend.head
    for i in range(backend.count - backend.unflushed):
        if not later.done and backend._owner(later) is owner:
            taking.left += 1
        later = later.next_out
    if backend.taking is None:
        backend.taking = {}
    backend.taking[owner] = taking
    owner.parked |= Park.SWITCH     # nothing more of it is begun meanwhile
    backend.router.refused(code)     # closes the gate: what was not sent is kept
    if taking.left == 0:
        decide(backend, owner)
    return True


cdef bint belongs_to_taking(Backend backend, Pending item, const char *p, Py_ssize_t n) except -1:
    """Whether this answer waits for the decision on a write before it."""
    cdef object owner = backend._owner(item)
    cdef Taking taking = backend.taking.get(owner) if owner is not None and not item.done else None
    if taking is None:
        return False
    if p[0] == c'-' and (n > 7 and (p[1:7] == b"MOVED " or p[1:5] == b"ASK ") or n > 8 and p[1:8] == b"NOAUTH "):
        give_up(backend, owner)
        return False
    taking.items.append((item, PyBytes_FromStringAndSize(p, n)))
    taking.left -= 1
    if item.write and (item.queued or _refusal_code(p, n) is None or item.request is None):
        taking.applied = True
    if taking.left == 0:
        decide(backend, owner)
    return True


cdef int give_up(Backend backend, owner) except -1:
    """The answers of what follows will not all come: the refused write gets its own."""
    cdef Taking taking = backend.taking.get(owner) if owner is not None else None
    if taking is not None:
        taking.applied = True
        decide(backend, owner)
    return 0


cdef int decide(Backend backend, Client owner) except -1:
    """Takes all refused writes of a client back, with its reads behind them; or gives all the answers they got."""
    cdef Taking taking = backend.taking.pop(owner)
    cdef Pending item
    cdef Py_ssize_t size = 0
    cdef int writes = 0
    cdef double since = 0
    cdef bytes line = None
    if not backend.taking:
        backend.taking = None
    if not taking.applied:
        for held, frame in taking.items:
            item = <Pending>held
            if item.write:
                writes += 1
                size += item.size
                since = since or item.kept_since or item.sent_at
        line = backend.router.keep(backend, owner, size, since, writes)
        backend.router.gate.holds.taken_back += writes
    for held, frame in taking.items:
        item = <Pending>held
        if not taking.applied and line is None:
            keep(backend, item, owner)
        elif not taking.applied and item.write:
            backend._refuse(item, line, True)
        elif frame is not None:
            backend.lane.settle(item, frame)
        else:
            backend._fail(item, errors.LOST, True)
    if not backend.router.closed:    # meanwhile it has been opened
        release(backend)
    return 0
