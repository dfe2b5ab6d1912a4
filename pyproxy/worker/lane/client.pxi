# One client's connection: the left side of the lane.  Included by lane.pyx.


cdef inline bint _fills(Client client, long long out) noexcept:
    """Whether so many requests are as many as may be out: one, or as many as will not bring more than REPLIES_BYTES of
    answers, or, where half of the memory is used, a small part of that."""
    cdef Py_ssize_t most = REPLIES_BYTES if client.lane.buffered <= client.lane.memory_limit >> 1 else LARGE
    return out > 0 and (out >= client.lane.window_limit or (out + 1) * (client.typical_reply + 1) > most)


cdef inline bint _is_full(Client client) noexcept:
    """Whether it has so much out, or so many answers here, that nothing more of it is begun."""
    return (_fills(client, client.inflight) or client.buffered_out > REPLIES_BYTES
            or client.inflight_bytes > REQUESTS_BYTES)


cdef inline void _append_place(Client client, Pending item) noexcept:
    if client.reply_mode:
        item.mute = True
        if client.reply_mode == 2:
            client.reply_mode = 0
    if client.tail is None:
        client.head = item
    else:
        client.tail.next_placed = item
    client.tail = item


@cython.final
cdef class Client:
    """One client's connection: its bytes, its order of replies, its bounds.  An asyncio.Protocol."""

    def __init__(self, Lane lane not None):
        self.lane = lane
        self.proto = 2
        self.db = 0
        self.ready = []
        self.typical_reply = lane.first_typical_reply
        self.name = self.lib_name = self.lib_ver = b""

    # --- the transport's calls ---

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        peer = transport.get_extra_info("peername") or ("", 0)
        context = transport.get_extra_info("sockname") or ("", 0)
        self.addr = f"{peer[0]}:{peer[1]}"
        self.laddr = f"{context[0]}:{context[1]}"
        self.fd = transport.get_extra_info("socket").fileno()
        self.lane.now = _clock()
        self.created = self.last_active = self.lane.now
        self.id = self.lane.next_client_id
        self.lane.next_client_id += self.lane.id_step
        self.pool = self.lane.pool(2, 0)
        self.lane.clients.add(self)
        self.lane.count_accepted(-1)
        if self.lane.draining:
            self.parked |= Park.DRAIN
            self.touch()

    def data_received(self, bytes data not None):
        cdef Lane lane = self.lane
        cdef Py_ssize_t used
        lane.now = self.last_active = _clock()
        lane.received = True
        lane.bytes_in += PyBytes_GET_SIZE(data)
        if self.finishing:
            return
        if lane.now - lane.ticked > SLEPT_S:
            lane.wake_up()
        try:
            if self.inbuf is not None:
                self.inbuf += data
                if not self.parked:
                    self._from_buffer()
            elif self.parked:
                self.inbuf = bytearray(data)
            else:
                used = self._consume(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
                if used < PyBytes_GET_SIZE(data) and not self.finishing:
                    self.inbuf = bytearray(data[used:])
        except Exception:
            self._on_fault()
        if self.inbuf is not None or self.buffered_in:
            self._count_input()

    def eof_received(self):
        self.eof = True
        if self.parked & Park.HOLD:
            self.router.on_half_closed(self)
        elif self.parked & Park.SWITCH:
            for backend in self.pool:
                drop_replays(<Backend>backend, self, errors.client_gone(backend.link.name, backend.link.node))
        if self.conversation is not None:
            self.conversation.half_closed()
        self.touch()
        return True

    def pause_writing(self):
        self.writing_paused = True
        self.in_transport = self.transport.get_write_buffer_size()
        self.buffered_out += self.in_transport
        self.lane.buffered += self.in_transport
        self.unwritten_since = 0
        self._count_input()     # it may be blocked in writing: then it reads only once it has written

    def resume_writing(self):
        self.writing_paused = False
        self.buffered_out -= self.in_transport
        self.lane.buffered -= self.in_transport
        self.in_transport = 0
        self.touch()

    def connection_lost(self, exc):
        """Gone: what is out for it becomes tombstones, what was not begun is dropped."""
        cdef Pending item = self.head, following
        cdef Lane lane = self.lane
        self.transport = None
        self.write = None
        self.finishing = True
        for tell in (
                self._leave_gate, self._leave_replay, self._leave_conversation, self.end_watch, self._leave_channels):
            try:
                tell()
            except Exception:
                bug(self)
        self.head = self.tail = None
        while item is not None:
            following = item.next_placed
            item.next_placed = None
            item.client = None
            item = following
        self.end_command()
        lane.buffered -= self.buffered_out + self.buffered_in + self.queued_bytes + self.subscribed_bytes
        self.buffered_out = self.in_transport = self.buffered_in = self.queued_bytes = self.subscribed_bytes = 0
        self.transaction = None
        lane.inflight -= self.inflight
        self.inflight = 0
        self.inflight_bytes = 0
        self.inbuf = None
        self.ready = []
        lane.clients.discard(self)
        lane.count_accepted(0)

    def _leave_gate(self):
        if self.parked & Park.HOLD:
            self.router.on_client_left(self)

    def _leave_replay(self):
        if self.parked & Park.SWITCH:
            for backend in self.pool:
                drop_replays(<Backend>backend, self, None)

    def _leave_conversation(self):
        conversation = self.conversation
        self.conversation = None
        if conversation is not None:
            conversation.left()

    def _leave_channels(self):
        if self._subscriber is not None:
            self._subscriber.on_left()

    # --- bytes to commands ---

    cdef int _from_buffer(self) except -1:
        cdef bytearray inbuf = self.inbuf
        cdef Py_ssize_t used
        # set aside: nothing may resize the buffer while pointers into it are in use
        self.inbuf = None
        cdef bint donated = False
        # a large request that came alone leaves in the buffer it was received in; one of very many keys takes it
        self.lane.donated = inbuf
        try:
            used = self._consume(PyByteArray_AS_STRING(inbuf), len(inbuf))
        finally:
            donated = self.lane.donated is None
            self.lane.donated = None
        if self.finishing or used == len(inbuf):
            return 0
        if donated:
            inbuf = inbuf[used:]
        elif used:
            del inbuf[:used]
        self.inbuf = inbuf
        return 0

    cdef Py_ssize_t _consume(self, const char *p, Py_ssize_t n) except -1:
        """Dispatches the commands in p, which the caller keeps alive, -> how many bytes of it are done with."""
        cdef Lane lane = self.lane
        cdef Py_ssize_t pos = 0, length = 0
        cdef int left = TURN_COMMANDS, cost
        cdef Found found
        cdef Fault fault
        while pos < n and not self.parked and not self.finishing:
            if left <= 0:
                self._next_turn()
                break
            if self.offered:
                length = self.offered       # it was looked through before
                self.offered = 0
                found = FRAME
            else:
                found = scan_request(p + pos, n - pos, &self.scan, &lane.limits, &length, &fault)
            if found == NEED_MORE:
                # the age of the unfinished request, not of its last byte
                if pos or not self.unfinished_since:
                    self.unfinished_since = lane.now
                return pos
            if found == BAD:
                lane.protocol_errors += 1
                self.put_answer(errors.protocol(fault_text(&fault)))
                self.finish()
                return pos
            cost = 1
            if found == FRAME:
                cost = self._command(p + pos, length, True)
            elif found == INLINE:
                cost = self._inline(p[pos:pos + length])
                if cost:
                    cost += <int>length // TURN_LINE
            if not cost:
                if found == FRAME:
                    self.offered = length       # not looked through once more
                break           # not now: offered again later, from its first byte
            pos += length
            left -= cost
        self.unfinished_since = 0
        return pos

    cdef int _inline(self, bytes line) except -1:
        cdef list argv = request.split_inline(line.rstrip(b"\n").removesuffix(b"\r"))
        cdef bytes frame
        if argv is None:
            self.lane.protocol_errors += 1
            self.put_answer(errors.unbalanced_quotes())
            self.finish()
            return True
        if not argv:
            return True
        frame = request.encode(argv)
        return self._command(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), False)

    cdef int _command(self, const char *frame, Py_ssize_t size, bint is_framed) except -1:
        """Begins one command, whose canonical bytes are at frame -> what it costs of the turn.

        0: not now, the client was parked.
        """
        cdef Lane lane = self.lane
        cdef Py_ssize_t argc = 0, length = 0
        cdef const char *ptr = header(header(frame, &argc), &length)
        cdef Route route = lane.route_at(ptr, length)
        cdef Backend backend
        cdef int i, cost = 1
        cdef double began
        cdef Pending item
        cdef object reply
        if route is not None:
            self.last_name = route.name
        if (route is not None and route.plain_key and self.transaction is None and not self.limited
                and (argc == route.arity or (route.arity < 0 and argc >= -route.arity))):
            for i in range(route.plain_key):
                ptr = header(ptr + length + 2, &length)
            backend = <Backend>self.pool[lane.owner[lane.slot(ptr, length)]]
            if (not backend.plain or self.upstreams is not None
                    or size >= BULK_BYTES or self.typical_reply >= BULK_BYTES):
                backend = choose_backend(self, backend, route.write, size)
                if backend is None:
                    if lane.declined is NOT_NOW:
                        return False
                    self._counted()
                    self.put_answer(<bytes?>lane.declined)
                    return True
            item = self.new_pending(size)
            item.write = route.write
            item.timeout_class = route.timeout_class
            item.shard = backend.shard
            if not route.write or (backend.replays_writes and route.replayable and size <= REPLAY_BYTES):
                item.request = PyBytes_FromStringAndSize(frame, size)
            backend.put(item, frame, size)
            self.enqueue(item)
        elif (route is not None and route.merge and self.transaction is None and not self.limited
                and argc >= -route.arity):
            if not lane.splitter(self, route, frame, size):
                return False
            cost += <int>argc // TURN_KEYS
        elif route is not None and 0 < route.max_args < argc:
            if self.transaction is not None:
                self.transaction.refused = True
            self.put_answer(errors.too_many_arguments(route.name, route.max_args))
        elif (is_framed and self.words is None and route is not None and route.names_keys
                and (argc > MANY_WORDS or size >= BULK_BYTES)):
            return lane.preparer(self, route, frame, size)
        else:
            began = _clock()
            reply = lane.dispatch(self, route, self.words if self.words is not None else arguments(frame))
            if reply is NOT_NOW:
                return False
            self.words = None
            if self.conversation is None:
                self.end_command()
            elif not self.command_bytes and size >= LARGE:      # less costs no more to keep
                self.charge_command(size + argc * WORD_BYTES)
            if reply is not PLACED:
                self.put_answer(<bytes?>reply)
            cost = DISPATCH_COST + <int>((_clock() - began) * TURN_COMMANDS / TURN_S)
        self._counted()
        if _is_full(self):
            self.parked |= Park.WINDOW
            self.touch()
        return cost

    cdef void _counted(self):
        self.lane.commands += 1
        self.commands += 1

    cdef Pending new_pending(self, Py_ssize_t size):
        """For a request of so many bytes; it has no place until all is done that can fail (`enqueue`)."""
        cdef Pending item = Pending.__new__(Pending)
        item.client = self
        item.size = size
        return item

    cdef void enqueue(self, Pending item) noexcept:
        """A request that is out takes the next place in the order of replies."""
        _append_place(self, item)
        self.inflight += 1
        self.inflight_bytes += item.size
        self.lane.inflight += 1

    cdef int put_answer(self, bytes reply) except -1:
        """Puts the proxy's own reply into the client's order; b"" says nothing."""
        cdef Pending item
        cdef Py_ssize_t size = PyBytes_GET_SIZE(reply)
        if size == 0:
            return 0
        if reply[0] == c'-':
            self.lane.errors += 1
        if self.reply_mode:
            if self.reply_mode == 2:
                self.reply_mode = 0
            return 0
        if self.head is None:
            self.touch()
            self.ready.append(reply)
        else:
            item = self.new_pending(0)
            item.reply = reply
            item.done = True
            _append_place(self, item)
        self.buffered_out += size
        self.lane.buffered += size
        return 0

    # --- what Python may ask of a client ---

    def send(self, int shard, asked not None, bint write, bint again):
        """Sends a Request or a Block to a shard and takes its place in the order of replies.  `again`: see Route.

        Of a Block only EXEC's answer is the client's.
        -> PLACED; NOT_NOW where the client was parked; the refusal to answer where the shard is down.
        """
        cdef bytes frame = asked.frame
        cdef int queued = asked.queued
        cdef object donated = self.lane.donated
        cdef Backend backend = choose_backend(self, <Backend>self.pool[shard], write, PyBytes_GET_SIZE(frame))
        cdef Pending item
        if backend is None:
            return self.lane.declined
        item = self.new_pending(PyBytes_GET_SIZE(frame))
        item.write = write
        item.shard = shard
        if item.size <= SAFE_REQUEST_BYTES if not write else (
                backend.replays_writes and again and item.size <= REPLAY_BYTES):
            item.request = frame
        item.timeout_class = self.lane.timeout_class_of(frame, queued)
        if queued:
            item.queued = queued
            item.ahead = queued + 1
        self.lane.donated = frame       # a large one is not copied
        try:
            backend.put(item, PyBytes_AS_STRING(frame), item.size)
        finally:
            self.lane.donated = donated
        self.enqueue(item)
        return PLACED

    def converse(self, conversation):
        """Takes a place for a conversation: nothing more of this client is begun until it is over.

        `conversation` is told `go_on()` where it was asked to wait and may ask again, `half_closed()`, `left()`, and
        `drain()`.

        -> PLACED; NOT_NOW while earlier requests are out: offer the command again.
        """
        cdef Pending item
        if self.head is not None:
            self.parked |= Park.SWITCH
            self.touch()
            return NOT_NOW
        item = self.new_pending(0)
        item.shard = -2
        self.enqueue(item)
        self.conversation = conversation
        self.parked |= Park.CONVERSATION
        return PLACED

    def answer(self, bytes reply not None):
        """The end of a conversation; b"" says nothing."""
        if self.conversation is None:
            return
        if reply.startswith(b"-"):
            self.lane.errors += 1
        self.lane.settle(self.head, reply)
        self.conversation = None
        self.end_command()
        self.unpark(Park.CONVERSATION)

    def later(self):
        """Others have their turn first; then the command that is being offered is offered again."""
        self._next_turn()

    cdef int conversation_sent(self) except -1:
        """What took a conversation to begin is out by now, in the place that it has, and is answered as any request."""
        self.conversation = None
        self.end_command()
        if _is_full(self):
            self.parked |= Park.WINDOW
            self.touch()
        self.unpark(Park.CONVERSATION)
        return 0

    def settled(self):
        """Whether all that it asked before is answered; else it is parked, and offers its command again."""
        if self.head is not None:
            self.parked |= Park.SWITCH
            self.touch()
        return self.head is None

    def push(self, bytes frame not None):
        """Gives it what it did not ask for, ahead of answers that are still to come -> bytes it has not accepted."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame)
        if self.finishing or self.transport is None:
            return 0
        self.touch()
        self.ready.append(frame)
        self.buffered_out += size
        self.lane.buffered += size
        return self.buffered_out

    @property
    def subscriber(self):
        return self._subscriber

    @subscriber.setter
    def subscriber(self, value):
        self._subscriber = value
        self.limited = value is not None and self.proto == 2

    def charge(self, Py_ssize_t size):
        """Its subscriptions cost so many bytes more."""
        self.subscribed_bytes += size
        self.lane.buffered += size
        if self.lane.buffered > self.lane.memory_limit:
            self.lane.wake()

    def charge_command(self, Py_ssize_t size):
        """Its command that is looked through, or done by a conversation, costs so much more, until `end_command`."""
        if self.transport is None:
            return      # it has gone, and took along what was counted
        self.command_bytes += size
        self.lane.buffered += size
        if self.lane.buffered > self.lane.memory_limit:
            self.lane.wake()

    cdef int end_command(self) except -1:
        """It has been taken, or is dropped: nothing is kept of it any more."""
        self.lane.buffered -= self.command_bytes
        self.command_bytes = 0
        self.preparation = self.words = None
        return 0

    def may_write(self, int shard, Py_ssize_t size):
        """Whether a write to this shard may be sent on a connection of its own.

        -> None: it may; NOT_NOW: the client was parked; else the line to refuse it with. ValueError where no
        conversation is going on: whoever is gone would be held for ever.
        """
        cdef Backend backend = <Backend>self.pool[shard]
        if self.conversation is None:
            raise ValueError("expected a conversation that goes on, got one that is over")
        cdef object decision = backend.router.admit_write(self, size) if backend._guarded else None
        if decision is None:
            self.hold_from = 0      # the same command may meet a closed gate again, minutes later
        return decision

    def queued(self, Py_ssize_t size):
        """So many bytes more wait for EXEC."""
        self.queued_bytes += size
        self.lane.buffered += size
        if self.lane.buffered > self.lane.memory_limit:
            self.lane.wake()

    def end_transaction(self):
        self.lane.buffered -= self.queued_bytes
        self.queued_bytes = 0
        self.transaction = None

    def end_watch(self):
        """Nothing is watched any more."""
        if self.watched is not None:
            self.watched.end()
            self.watched = None

    def switch(self, int proto, int db):
        """From the next command on: another protocol or database, once all earlier requests are answered."""
        if proto == self.proto and db == self.db:
            return
        self.pool = self.lane.pool(proto, db)
        self.proto = proto
        self.db = db
        self.limited = self._subscriber is not None and proto == 2
        if self.head is not None:
            self.parked |= Park.SWITCH

    cpdef finish(self):
        """Begin nothing more; close when everything is answered and written."""
        self.finishing = True
        self.inbuf = None
        self.unfinished_since = 0
        if self.conversation is None:
            self.end_command()
        self.touch()

    def abandon(self):
        """Close now, without answering: for clients that break the rules or the budget."""
        transport = self.transport
        if transport is None:
            return
        self.connection_lost(None)      # that is told once; what the transport says later finds nobody
        try:
            for _ in range(64):   # unread bytes would make the kernel send RST instead of FIN
                if not os.read(self.fd, 65536):
                    break
        except OSError:
            pass
        transport.abort()

    @property
    def buffered(self):
        """Bytes it costs: answers it has not read, requests that are not finished or wait for EXEC, subscriptions, and
        the command that is looked through or done by a conversation."""
        return self.buffered_out + self.buffered_in + self.queued_bytes + self.subscribed_bytes + self.command_bytes

    @property
    def last_command(self):
        """Its name as in the table (`client|info`); b"" before the first."""
        return self.last_name if self.last_name is not None else b""

    @last_command.setter
    def last_command(self, bytes name not None):
        self.last_name = name

    @property
    def closing(self):
        return self.finishing

    def __repr__(self):
        return (f"<Client {self.id} {self.addr} resp{self.proto} db{self.db} inflight={self.inflight} "
                f"buffered={self.buffered} parked={self.parked}>")

    def may_use(self, Backend backend not None):
        """Whether it may use this backend now: one of a shard at a time, or its commands could overtake each other."""
        cdef Backend primary = <Backend>self.pool[backend.shard]
        cdef object current = self.upstreams.get(backend.shard, primary) if self.upstreams is not None else primary
        if current is backend:
            return True
        if has_in_flight(self, backend.shard):
            self.parked |= Park.SWITCH
            self.touch()
            return False
        use_upstream(self, backend)
        return True

    def is_unresolved(self, int shard):
        """Whether a write of it may still be applied on this shard: then no other server may answer its reads."""
        return self.unresolved is not None and shard in self.unresolved

    def held_since(self, double now):
        """Since when the command that is offered now has been held; `now` if it has not been."""
        return self.hold_from if self.hold_from and self.hold_command == self.commands else now

    def hold(self, router, double since):
        """Wait, before the command that is being offered, until `release`; `router` is told if the client leaves."""
        self.router = router
        self.hold_from = since
        self.hold_command = self.commands
        self.parked |= Park.HOLD

    def release(self):
        """The command is offered again."""
        self.router = None
        self.unpark(Park.HOLD)

    def leave(self, bytes line not None):
        """It has closed its half while it was held: what it sent is not done."""
        self.router = None
        self.parked &= ~Park.HOLD
        if self.conversation is not None:
            self.conversation.refuse(line)
        else:
            self.put_answer(line if self.transaction is None else errors.transaction_discarded(line))
        self.finish()

    # --- going on, and writing ---

    cpdef touch(self):
        if not self.dirty:
            self.lane.dirty_clients.append(self)
            self.dirty = True
            self.lane.wake()

    cpdef unpark(self, int reasons):
        if self.parked & reasons:
            if not self.parked & ~reasons:
                self._next_turn()
            self.parked &= ~reasons
            if self.conversation is not None and not self.parked & Park.TURN:
                self.conversation.go_on()

    cdef int _next_turn(self) except -1:
        self.lane.backlog.append(self)
        self.parked |= Park.TURN     # until then it is neither read nor closed
        self.lane.wake()
        return 0

    cpdef go_on(self):
        """The reason to wait is gone: reads on in the buffer."""
        self.parked &= ~Park.TURN
        if self.parked or self.finishing or self.transport is None:
            return
        try:
            if self.inbuf is not None:
                self._from_buffer()
        except Exception:
            self._on_fault()
        self._count_input()
        if self.eof:
            self.touch()

    cdef int _count_input(self) except -1:
        cdef Py_ssize_t size = len(self.inbuf) if self.inbuf is not None else 0, most = READ_AHEAD
        self.lane.buffered += size - self.buffered_in
        self.buffered_in = size
        if self.transport is None:
            return 0
        if self.parked & Park.HOLD:
            self.router.on_client_grew(self, size)
        if self.writing_paused:
            most = max(most, self.lane.output_limit - self.buffered_out)
        if not self.reading_paused and self.parked & ~Park.HOLD and size > most:
            self.reading_paused = True
            self.transport.pause_reading()
        elif self.reading_paused and (not self.parked & ~Park.HOLD or self.finishing or size <= most):
            self.reading_paused = False
            self.transport.resume_reading()
        if self.lane.buffered > self.lane.memory_limit:
            self.lane.wake()
        return 0

    cdef int _on_fault(self) except -1:
        """Our own fault: it ends this connection and no other."""
        bug(self)
        self.put_answer(errors.internal_error())
        self.finish()
        return 0
