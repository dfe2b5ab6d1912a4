# The requests that are out to a shard: the right side of the lane.  Included by lane.pyx.

cdef bytes PING = b"*1\r\n$4\r\nPING\r\n"
cdef frozenset REFUSALS = frozenset({b"READONLY", b"MISCONF", b"LOADING", b"MASTERDOWN", b"NOREPLICAS"})


def refusal_code(bytes frame not None):
    """As `_refusal_code`, of a whole reply."""
    return _refusal_code(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))


cdef inline const char *_bytes_of(object whole):
    """Of bytes or a bytearray."""
    return PyBytes_AS_STRING(<bytes>whole) if type(whole) is bytes else PyByteArray_AS_STRING(whole)


cdef str _refusal_code(const char *p, Py_ssize_t n):
    """The code of a reply that says more of the server than of the request; None for any other."""
    cdef bytes code
    if p[0] == c'-' and p[1] in (c'R', c'M', c'L', c'N'):
        code = p[1:min(n, 16)].split(b" ", 1)[0]
        if code in REFUSALS:
            return code.decode()
    return None


cdef inline void _queue(Backend backend, Pending item) noexcept:
    item.sent_at = backend.lane.now
    if backend.tail is None:
        backend.head = item
    else:
        backend.tail.next_queued = item
    backend.tail = item
    if backend.aging is None:
        backend.aging = item
    backend.count += 1
    backend.unsent += 1
    if item.timeout_class == SHARD_WIDE:
        backend._count_shard_wide(1)


cdef inline void _pop(Backend backend, Pending item) noexcept:
    """Takes the head out of the request queue."""
    backend.head = item.next_queued
    if backend.head is None:
        backend.tail = None
    if backend.aging is item:
        backend.aging = backend.head
    item.next_queued = None
    backend.count -= 1
    if item.timeout_class == SHARD_WIDE:
        backend._count_shard_wide(-1)


@cython.final
cdef class Backend:
    """One shard for one protocol and database: the requests that are out, and the door to them."""

    def __init__(self, Lane lane not None, link, int shard, int proto, int db, bint bulk=False):
        self.lane = lane
        self.link = link
        self.shard = shard
        self.bit = <unsigned long long>1 << (shard & 63)
        self.proto = proto
        self.db = db
        self.is_bulk = bulk
        self.router = None
        self.door = Door.IDLE
        self.refusal = b""
        self.replay_queue = []
        self.chunks = []
        self.waiting = []

    def __dealloc__(self):
        PyMem_RawFree(self.outbuf)

    def __repr__(self):
        return (f"<Backend {self.link.name} resp{self.proto} db{self.db}{' bulk' if self.is_bulk else ''} "
                f"door={self.door} out={self.count}>")

    # --- the door ---

    cdef int _set_door(self, int door) except -1:
        self.door = door
        self._review()
        if self.waiting and door != Door.CONGESTED:
            self._unpark_waiting()     # whoever waited for the server to read asks what is true now
        return 0

    cdef void _review(self) noexcept:
        self.plain = (self.door == Door.OPEN and not self._guarded and not self.in_transfer
                      and (self.wire is None or not self.wire.writing_paused))

    def guard(self, router, bint guarded, bint replays_writes):
        """Whether the router of the shard must be asked before anything is begun here; whether writes may be
        replayed."""
        self.router = router
        self._guarded = guarded
        self.replays_writes = replays_writes
        self._set_door(self.door)

    cdef bint admit(self, Client client, Py_ssize_t size) except -1:
        """Whether a request may be put; if not, `lane.declined` says why.

        A large one waits at the door until there is a connection: how much the server takes is not known before.
        """
        if self.door == Door.OPEN and (self.wire is None or not self.wire.writing_paused):
            return True
        if self.door == Door.IDLE:
            self.link.connect(self)
        if self.door == Door.DOWN:
            self.lane.declined = self.refusal
            return False
        if not self.lane.has_room(size):
            self.lane.declined = errors.not_applied(self.link.name, self.link.node, errors.OVER_BUDGET)
            return False
        if self.door == Door.OPEN and self.unsent_bytes <= OUT_LIMIT:
            return True
        if self.door == Door.CONGESTED or self.unsent_bytes > OUT_LIMIT or size > SAFE_REQUEST_BYTES:
            return self._park(client)
        client.door_from = 0
        return True

    cdef bint _park(self, Client client) except -1:
        """Before its command, until the server reads on; not longer than a reply may take.  False, as for `admit`."""
        if not client.door_from or client.door_command != client.commands:
            client.door_from = self.lane.now
            client.door_command = client.commands
        elif self.lane.now - client.door_from >= self.lane.reply_s:
            client.door_from = 0
            self.lane.declined = errors.not_applied(self.link.name, self.link.node, errors.not_read(self.lane.reply_s))
            return False
        client.parked |= Park.DOOR
        self.waiting.append(client)
        self.lane.declined = NOT_NOW
        return False

    cdef int _expire_waiting(self, double now) except -1:
        """Whoever has waited at the door for as long as a reply may take offers its command again, and is refused."""
        cdef Client client
        cdef list waiting = self.waiting
        self.waiting = []
        for each in waiting:
            client = <Client>each
            if now - client.door_from < self.lane.reply_s and client.transport is not None:
                self.waiting.append(client)
            else:
                client.unpark(Park.DOOR)
        return 0

    def down(self, bytes refusal not None):
        """Down: what waits was not sent and is refused, unless it can wait on; what comes is refused at once."""
        self._set_door(Door.DOWN)
        self.refusal = refusal
        requeue_unsent(self)
        self.charge()
        self._unpark_waiting()

    def connecting(self):
        """Being connected: commands wait."""
        self._set_door(Door.CONNECTING)

    def reset(self):
        """No reason not to have a connection: the next command opens it."""
        if self.door == Door.DOWN:
            self.idle()

    def idle(self):
        """There is no connection, and none is being made."""
        self._set_door(Door.IDLE)
        self.refusal = b""
        self._unpark_waiting()

    def open(self, Wire wire not None):
        """The connection is set up: what waited is sent."""
        self.wire = wire
        self._set_door(Door.OPEN)
        self.unanswered = 0
        self.last_frame = self.free_at = self.lane.now
        self.acknowledged = 0
        self._resolve_uncertain()
        self._mark()

    @property
    def is_open(self):
        return self.door == Door.OPEN or self.door == Door.CONGESTED

    @property
    def is_down(self):
        return self.door == Door.DOWN

    @property
    def is_base(self):
        """The one that is kept connected even when nobody asks: its loss is noticed at once."""
        return self.proto == 2 and self.db == 0 and not self.is_bulk

    @property
    def slow_since(self):
        """Since when a request through all keys has been with the server (CLOCK_MONOTONIC, s); 0.0: none is."""
        cdef Pending item = self.head
        cdef Py_ssize_t i
        if self.shard_wide and self.wire is not None:
            for i in range(self.count - self.unsent):
                if item.timeout_class == SHARD_WIDE:
                    return item.sent_at
                item = item.next_queued
        return 0.0

    @property
    def is_acknowledged(self):
        """Whether the server's side has all that was sent, if only its kernel."""
        return self.wire is not None and not self.wire.lost and not self._unacknowledged_bytes(self.wire)

    @property
    def waiting_requests(self):
        """How many requests are out or wait to be sent, tombstones included."""
        return self.count - self.canaries

    cdef int _unpark_waiting(self) except -1:
        cdef list waiting = self.waiting
        if waiting:
            self.waiting = []
            for client in waiting:
                try:
                    (<Client>client).unpark(Park.DOOR)
                except Exception:
                    bug(self)
                    cut_off(<Client>client)
        return 0

    # --- requests ---

    cdef int put(self, Pending item, const char *frame, Py_ssize_t size) except -1:
        """Appends a request; it leaves with the turn's other requests.  If it fails, nothing has been put."""
        cdef Client client
        cdef Pending canary
        if not self.dirty:
            self._mark()
        if self.canary:
            canary = self._new_canary()
            self._append(PyBytes_AS_STRING(canary.request), PyBytes_GET_SIZE(canary.request))
            _queue(self, canary)
            self.canaries += 1
        self._append(frame, size)
        # nothing from here on can fail: the bytes and the counts change together
        if item.write:
            client = item.client
            if item.split is not None and item.split.place is not None:
                client = item.split.place.client
            if client is not None:
                client.written_shards |= self.bit
        _queue(self, item)
        return 0

    cdef void _count_shard_wide(self, int change) noexcept:
        self.shard_wide += change
        self.free_at = self.lane.now    # what is behind it is next

    cdef Pending _new_canary(self):
        """A tombstone that knows what it swallows.  Its request ends in the very bytes of its answer."""
        cdef Pending item = Pending.__new__(Pending)
        cdef bytes nonce = self.lane.nonce()
        item.expected = b"$%d\r\n%b\r\n" % (len(nonce), nonce)
        item.request = b"*2\r\n$4\r\nECHO\r\n" + item.expected
        return item

    cdef int _mark(self) except -1:
        if not self.dirty:
            if not self.lane.dirty_backends:
                self.lane.dirty_since = self.lane.now
            self.lane.dirty_backends.append(self)
            self.dirty = True
            self.lane.wake()
        return 0

    cdef int _append(self, const char *p, Py_ssize_t n) except -1:
        cdef Py_ssize_t room
        cdef char *grown
        cdef object donated = self.lane.donated
        if n >= LARGE:
            self._pack()
            if donated is not None and len(donated) == n and _bytes_of(donated) == p:
                self.chunks.append(donated)
            else:
                self.chunks.append(PyBytes_FromStringAndSize(p, n))
            self.unsent_bytes += n
            return 0
        if self.outbuf_len + n > self.outbuf_room:
            if self.outbuf_room >= WRITE_BYTES:
                self._pack()
            else:
                room = self.outbuf_room * 2 if self.outbuf_room else OUT_ROOM
                if room < self.outbuf_len + n:
                    room = self.outbuf_len + n
                grown = <char *>PyMem_RawRealloc(self.outbuf, room)
                if grown == NULL:
                    raise MemoryError
                self.outbuf = grown
                self.outbuf_room = room
        memcpy(self.outbuf + self.outbuf_len, p, n)
        self.outbuf_len += n
        self.unsent_bytes += n
        return 0

    cdef int _pack(self) except -1:
        if self.outbuf_len:
            self.chunks.append(PyBytes_FromStringAndSize(self.outbuf, self.outbuf_len))
            self.outbuf_len = 0
        return 0

    cpdef flush(self):
        """Gives what was put to the connection, if it is up and the server reads."""
        cdef Wire wire = self.wire
        self.dirty = False
        if self.wire is None or self.wire.writing_paused or self.wire.lost:
            if self.door == Door.OPEN and self.unsent_bytes > OUT_LIMIT:
                self._set_door(Door.CONGESTED)
            self.charge()
            return
        try:
            self._write_to(wire)
        except Exception:
            bug(self)
            wire.drop(errors.LOST)
            return
        if wire.writing_paused or self.charged:
            self.charge()
        if self.door == Door.CONGESTED:
            self._set_door(Door.OPEN)
        elif self.waiting:
            self._unpark_waiting()

    cdef int _write_to(self, Wire wire) except -1:
        """If it fails half way nobody knows what has left: all of it counts as sent, and the connection ends."""
        cdef list chunks = None
        cdef Py_ssize_t size
        if self.chunks:
            self._pack()
            chunks = self.chunks
            self.chunks = []
        size = self.outbuf_len
        self.outbuf_len = self.unsent_bytes = self.unsent = 0
        if chunks is None:
            if size:
                wire.put(self.outbuf, size, None)
            return 0
        for chunk in chunks:
            wire.put(_bytes_of(chunk), len(chunk), chunk)
        return 0

    cdef int charge(self) except -1:
        """What waits for the server counts in the worker's budget of memory."""
        cdef Wire wire = self.wire
        cdef Py_ssize_t size = self.unsent_bytes
        if wire is not None and wire.writing_paused:
            size += wire.transport.get_write_buffer_size()
        if size and (wire is None or wire.writing_paused):
            size += self.copies
        self.lane.buffered += size - self.charged
        self.lane.upstream_buffered += size - self.charged
        self.charged = size
        if self.lane.buffered > self.lane.memory_limit:
            self.lane.wake()
        return 0

    cdef Py_ssize_t _copied(self):
        """Bytes of the copies that serve a replay, and of the state of each request that waits."""
        cdef Pending item = self.head
        cdef Py_ssize_t size = 0
        while item is not None:
            size += PENDING_BYTES
            if item.request is not None:
                size += PyBytes_GET_SIZE(item.request)
            item = item.next_queued
        return size

    # --- what goes wrong ---

    cpdef expire(self, double now, bint busy):
        """Answers requests whose deadline has passed; drops a connection that is silent too long.

        `busy`: the server is at a request through all its keys that came from us, here or on another connection.
        A deadline is counted from when the server could turn to the request: not while it is busy with such a one, nor
        while bytes of a long reply come or those of a long request leave. Nor is what this process was late by.
        """
        cdef Pending item
        cdef Lane lane = self.lane
        cdef Wire wire = self.wire
        cdef double oldest = now - lane.reply_s, begun
        if self.waiting:
            self._expire_waiting(now)
        if self.charged or self.unsent_bytes:
            self.copies = self._copied() if wire is None or wire.writing_paused else 0
            self.charge()
        if self.unanswered and self.last_frame > self.unanswered_at:
            self.unanswered = 0
        if self.head is None:
            if self.idle_s and wire is not None and now - wire.last_bytes > self.idle_s:
                self.put(Pending.__new__(Pending), PING, len(PING))     # its answer is nobody's
            return
        begun = max(self.last_frame, self.head.sent_at)     # of what the server is at
        busy = busy and now - begun < lane.slow_reply_s - lane.reply_s
        if busy or lane.is_late or self._makes_progress(now):
            self.free_at = now
        item = self.aging
        if (((item is not None and max(item.sent_at, self.free_at) < oldest) or now - begun > lane.silence_s)
                and wire is not None and not wire.lost and _readable(wire.fd)):
            return      # this process is late, not the server
        while item is not None and max(item.sent_at, self.free_at) < oldest:
            if item.timeout_class == SLOW and max(item.sent_at, self.free_at) >= now - lane.slow_s:
                item = item.next_queued    # looked at again, those behind it are not waited for
                continue
            if self.aging is item:
                self.aging = item.next_queued
            following = item.next_queued
            try:
                self._expire_one(item, now)
            except Exception:
                self._cut_off_owner(item)
            item = <Pending>following
        if wire is not None and self.head is not None and not wire.lost:
            # of a server that is at a request through all its keys not even the answers before that need have left
            if now - begun > (max(10 * lane.silence_s, lane.slow_reply_s) if self.shard_wide else 10 * lane.silence_s):
                self.head.retried = True    # its reply has come for so long, and would again
                wire.drop(errors.no_reply(now - begun))
            elif (not busy and now - max(begun, self.free_at, wire.last_bytes) > lane.silence_s
                    and not (self.shard_wide and now - begun < lane.slow_reply_s)):
                wire.drop(errors.no_reply(now - begun))

    cdef int set_in_transfer(self, bint begins) except -1:
        """A large reply begins to come, or is whole, or will not come."""
        if self.in_transfer != begins:
            self.in_transfer = begins
            self._set_door(self.door)
        return 0

    cdef Py_ssize_t _unacknowledged_bytes(self, Wire wire) except -1:
        """Bytes of what was given to the connection that the server's side has not taken."""
        cdef Py_ssize_t unsent = _unacknowledged(wire.fd)
        if wire.write_buffered or wire.tls:
            unsent += wire.transport.get_write_buffer_size()
        return unsent

    cdef bint _makes_progress(self, double now) except -1:
        """Whether bytes of a reply that is not whole yet came lately, or some of the requests have left."""
        cdef Wire wire = self.wire
        cdef Py_ssize_t unsent
        cdef long long left
        cdef bint leaves
        if wire is None or wire.lost or wire.on_setup is not None:
            return False
        if wire.large is None and wire.inbuf is None and not wire.skipping:
            wire.progress_bytes = wire.bytes_in
            wire.progress_at = 0
        elif wire.bytes_in - wire.progress_bytes >= PROGRESS_BYTES:     # a byte now and then does not count
            wire.progress_bytes = wire.bytes_in
            wire.progress_at = now
        unsent = self._unacknowledged_bytes(wire)
        # what a server that stands still is sent its kernel takes too, but not for long if it is much
        left = wire.bytes_out - unsent
        if left - self.acknowledged >= PROGRESS_BYTES:
            self.acknowledged = left
            self.acknowledged_at = now
        leaves = unsent >= LARGE and now - self.acknowledged_at < self.lane.reply_s
        return leaves or now - wire.progress_at < self.lane.reply_s

    cdef int _expire_one(self, Pending item, double now) except -1:
        """Answers it with an error, or has another server asked; what is left in the queue swallows the reply."""
        cdef object owner
        if item.done or (item.client is None and item.split is None):
            return 0
        self.lane.timeouts += 1
        self.unanswered += 1
        self.unanswered_at = now
        if self.withheld is not None:
            stop_withholding(self, self._owner(item))
        if item.write:
            owner = self._owner(item)
            self._fail(item, errors.no_reply(self.lane.deadline_s(item.timeout_class)), False)
            if owner is not None:
                item.unresolved_for = <Client>owner
                count_unresolved(item.unresolved_for, self.shard, 1)
        elif not read_elsewhere(self, item):
            self._fail(item, errors.no_reply(self.lane.deadline_s(item.timeout_class)), False)
        return 0

    cdef int mark_uncertain(self, object owner) except -1:
        """A write of this client may have been applied, and its connection is gone: until there is one again, no other
        server answers its reads."""
        if owner is None or (<Client>owner).transport is None:
            return 0
        if self.uncertain_clients is None:
            self.uncertain_clients = set()
        if owner not in self.uncertain_clients:
            self.uncertain_clients.add(owner)
            count_unresolved(<Client>owner, self.shard, 1)
        return 0

    cdef int _resolve(self, Pending item) except -1:
        """Its reply came, late, or will never come: it is no unresolved write of its client on this connection."""
        if item.unresolved_for is not None:
            count_unresolved(item.unresolved_for, self.shard, -1)
            item.unresolved_for = None
        return 0

    cdef int _resolve_uncertain(self) except -1:
        """There is a connection to the primary again, which has all that reached it before."""
        cdef set uncertain_clients = self.uncertain_clients
        self.uncertain_clients = None
        if uncertain_clients is not None:
            for client in uncertain_clients:
                count_unresolved(<Client>client, self.shard, -1)
        return 0

    cdef int _fail(self, Pending item, str why, bint unsent) except -1:
        """Answers a request that will get no reply: a write may have been applied, unless it was surely not sent."""
        cdef bytes line
        if item.write and not unsent:
            self.lane.uncertain += 1
            line = errors.uncertain(self.link.name, self.link.node, why)
        else:
            line = errors.not_applied(self.link.name, self.link.node, why)
            unsent = True
        return self._refuse(item, line, unsent)

    cdef int _refuse(self, Pending item, bytes line, bint unsent) except -1:
        cdef Split split = item.split
        cdef Client client
        cdef Py_ssize_t typical
        item.request = None
        self.lane.errors += 1
        if split is not None:
            return split.fail(item, line, unsent)
        if item.queued:
            line = errors.transaction_discarded(line)
        client = item.client
        if client is None:
            return 0
        typical = client.typical_reply        # of the size of a server's answers our own words say nothing
        self.lane.settle(item, line)
        client.typical_reply = typical
        return 0

    def lost(self, str why):
        """The connection is gone: -> True where requests remain to be sent on a new one.

        Sent writes may have been applied.  Sent reads go out again once, unless the same client has a later write on
        the connection: the read would see the future.  Requests that were never given to the connection stay in the
        queue.
        """
        cdef Pending item = self.head
        cdef Py_ssize_t sent = self.count - self.unsent, i
        cdef dict last_write = {}
        cdef list items = [], uncertain_clients = []
        # of a leased one, that is forgotten with its connection: a shared one, which will be connected again
        cdef Backend home = self.link.backends.get((self.proto, self.db)) or self.link.backends.get((2, 0), self)
        for i in range(sent):
            items.append(item)
            if item.unresolved_for is not None:
                uncertain_clients.append(item.unresolved_for)
            if item.write:
                owner = self._owner(item)
                if owner is not None:
                    last_write[owner] = i
            item = item.next_queued
        for owner in uncertain_clients:
            home.mark_uncertain(owner)   # before what it owed here is forgiven
        uncertain_clients = []
        # nothing has changed until here
        self.wire = None
        self.in_transfer = False
        for i in range(sent):
            item = self.head
            _pop(self, item)
            if item.expected is not None:
                self.canaries -= 1
        if self.router is not None and self.link is self.lane.links[self.shard]:     # not a leased one, nor a replica's
            self.lane.mark_connection_lost(self.shard)
        # items still out get their verdict; those to be tried again are collected in their order
        retries = []
        for i, entry in enumerate(items):
            item = <Pending>entry
            self._resolve(item)
            if (item.client is None or item.done) and item.split is None:
                continue
            try:
                withheld = self.withheld.get(self._owner(item)) if self.withheld is not None else None
                if item.write:
                    if withheld is not None:
                        (<Withheld>withheld).applied = True     # perhaps
                    uncertain_clients.append(self._owner(item))
                    self._fail(item, why, False)
                elif withheld is not None:
                    (<Withheld>withheld).items.append((item, None))
                elif (item.retried or item.primary_only or item.request is None
                        or PyBytes_GET_SIZE(item.request) > SAFE_REQUEST_BYTES
                        or last_write.get(self._owner(item), -1) > i):
                    self._fail(item, why, True)
                else:
                    retries.append(item)
            except Exception:
                self._cut_off_owner(item)
        for owner in uncertain_clients:
            home.mark_uncertain(owner)
        if retries:
            try:
                self._put_first(retries)
            except Exception:
                for entry in retries:
                    self._cut_off_owner(<Pending>entry)
        self._set_door(Door.CONNECTING if self.count else Door.IDLE)
        if not self.count:
            self._unpark_waiting()
        if self.withheld is not None:
            for owner in list(self.withheld):
                decide_withheld(self, owner)
        self.charge()
        return self.count > 0

    cdef int _lost_by_fault(self, Wire wire, str why) except -1:
        """The link failed when it was told that its connection is gone: its requests get their verdict all the same."""
        if self.wire is wire:
            self.lost(why)
        if self not in self.link.backends.values():
            self.down(errors.not_applied(self.link.name, self.link.node, why))      # a leased one
        elif self.wire is None and self.door != Door.DOWN:
            self.idle()
            if self.count:
                self.link.connect(self)
        return 0

    cdef int _cut_off_owner(self, Pending item) except -1:
        """By a fault of ours, whose exception is being handled, a request gets no answer: its client is cut off."""
        cdef object owner = self._owner(item)
        bug(self)
        if owner is not None:
            cut_off(<Client>owner)
        return 0

    cdef object _owner(self, Pending item):
        if item.client is not None:
            return item.client
        if item.split is not None and item.split.place is not None:
            return item.split.place.client
        return None

    cdef int _put_first(self, list retries) except -1:
        cdef Pending item, rest = self.head, rest_tail = self.tail
        cdef Py_ssize_t rest_count = self.unsent
        cdef list items = retries, frames
        cdef Py_ssize_t canaries = 0
        if self.canary:
            canaries = len(retries)
            items = [each for entry in retries for each in (self._new_canary(), entry)]
        frames = [(<Pending>entry).request for entry in items]
        self._pack()
        self.chunks = frames + self.chunks
        # nothing from here on can fail
        self.head = self.tail = None
        for entry in items:
            item = <Pending>entry
            item.retried = True
            item.ahead = item.queued + 1 if item.queued else 0
            self.unsent_bytes += PyBytes_GET_SIZE(item.request)
            if item.timeout_class == SHARD_WIDE:
                self._count_shard_wide(1)
            if self.tail is None:
                self.head = item
            else:
                self.tail.next_queued = item
            self.tail = item
        self.tail.next_queued = rest
        if rest is not None:
            self.tail = rest_tail
        self.canaries += canaries
        self.count = self.unsent = rest_count + len(items)
        self.aging = self.head
        return 0

    # --- what may not be sent now; see replay.pxi ---

    @property
    def has_unanswered_write(self):
        """Whether a write was given to a connection and is not answered, whoever waits for it or has gone."""
        return has_unanswered_write(self)

    @property
    def has_writes(self):
        """Whether any write waits here, be it sent, unsent, withheld, or in the replay queue."""
        cdef Pending item = self.head
        if self.withheld is not None or self.replay_queue:
            return True
        while item is not None:
            if item.write:
                return True
            item = item.next_queued
        return False

    @property
    def oldest_sent_at(self):
        """When the oldest request that waits for its reply was put (CLOCK_MONOTONIC, s); 0.0: none waits."""
        return self.head.sent_at if self.head is not None else 0.0

    def requeue_unsent(self):
        """Nothing may be sent: unsent writes join the replay queue or are refused, unsent reads go elsewhere."""
        requeue_unsent(self)

    def replay(self):
        """The gate is open: sends the replay queue in its order, without the requests of clients that have left."""
        replay(self)

    def refuse_replays(self, double before, bytes line not None):
        """Refuses the queued writes of each client that has waited since `before` or longer; its reads are sent."""
        refuse_replays(self, before, line)

    def replay_reads(self):
        """A server can be read from again: sends the reads that wait for one."""
        replay_reads(self)
