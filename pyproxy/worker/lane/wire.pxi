# A connection to a server: bytes out, replies in.  Included by lane.pyx.


@cython.final
cdef class Wire:
    """One connection to a server.  An asyncio.Protocol; made for each connection anew."""

    def __init__(self, Backend backend not None, on_setup, on_lost):
        """`on_setup(frame)` gets the replies until the backend is opened; `on_lost(why)` is called once."""
        self.backend = backend
        self.on_setup = on_setup
        self.on_lost = on_lost

    def connection_made(self, transport):
        self.transport = transport
        self.fd = transport.get_extra_info("socket").fileno()
        self.tls = transport.get_extra_info("ssl_object") is not None
        if self.lost:
            transport.abort()   # given up while it was being made

    cdef int put(self, const char *data, Py_ssize_t size, object whole) except -1:
        """Writes requests; what the socket does not take at once waits in the transport, and nothing overtakes it.

        `whole`: what the bytes are of, if it is not changed any more: then they are not copied.
        """
        cdef Py_ssize_t written = 0
        self.bytes_out += size
        if self.tls:
            self.transport.write(PyBytes_FromStringAndSize(data, size))
            return 0
        if self.write_buffered and not self.transport.get_write_buffer_size():
            self.write_buffered = False
        if not self.write_buffered:
            written = max(_send(self.fd, data, size), 0)      # that it is closed the transport will say
            if written == size:
                return 0
        self.write_buffered = True
        if whole is not None:
            self.transport.write(memoryview(whole)[written:])
        else:
            self.transport.write(PyBytes_FromStringAndSize(data + written, size - written))
        return 0

    def data_received(self, bytes data not None):
        cdef Lane lane = self.backend.lane
        if self.lost:
            return
        if self.on_setup is None and self.backend.wire is not self:
            self.drop("was replaced")
            return
        lane.now = self.last_bytes = _clock()
        lane.received = True
        self.bytes_in += PyBytes_GET_SIZE(data)
        try:
            self._receive(data)
        except Exception:
            self._on_fault(None)

    cdef int _receive(self, bytes data) except -1:
        cdef bytearray inbuf
        cdef Py_ssize_t used = 0
        if self.large is not None:
            used = self._fill(data)
            if self.lost or used == PyBytes_GET_SIZE(data):
                return 0
            data = data[used:]
        if self.skipping:
            used = self._skip(data)
            if self.lost or used == PyBytes_GET_SIZE(data):
                return 0
            data = data[used:]
        if self.inbuf is None:
            used = self._cut(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            if 0 <= used < PyBytes_GET_SIZE(data):
                self.inbuf = bytearray(data[used:])
                if self.overlong or PyBytes_GET_SIZE(data) - used >= COUNTED_BYTES:
                    self._unfinished()
            return 0
        inbuf = self.inbuf
        inbuf += data
        used = self._cut(PyByteArray_AS_STRING(inbuf), len(inbuf))
        if used == len(inbuf) or used < 0:
            self.inbuf = None
        elif used:
            del inbuf[:used]
        if self.on_setup is None and self.large is None and not self.skipping and not self.lost:
            self.backend.set_in_transfer(self.inbuf is not None and len(inbuf) >= BULK_BYTES)     # of an array, say
        if self.inbuf is not None and (self.overlong or self.charged or len(inbuf) >= COUNTED_BYTES):
            self._unfinished()
        elif self.charged and self.inbuf is None and self.large is None:
            self._charge(0)
        return 0

    # --- what has come of a reply that is not whole ---

    cdef int _unfinished(self) except -1:
        """Counts what is buffered of a reply whose end has not come; what is thrown away is not kept."""
        if self.on_setup is not None:
            if len(self.inbuf) > SETUP_BYTES:
                self.drop(errors.garbled("sent a reply without an end before it was asked anything"))
            return 0
        if self.overlong:
            self._trim()
        self._charge(len(self.inbuf) if self.inbuf is not None else 0)
        if self.charged > self.backend.lane.memory_limit:
            return self.discard()
        return self.backend.lane.keep_budget()

    cdef int _charge(self, Py_ssize_t size) except -1:
        """So much of the worker's budget of memory is what this server has said of a reply that is not whole."""
        cdef Lane lane = self.backend.lane
        if size < COUNTED_BYTES:
            size = 0
        if size and not self.charged:
            lane.partial_replies.append(self)
        elif self.charged and not size:
            lane.partial_replies.remove(self)
        lane.buffered += size - self.charged
        lane.upstream_buffered += size - self.charged
        lane.partial_reply_bytes += size - self.charged
        self.charged = size
        return 0

    cdef int discard(self) except -1:
        """What has come of this reply is thrown away, and so will be what comes of it; who asked is told so.

        Only a line cannot be passed over: its end is not known.
        """
        cdef Backend backend = self.backend
        emit(Event.REPLY_DISCARDED, shard=backend.link.name, node=backend.link.node, bytes=self.charged,
             limit=backend.lane.memory_limit)
        if self.large is not None:
            self.skipping = PyBytes_GET_SIZE(self.large) - self.large_filled
            self.last = PyBytes_AS_STRING(self.large)[self.large_filled - 1]
            self.large = None
            self.overlong = True
            self._charge(0)
            return 0
        self.overlong = True
        if self.inbuf is not None:
            self._trim()
        self._charge(len(self.inbuf) if self.inbuf is not None else 0)
        if self.charged:
            self._end_garbled(errors.OVER_MEMORY)
        return 0

    cdef int _trim(self) except -1:
        """Of an answer that is thrown away no more is kept than the beginning of an element that is not known yet."""
        cdef const char *p
        cdef Py_ssize_t n, size
        cdef long long value = 0
        del self.inbuf[:self.scan.pos]
        self.scan.pos = 0
        p = PyByteArray_AS_STRING(self.inbuf)
        n = len(self.inbuf)
        if n < LARGE or (p[0] != c'$' and p[0] != c'=' and p[0] != c'!'):
            return 0
        size = counted(p, n, &value)
        if size == 0 or size + value + 2 <= n:
            return 0
        self.skipping = size + value + 2 - n
        self.last = p[n - 1]
        self.inbuf = None
        self.scan.left -= 1     # it is an element less
        self.scan.seen = 0
        return 0

    cdef int _on_fault(self, Pending item) except -1:
        """Our own fault, whose exception is being handled: it ends this connection and no other.

        `item`: whose answer it was; all that are still in the queue get their verdict with the connection.
        """
        cdef Backend backend = self.backend
        bug(self)
        if item is not None and item is not backend.head:
            try:
                if item.split is not None or (item.client is not None and not item.done):
                    backend._fail(item, errors.FAULT, False)
            except Exception:
                backend._cut_off_owner(item)
        self.drop(errors.LOST)
        return 0

    cdef Py_ssize_t _cut(self, const char *p, Py_ssize_t n) except -2:
        """Gives each whole reply to the request it belongs to -> bytes used; -1: the connection has ended."""
        cdef Backend backend = self.backend
        cdef Pending item = None
        cdef Py_ssize_t pos = 0, length = 0
        cdef bint resp3 = backend.proto == 3 or self.on_setup is not None
        cdef Found found
        try:
            while pos < n:
                found = scan_reply(p + pos, n - pos, &self.scan, resp3, backend.lane.reply_line, &length)
                if found == NEED_MORE:
                    if self.on_setup is None and not self._expects_reply():
                        return -1
                    item = None
                    return n if self.on_setup is None and self._begin_large(p + pos, n - pos) else pos
                if found == BAD:
                    return self._garbled("sent bytes that are not a reply")
                if self.on_setup is not None:
                    self.on_setup(p[pos:pos + length])
                    if self.lost:
                        return -1
                    resp3 = backend.proto == 3 or self.on_setup is not None
                else:
                    if not self._expects_reply():
                        return -1
                    item = backend.head
                    if self.overlong:
                        self._deliver_overlong()
                    else:
                        self._deliver(item, p + pos, length, None)
                    if self.lost:
                        return -1
                pos += length
        except Exception:
            self._on_fault(item)
            return -1
        return pos

    cdef int _garbled(self, str what) except -2:
        """The server broke the protocol -> -1."""
        return self._end_garbled(errors.garbled(what))

    cdef int _end_garbled(self, str why) except -2:
        """It is given up for what it has answered -> -1.  That is not asked again: it would be answered so again, and
        each time everybody's requests would be lost with the connection."""
        cdef Backend backend = self.backend
        if self.on_setup is None and backend.wire is self and backend.count > backend.unsent:
            backend.head.retried = True
        self.drop(why)
        return -1

    cdef bint _expects_reply(self) except -1:
        """Only what was given to this connection can have an answer on it; one that sends more is dropped."""
        if self.backend.count - self.backend.unsent > 0:
            return True
        self.drop(errors.garbled("sent a reply that nobody asked for"))
        return False

    cdef int _deliver(self, Pending item, const char *p, Py_ssize_t n, bytes frame) except -1:
        """Gives a reply to the request at the head of the queue; `frame` if there are bytes of it already."""
        cdef Backend backend = self.backend
        cdef Lane lane = backend.lane
        if backend.canary and self._check_canary(item, p, n):
            return 0
        backend.last_frame = lane.now
        if item.ahead:
            return self._swallow(item, p, n)
        _pop(backend, item)
        if item.unresolved_for is not None:
            backend._resolve(item)
        if backend.withheld is not None and withhold_later(backend, item, p, n):
            return 0
        if item.client is None and item.split is None:
            return 0
        if p[0] == c'-':
            lane.errors += 1
            if self._is_redirection(p, n):
                return backend._fail(item, errors.garbled("answered with a redirection"), True)
            if n > 8 and p[1:8] == b"NOAUTH ":
                # ours to say, not the client's to hear; the next connection says it
                backend._fail(item, errors.UNAUTHENTICATED, True)
                self.drop(errors.UNAUTHENTICATED)
                return 0
            if (self._report_refusal(p, n) and item.write and not item.done and not item.queued
                    and withhold(backend, item, p, n)):
                return 0
        if frame is None:
            frame = OK if n == 5 and memcmp(p, b"+OK\r\n", 5) == 0 else PyBytes_FromStringAndSize(p, n)
        return lane.settle(item, frame)

    cdef bint _check_canary(self, Pending item, const char *p, Py_ssize_t n) except -1:
        """Whether this answer was a canary's; or out of step, and then the connection has ended."""
        cdef Pending other
        cdef bytes code, frame
        if item.expected is None:
            if (n < PyBytes_GET_SIZE(CANARY_REPLY)
                    or memcmp(p, PyBytes_AS_STRING(CANARY_REPLY), PyBytes_GET_SIZE(CANARY_REPLY)) != 0):
                return False
            # a client may have such a value, but not that of one which went out just before its request or later
            frame = p[:n]
            other = item.next_queued
            while other is not None and frame != other.expected:
                other = other.next_queued
            if other is not None or frame == self.backend.last_canary:
                return self._out_of_step("answered a canary where a request was due")
            return False
        if n != PyBytes_GET_SIZE(item.expected) or memcmp(p, PyBytes_AS_STRING(item.expected), n) != 0:
            code = p[1:min(n, 16)].split(b" ", 1)[0] if p[0] == c'-' else b""
            if code == b"NOAUTH":
                self.drop(errors.UNAUTHENTICATED)
                return True
            if code not in NOT_NOW_ECHO:
                return self._out_of_step("answered something else where a canary was due")
        self.backend.last_canary = item.expected
        self.backend.canaries -= 1
        _pop(self.backend, item)     # it does not count as an answer to anybody: `last_frame` is as it was
        return True

    cdef int _out_of_step(self, str what) except -1:
        """What follows would go to the wrong clients."""
        cdef Backend backend = self.backend
        backend.lane.out_of_step += 1
        emit(Event.CANARY, shard=backend.link.name, node=backend.link.node, why=what, requests=backend.waiting_requests)
        self.drop(errors.garbled(what))
        return 1

    cdef int _swallow(self, Pending item, const char *p, Py_ssize_t n) except -1:
        """The answer to a MULTI, or to a command behind it: nobody's, but an error tells something."""
        item.ahead -= 1
        if p[0] != c'-':
            return 0
        self._report_refusal(p, n)
        # MULTI itself: the server runs what is behind it one by one, unless it will say NOAUTH to all of it
        if (item.ahead == item.queued and not (n > 8 and p[1:8] == b"NOAUTH ")
                and (item.client is not None or item.split is not None)):
            self.backend._fail(item, errors.NO_TRANSACTION, False)
        return 0

    cdef bint _begin_large(self, const char *p, Py_ssize_t n) except -1:
        """A large bulk of which a part is here: the rest is received where it will stay."""
        cdef long long value = 0
        cdef Py_ssize_t size
        if n < LARGE or p[0] != c'$' or self.overlong:      # of an overlong array this is an element
            return False
        size = counted(p, n, &value)
        if size == 0 or value < 0 or (value > LARGEST and value <= self.backend.lane.memory_limit):
            return False
        size += value + 2
        if size <= n:
            return False    # all of it is here, so the scanner waits for something else
        if value > self.backend.lane.memory_limit:
            self.skipping = size - n
            self.last = p[n - 1]
            self.overlong = True
            self.backend.set_in_transfer(True)
            self.scan.left = 0
            self.scan.pos = 0
            return True
        self.large = PyBytes_FromStringAndSize(NULL, size)
        if size - n >= BULK_BYTES:
            self.backend.set_in_transfer(True)
        memcpy(PyBytes_AS_STRING(self.large), p, n)
        self.large_filled = n
        self.scan.left = 0
        self.scan.pos = 0
        self._charge(n)     # the next piece finds out whether that is too much
        return True

    cdef Py_ssize_t _fill(self, bytes data) except -1:
        """Receives more of a large bulk -> bytes of `data` that belong to it."""
        cdef Pending item
        cdef bytes frame = self.large
        cdef char *p = PyBytes_AS_STRING(frame)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(frame), used = min(PyBytes_GET_SIZE(data), size - self.large_filled)
        memcpy(p + self.large_filled, PyBytes_AS_STRING(data), used)
        self.large_filled += used
        if self.large_filled < size:
            self._charge(self.large_filled)
            self.backend.lane.keep_budget()
            return used
        self.large = None
        self._charge(0)
        self.backend.set_in_transfer(False)
        if p[size - 2] != c'\r' or p[size - 1] != c'\n':
            self._garbled("sent bytes that are not a reply")
        elif self._expects_reply():
            item = self.backend.head
            try:
                self._deliver(item, p, size, frame)
            except Exception:
                self._on_fault(item)
        return used

    cdef Py_ssize_t _skip(self, bytes data) except -1:
        """Throws more of a bulk away, the answer or an element of it -> bytes of `data` that belong to it."""
        cdef Py_ssize_t used = min(PyBytes_GET_SIZE(data), self.skipping)
        cdef const char *p = PyBytes_AS_STRING(data)
        self.skipping -= used
        if self.skipping:
            self.last = p[used - 1]
        elif (p[used - 2] if used > 1 else self.last) != c'\r' or p[used - 1] != c'\n':
            self._garbled("sent bytes that are not a reply")
        elif self.scan.left == 0 and self._expects_reply():
            self._deliver_overlong()
        return used

    cdef int _deliver_overlong(self) except -1:
        """An answer that cannot be kept has come; who asked is told so."""
        cdef Pending item = self.backend.head
        cdef bytes line = errors.reply_too_large(self.backend.lane.memory_limit)
        self.overlong = False
        try:
            self.backend.set_in_transfer(False)
            return self._deliver(item, PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), line)
        except Exception:
            return self._on_fault(item)

    cdef bint _is_redirection(self, const char *p, Py_ssize_t n):
        """-MOVED and -ASK would send clients past the proxy."""
        return n > 7 and (p[1:7] == b"MOVED " or p[1:5] == b"ASK ")

    cdef bint _report_refusal(self, const char *p, Py_ssize_t n) except -1:
        """A refusal that says more of the server than of the request is told to the link."""
        cdef str code = _refusal_code(p, n)
        if code is None:
            if n > 5 and p[1:5] == b"OOM ":
                # The parent is to know; for the client it is an answer as any other.
                self.backend.link.on_refusal("OOM")
            return False
        self.backend.link.on_refusal(code)
        return True

    def send(self, bytes data not None):
        """For the set-up, before any request."""
        self.transport.write(data)

    def ready(self):
        """The set-up is over."""
        self.on_setup = None
        self.backend.open(self)

    def drop(self, str why not None):
        """Close the connection and give it up; its requests get their verdict."""
        if self.lost:
            return
        self.lost = True
        self.inbuf = None
        self.large = None
        self._charge(0)
        try:
            if self.transport is not None:
                # What the kernel still has of it must not arrive later, when it is long said to be uncertain.
                _reset_on_close(self.fd)
                self.transport.abort()
        except Exception:
            bug(self)
        try:
            self.on_lost(why)
        except Exception:
            bug(self)
            self.backend._lost_by_fault(self, why)
        # they know this wire: it would be left to the garbage collector, with all that TLS has for it
        self.on_setup = self.on_lost = None

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        # of the set-up TLS knows more: a server that wants a certificate of ours says so after the handshake
        cdef bint in_handshake = self.tls and self.on_setup is not None and isinstance(exc, OSError)
        self.drop(access.why(exc) if in_handshake else errors.LOST)
        self.transport = None

    def pause_writing(self):
        self.writing_paused = True
        self.backend._review()

    def resume_writing(self):
        self.writing_paused = False
        self.backend._review()
        self.backend._mark()
