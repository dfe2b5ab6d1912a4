# What was begun and may not be sent, or was sent and refused.  Included by lane.pyx.
#
# The gate is closed, or no connection can be made: writes that are in the queue and were never given to a connection
# leave it for `replay_queue`, and wait there for the gate, or for the end of their time.  A write that the server
# refused for a reason of its own is withheld from its client, and joins them, if every later write of its client on
# this connection was refused too; else all get the answers that came.


cdef bint has_unanswered_write(Backend backend) except -1:
    """Whether a write was given to a connection and is not answered, whoever waits for it or has gone."""
    cdef Pending item = backend.head
    cdef Py_ssize_t i
    for i in range(backend.count - backend.unsent):
        if item.write:
            return True
        item = item.next_queued
    return False


# --- the replay queue ---


cdef int requeue_unsent(Backend backend) except -1:
    """Nothing may be sent: unsent writes join the replay queue or are refused; unsent reads go to another server."""
    cdef Pending item
    cdef Client owner
    cdef bytes line
    cdef list reads = []
    cdef set requeued = set()
    cdef Py_ssize_t size
    if not backend.unsent:
        return 0
    for entry in dequeue_unsent(backend):
        item = <Pending>entry
        owner = backend._owner(item)
        backend._resolve(item)      # its deadline has passed, and it is not sent any more
        if owner is None or item.done:
            continue        # nobody waits for it any more
        if item.write:
            # one that is too large for a replay cannot be held either
            size = item.size if item.request is not None else <Py_ssize_t>1 << 62
            line = backend.refusal
            if backend.router is not None:
                line = backend.router.admit_replay(backend, owner, size, item.replay_since or item.sent_at, 1)
            if line is None:
                enqueue_replay(backend, item, owner)
                requeued.add(owner)
            else:
                backend._refuse(item, line, True)
        elif owner in requeued or (backend.withheld is not None and owner in backend.withheld):
            enqueue_replay(backend, item, owner)
        else:
            reads.append(item)
    if reads:
        send_elsewhere(backend, reads)
    return 0


cdef int send_elsewhere(Backend backend, list reads) except -1:
    """Reads that were not sent go to another server of the shard, or stay, or wait for one, or are refused.

    They wait at the primary's backend: that of a replica is forgotten with its connection.
    """
    cdef bint may_ask = backend.router is not None and backend.wire is None
    cdef object found = backend.router.other_reader(backend) if may_ask else None
    cdef Backend other = found if found is not None else backend, target
    cdef Client owner
    cdef Pending item
    for entry in reads:
        item = <Pending>entry
        owner = <Client>backend._owner(item)
        target = backend if item.primary_only or owner.is_unresolved(backend.shard) else other
        if target.door == Door.DOWN:
            since = item.replay_since or item.sent_at
            if (item.request is not None and backend.router is not None
                    and backend.router.admit_read_replay(owner, item.size, since)):
                enqueue_replay(backend.router.primary_backend(backend), item, owner)
            else:
                backend._refuse(item, target.refusal, True)
            continue
        use_upstream(owner, target)
        item.sent_at = backend.lane.now
        resend(target, item)
        if target.door == Door.IDLE:
            target.link.connect(target)
    return 0


cdef bint read_elsewhere(Backend backend, Pending item) except -1:
    """Asks the fallback, once, for a read that the silent primary is too late with -> whether it did.

    Not where its client has a later write on this connection, or the read would see the future; nor where an earlier
    one may still be applied, or it would see the past.  Nor where the primary may be busy rather than silent: what is
    asked twice would occupy both, so only a few cheap reads are.
    """
    cdef object owner = backend._owner(item)
    cdef Backend other
    cdef Pending tombstone, before = None, each = item.next_queued
    if (owner is None or item.done or item.retried or item.primary_only or item.request is None
            or backend.router is None or backend.router.link is not backend.link or backend.last_frame >= item.sent_at
            or (backend.wire is not None and backend.wire.last_bytes >= item.sent_at) or not is_cheap(backend, item)
            or (<Client>owner).is_unresolved(backend.shard)):
        return False
    while each is not None:
        if each.write and backend._owner(each) is owner:
            return False
        each = each.next_queued
    found = backend.router.fallback(backend)
    if found is None:
        return False
    other = found
    if other.count >= ELSEWHERE or other.unanswered:
        return False
    tombstone = Pending.__new__(Pending)    # at its position, for the reply that may still come
    tombstone.sent_at = item.sent_at
    tombstone.queued = item.queued
    tombstone.ahead = item.ahead
    tombstone.next_queued = item.next_queued
    if backend.head is item:
        backend.head = tombstone
    else:
        before = backend.head
        while before.next_queued is not item:
            before = before.next_queued
        before.next_queued = tombstone
    if backend.tail is item:
        backend.tail = tombstone
    item.next_queued = None
    item.retried = True
    item.sent_at = backend.lane.now
    resend(other, item)
    if other.door == Door.IDLE:
        other.link.connect(other)
    return True


cdef bint is_cheap(Backend backend, Pending item) except -1:
    """Whether a read names keys, has a small answer as far as is known, and costs its server little."""
    cdef Client owner = backend._owner(item)
    cdef Split split = item.split
    cdef Py_ssize_t n = 0
    cdef const char *ptr
    cdef Route route
    if (item.queued or owner.typical_reply >= CHEAP_REPLY or PyBytes_GET_SIZE(item.request) > LARGE
            or (split is not None and (split.on_answered is not None or not split.order))):
        return False
    ptr = header(header(PyBytes_AS_STRING(item.request), &n), &n)
    route = backend.lane.route_at(ptr, n)
    return route is not None and not item.timeout_class and (route.plain_key > 0 or route.merge != "")


cdef int replay_reads(Backend backend) except -1:
    """There is somebody to read from: reads that wait for that, and for no write of their client, are sent there."""
    cdef list queue = backend.replay_queue, reads = []
    cdef set writing = {backend._owner(<Pending>entry) for entry in queue if (<Pending>entry).write}
    backend.replay_queue = []
    for entry in queue:
        if backend._owner(<Pending>entry) in writing:
            backend.replay_queue.append(entry)
        elif backend._owner(<Pending>entry) is not None:
            reads.append(entry)
    return send_elsewhere(backend, reads) if reads else 0


cdef list dequeue_unsent(Backend backend):
    """Takes what was never given to a connection out of the queue -> in its order."""
    cdef list unsent = [], none = []
    cdef Py_ssize_t canaries = 0
    cdef Pending item = backend.head, last = None
    cdef Py_ssize_t sent = backend.count - backend.unsent, i
    cdef bint aging_stays = False
    for i in range(sent):
        if item is backend.aging:
            aging_stays = True
        last = item
        item = item.next_queued
    while item is not None:
        if item.expected is None:
            unsent.append(item)
        else:
            canaries += 1       # there will be another
        item = item.next_queued
    # nothing from here on can fail
    if last is None:
        backend.head = None
    else:
        last.next_queued = None
    backend.tail = last
    for entry in unsent:
        item = <Pending>entry
        item.next_queued = None
        if item.timeout_class == SHARD_WIDE:
            backend._count_shard_wide(-1)
    if not aging_stays:
        backend.aging = None
    backend.canaries -= canaries
    backend.count = sent
    backend.unsent = 0
    backend.outbuf_len = 0
    backend.chunks = none
    backend.unsent_bytes = 0
    backend._unpark_waiting()
    return unsent


cdef int resend(Backend backend, Pending item) except -1:
    """At the end of the queue, from the copy of the request; its deadline is as it was."""
    cdef double sent_at = item.sent_at
    if item.request is None or PyBytes_GET_SIZE(item.request) > SAFE_REQUEST_BYTES:   # another server may take less
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


cdef int enqueue_replay(Backend backend, Pending item, Client owner) except -1:
    """What its client sends behind it waits too: nothing may overtake it."""
    backend.replay_queue.append(item)
    item.replay_since = item.replay_since or item.sent_at   # its time does not begin anew when it is queued again
    owner.parked |= Park.SWITCH
    if item.write:
        backend.router.gate.hold_replay(item.size)
    return 0


cdef int dequeue_replay(Backend backend, Pending item) except -1:
    if item.write:
        backend.router.gate.release_replay(item.size)
    return 0


cdef int replay(Backend backend) except -1:
    """The gate is open: sends the replay queue in its order, without the requests of clients that have left."""
    cdef Pending item
    cdef list queue = backend.replay_queue
    cdef dict going = {}        # client -> the error for it, if it has left
    backend.replay_queue = []
    if not queue:
        return 0
    queue.sort(key=_by_age)      # withheld writes were sent before those that had not been sent
    for entry in queue:
        item = <Pending>entry
        dequeue_replay(backend, item)
        owner = backend._owner(item)
        if owner is None:
            backend.router.on_replay_ended(item.write, "dropped_client_gone")
            continue
        if owner not in going:
            going[owner] = backend.router.gone_refusal(owner)
        if going[owner] is not None:
            backend.router.on_replay_ended(item.write, "dropped_client_gone")
            backend._refuse(item, going[owner], True)
            (<Client>owner).finish()    # what it sent behind that is not done either
        elif backend.door == Door.DOWN:
            backend.router.on_replay_ended(item.write, "refused_held")
            backend._refuse(item, backend.refusal, True)
        else:
            backend.router.on_replay_ended(item.write, "drained")
            item.sent_at = backend.lane.now
            use_upstream(<Client>owner, backend)
            resend(backend, item)
    if backend.count and backend.door == Door.IDLE:
        backend.link.connect(backend)
    return 0


cdef int refuse_replays(Backend backend, double before, bytes line) except -1:
    """Refuses the queued writes of each client that has waited since `before` or longer; its reads are sent."""
    cdef Pending item
    cdef list queue = backend.replay_queue, reads = []
    cdef set due = set()
    if not queue:
        return 0
    for entry in queue:
        item = <Pending>entry
        if item.replay_since <= before:
            due.add(backend._owner(item))
    if not due:
        return 0
    backend.replay_queue = []
    for entry in queue:
        item = <Pending>entry
        owner = backend._owner(item)
        if owner not in due:
            backend.replay_queue.append(item)
            continue
        dequeue_replay(backend, item)
        if owner is None:
            backend.router.on_replay_ended(item.write, "dropped_client_gone")
        elif item.write:
            backend.router.gate.exhaust(owner.id)
            backend.router.on_replay_ended(True, "refused_held")
            backend._refuse(item, line, True)
        else:
            reads.append(item)
    if reads:
        send_elsewhere(backend, reads)
    return 0


cdef int drop_replays(Backend backend, Client client, bytes line) except -1:
    """A client has left, or (with a `line` for it) closed its half: its queued requests are never sent."""
    cdef Pending item
    cdef list queue = backend.replay_queue
    if line is None and backend.withheld is not None:
        backend.withheld.pop(client, None)
        if not backend.withheld:
            backend.withheld = None
    if not queue:
        return 0
    backend.replay_queue = []
    for entry in queue:
        item = <Pending>entry
        if backend._owner(item) is not client:
            backend.replay_queue.append(item)
            continue
        dequeue_replay(backend, item)
        backend.router.on_replay_ended(item.write, "dropped_client_gone")
        if line is not None:
            backend._refuse(item, line, True)
            client.finish()
    return 0


# --- withheld answers ---


cdef bint withhold(Backend backend, Pending item, const char *p, Py_ssize_t n) except -1:
    """The server refused a write, and says that it did not do it -> whether the answer may wait for what follows."""
    cdef Client owner = backend._owner(item)
    cdef str code = _refusal_code(p, n)
    cdef Withheld withheld
    cdef Pending later
    cdef Py_ssize_t i
    if (owner is None or item.request is None or backend.router is None or backend.router.link is not backend.link
            or not backend.router.gate.withholds(code)):
        return False
    withheld = Withheld.__new__(Withheld)
    withheld.items = [(item, PyBytes_FromStringAndSize(p, n))]
    later = backend.head
    for i in range(backend.count - backend.unsent):
        if not later.done and backend._owner(later) is owner:
            withheld.left += 1
        later = later.next_queued
    if backend.withheld is None:
        backend.withheld = {}
    backend.withheld[owner] = withheld
    owner.parked |= Park.SWITCH     # nothing more of it is begun meanwhile
    backend.router.on_refusal(code)     # closes the gate: unsent writes join the replay queue
    if withheld.left == 0:
        decide_withheld(backend, owner)
    return True


cdef bint withhold_later(Backend backend, Pending item, const char *p, Py_ssize_t n) except -1:
    """Whether this answer waits for the decision on a write before it."""
    cdef object owner = backend._owner(item)
    cdef Withheld withheld = backend.withheld.get(owner) if owner is not None and not item.done else None
    if withheld is None:
        return False
    if p[0] == c'-' and (n > 7 and (p[1:7] == b"MOVED " or p[1:5] == b"ASK ") or n > 8 and p[1:8] == b"NOAUTH "):
        stop_withholding(backend, owner)
        return False
    withheld.items.append((item, PyBytes_FromStringAndSize(p, n)))
    withheld.left -= 1
    if item.write and (item.queued or _refusal_code(p, n) is None or item.request is None):
        withheld.applied = True
    if withheld.left == 0:
        decide_withheld(backend, owner)
    return True


cdef int stop_withholding(Backend backend, owner) except -1:
    """The answers of what follows will not all come: the refused write gets its own."""
    cdef Withheld withheld = backend.withheld.get(owner) if owner is not None else None
    if withheld is not None:
        withheld.applied = True
        decide_withheld(backend, owner)
    return 0


cdef int decide_withheld(Backend backend, Client owner) except -1:
    """Takes all refused writes of a client back, with its reads behind them; or gives all the answers they got."""
    cdef Withheld withheld = backend.withheld.pop(owner)
    cdef Pending item
    cdef Py_ssize_t size = 0
    cdef int writes = 0
    cdef double since = 0
    cdef bytes line = None
    cdef Py_ssize_t before
    if not backend.withheld:
        backend.withheld = None
    if not withheld.applied:
        for entry, frame in withheld.items:
            item = <Pending>entry
            if item.write:
                writes += 1
                size += item.size
                since = since or item.replay_since or item.sent_at
        line = backend.router.admit_replay(backend, owner, size, since, writes)
        backend.router.gate.stats.withheld_writes += writes
    before = len(backend.replay_queue)
    for entry, frame in withheld.items:
        item = <Pending>entry
        if not withheld.applied and line is None:
            enqueue_replay(backend, item, owner)
        elif not withheld.applied and item.write:
            backend._refuse(item, line, True)
        elif frame is not None:
            backend.lane.settle(item, frame)
        else:
            backend._fail(item, errors.LOST, True)
    if not withheld.applied and line is None:
        # What is there already of this client was sent behind these, or not yet; by age alone they may be equal.
        backend.replay_queue = backend.replay_queue[before:] + backend.replay_queue[:before]
    if not backend.router.is_closed:    # meanwhile it has been opened
        replay(backend)
    return 0
