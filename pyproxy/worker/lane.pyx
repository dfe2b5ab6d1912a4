# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The way of a plain request from socket to socket and back.  Hot path; compiled.

    client bytes ──▶ Client ── scan, hiredis, table, slot ──▶ Backend.put ──▶ out buffer ── one write a turn ──▶ server
                       │ place                                   │ the same Pending
                       ▼                                         ▼
        replies in the order of requests                replies in the order of sending
        head ▢ ▣ ▣ ▢ tail  (▣ answered)                 head ▢ ▢ ▢ tail
                       ▲                                         │
    client bytes ◀── flush: answered ones at the head ◀── settle ◀── Wire ── cut frames ◀── server bytes

A Pending stands in two lists at once: its place in the client's order, and its turn on the connection.  A client that
leaves, or a deadline that passes, takes the Pending out of the first list only: what is left in the second is a
tombstone, which swallows exactly its reply.

Commands that are not plain (one key at a fixed position) leave through one call, `take`, into Python.

*Parking.*  A client may have to wait: it has too much out, it changed its protocol or database, it had its share of the
turn, a backend is congested.  It is then parked *before* its next command: the bytes stay in its buffer (bounded: reading
stops), and are looked at again when the reason is gone.  So whatever waits has not been sent, and a client that leaves
takes it along.

Per plain request: no await, task, future, log line or exception.  Everything that happens in one loop turn leaves in one
write per socket, at the start of the next turn (`Lane.turn`).
"""

import logging
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from protocol.scan cimport (
    BAD, EMPTY, FRAME, INLINE, NEED_MORE, Fault, Found, Limits, fault_text, scan_reply, scan_request)

import hiredis
import mmh3

from protocol import errors, request
from pyproxy.metrics import BEAT_S, INDEX

log = logging.getLogger("pyproxy.worker")

cdef enum:
    RUN_FRAMES = 64             # frames given to hiredis at once, and
    RUN_BYTES = 16384           # their bytes: it moves what is left of a larger feed for every KiB it consumes
    TURN_COMMANDS = 1024        # one client's share of a loop turn
    READ_AHEAD = 65536          # unread bytes of a parked client before reading stops
    REPLIES_BYTES = 1048576     # answers of one client kept here before nothing more of it is begun
    REQUESTS_BYTES = 1048576    # and its requests that are out
    FIRST_WINDOW = 16           # requests out before anything is known of the size of the answers
    WRITE_BYTES = 262144        # given to a transport at once
    LARGE = 16384               # from here on bytes are passed on as they are, not joined
    OUT_ROOM = 16384
    OUT_LIMIT = 8388608         # bytes waiting for one backend before it counts as congested

cdef double LINGER_S = 2.0      # how long a closing client may go on sending before it is cut off
cdef object STARVED = object()  # hiredis' "not enough data": its default, False, is also RESP3's #f
NOT_NOW = object()              # what `take` answers when it has parked the client: offer the command again


cdef inline double _clock() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef class Route:
    """What the lane needs to know of a command; made from a `protocol.commands.Command`."""

    def __init__(self, command):
        self.command = command
        self.name = command.name
        self.arity = command.arity
        self.first_key = command.first_key
        self.plain_key = command.first_key if command.kind == 1 else 0
        self.step = command.step
        self.merge = command.merge if command.kind == 3 else ""
        self.write = not command.is_read


@cython.no_gc
@cython.freelist(4096)
cdef class Pending:
    """A request that waits for its reply: a client's place, a backend's turn, or (part of a split) only the latter."""

    def answer(self, bytes frame not None):
        """Give a place that is on no backend its reply."""
        if self.client is not None and not self.done:
            self.client.lane.settle(self, frame)


cdef class Split:
    """A request of several parts: the replies of its shards, until all are here and can be merged."""

    cdef int answered(self, Pending part, bytes frame) except -1:
        part.whole = None
        self.left -= 1
        self.frames[part.shard] = frame
        if PyBytes_AS_STRING(frame)[0] == c'-':
            self.failed[part.shard] = frame
            # an error reply of a command that touches data means that the server did not do it
            self.unsent[part.shard] = True
        if self.left == 0:
            self._merge()
        return 0

    cdef int fail(self, Pending part, bytes line, bint unsent) except -1:
        part.whole = None
        self.left -= 1
        self.failed[part.shard] = line
        self.unsent[part.shard] = unsent
        if self.left == 0:
            self._merge()
        return 0

    cdef int _merge(self) except -1:
        cdef Pending place = self.place
        self.place = None
        if place is not None and place.client is not None:
            self.lane.settle(place, self.lane.merge(self))
        return 0

    @property
    def parts(self):
        """-> (route, order, frames, failed, unsent): see `split.merged`."""
        return self.route, self.order, self.frames, self.failed, self.unsent


cdef class Lane:
    """What all connections of a worker share: the table, the shards, the turn, the memory budget."""

    def __init__(self, loop, take, merge, row, config, int index, int workers):
        """`take(client, route, argv)` -> reply bytes, None (a place was taken), or NOT_NOW; `merge(split)` -> bytes.

        `index` of `workers`: client ids are unique over all workers that run.
        """
        self.loop = loop
        self.take = take
        self.merge = merge
        self.row = row
        self.routes = {}
        self.pools = {}
        self.links = []
        self.dirty_clients = []
        self.dirty_backends = []
        self.backlog = []
        self.clients = set()
        self.lingering = []
        self.limits.args = config.limits.args
        self.limits.bulk = config.limits.bulk_bytes
        self.limits.inline_bytes = config.limits.inline_bytes
        self.memory_limit = config.limits.memory_bytes
        self.window_limit = config.limits.inflight
        self.reply_s = config.timeouts.reply_s
        self.silence_s = config.timeouts.silence_s
        self.hash32 = mmh3.mmh3_32_uintdigest
        self.next_client_id = index + 1
        self.id_step = workers
        self.now = _clock()
        memset(self.owner, 0, sizeof(self.owner))
        self._new_reader()

    def _new_reader(self):
        reader = hiredis.Reader(notEnoughData=STARVED)
        self.reader_feed = reader.feed
        self.reader_gets = reader.gets

    def set_table(self, table):
        """Takes a command table (lower-case name -> Command) into use."""
        routes = {}
        for name, command in table.items():
            route = Route(command)
            routes[name] = routes[name.upper()] = route
        self.routes = routes

    def set_shards(self, links, owner):
        """Takes the links (one a shard) and the owner of each slot (an index into links) into use."""
        cdef int i
        for i in range(16384):
            self.owner[i] = owner[i]
        self.links = list(links)
        self.pools = {key: self._pool(*key) for key in self.pools}
        for client in self.clients:
            (<Client>client).pool = self.pool((<Client>client).proto, (<Client>client).db)

    def pool(self, int proto, int db):
        """The backends of all shards for one protocol and database, in the order of the links."""
        cdef list pool = self.pools.get((proto, db))
        if pool is None:
            pool = self.pools[(proto, db)] = self._pool(proto, db)
        return pool

    def _pool(self, proto, db):
        return [link.backend(proto, db) for link in self.links]

    cdef Route route(self, bytes name):
        cdef object route = self.routes.get(name)
        if route is None:
            route = self.routes.get(name.lower())
        return <Route>route if route is not None else None

    cdef int slot(self, bytes key) except -1:
        cdef const char *p = PyBytes_AS_STRING(key)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(key)
        cdef const char *opened = <const char *>memchr(p, c'{', n)
        cdef const char *closed
        if opened != NULL:
            closed = <const char *>memchr(opened + 1, c'}', p + n - opened - 1)
            if closed != NULL and closed > opened + 1:
                key = PyBytes_FromStringAndSize(opened + 1, closed - opened - 1)
        return <unsigned int>self.hash32(key, 0) & 16383

    def shard_of(self, bytes key not None):
        """The index of the shard that owns a key."""
        return self.owner[self.slot(key)]

    cdef Backend backend_of(self, Client client, bytes key):
        return <Backend>client.pool[self.owner[self.slot(key)]]

    cdef void wake(self):
        if not self.awake:
            self.awake = True
            self.loop.call_soon(self.turn)

    def turn(self):
        """Once a loop turn in which anything happened: what may go on goes on, and what is ready is written."""
        cdef list work
        cdef Client client
        cdef Backend backend
        self.awake = False
        self.now = _clock()
        if self.backlog:
            work = self.backlog
            self.backlog = []
            for client in work:
                client.go_on()
        if self.dirty_backends:
            work = self.dirty_backends
            self.dirty_backends = []
            for backend in work:
                backend.flush()
        if self.dirty_clients:
            work = self.dirty_clients
            self.dirty_clients = []
            for client in work:
                client.flush()
        if self.held > self.memory_limit:
            self._shed()

    def _shed(self):
        """Closes the clients that cost most memory until the budget is kept, with a tenth to spare."""
        cdef Client client
        for client in sorted(self.clients, key=lambda c: -c.buffered):
            if self.held <= self.memory_limit * 9 // 10:
                break
            self.shed_clients += 1
            log.warning("-client-shed id=%d addr=%s bytes=%d limit=%d", client.id, client.addr, client.buffered,
                        self.memory_limit)
            client.abandon()

    cdef int settle(self, Pending item, bytes frame) except -1:
        """Gives a request its reply, whoever waits for it; a tombstone swallows it."""
        cdef Client client
        cdef Split whole = item.whole    # held: its last part lets go of it
        cdef Py_ssize_t size
        if whole is not None:
            return whole.answered(item, frame)
        client = item.client
        if client is None:
            return 0
        size = PyBytes_GET_SIZE(frame)
        item.reply = frame
        item.request = None
        item.done = True
        client.held += size
        self.held += size
        client.inflight -= 1
        client.inflight_bytes -= item.size
        self.inflight -= 1
        if size > client.typical:
            client.typical = size
        else:
            client.typical -= (client.typical - size) >> 3
        if client.head is item and not client.dirty:
            client.dirty = True
            self.dirty_clients.append(client)
            self.wake()
        return 0

    def tick(self):
        """Every few milliseconds: deadlines, silence, lingering clients, the numbers of the shared page."""
        cdef Backend backend
        cdef Client client
        self.now = _clock()
        for link in self.links:
            for backend in list(link.backends.values()):
                backend.expire(self.now)
        if self.lingering:
            for client in list(self.lingering):
                if client.transport is None:
                    self.lingering.remove(client)
                elif self.now > client.linger_until:
                    self.lingering.remove(client)
                    client.transport.abort()
        self.publish()

    def check_unfinished(self, double limit_s):
        """Closes clients whose unfinished request is older than `limit_s`."""
        cdef Client client
        for client in list(self.clients):
            if client.unfinished_since and not client.parked and self.now - client.unfinished_since > limit_s:
                log.info("-client-unfinished id=%d addr=%s bytes=%d", client.id, client.addr, client.in_counted)
                client.finish()
                client.flush()

    def publish(self):
        row = self.row
        row[_CLIENTS] = len(self.clients)
        row[_BEAT] = <long long>(self.now * 1e6)
        row[_COMMANDS] = self.commands
        row[_ERRORS] = self.errors
        row[_BYTES_IN] = self.bytes_in
        row[_BYTES_OUT] = self.bytes_out
        row[_INFLIGHT] = self.inflight
        row[_HELD] = self.held
        row[_SHED] = self.shed_clients
        row[_TIMEOUTS] = self.timeouts
        row[_UNCERTAIN] = self.uncertain
        row[_PROTOCOL_ERRORS] = self.protocol_errors
        row[_SPLITS] = self.splits

    def drain(self):
        """Nothing new is begun; each client is closed when what it has out is answered."""
        cdef Client client
        self.draining = True
        for client in list(self.clients):
            client.parked |= Park.DRAIN
            client.touch()


cdef int _CLIENTS = INDEX["clients"], _BEAT = INDEX["beat_us"], _COMMANDS = INDEX["commands"]
cdef int _ERRORS = INDEX["errors"], _BYTES_IN = INDEX["bytes_in"], _BYTES_OUT = INDEX["bytes_out"]
cdef int _INFLIGHT = INDEX["inflight"], _HELD = INDEX["held_bytes"], _SHED = INDEX["shed"]
cdef int _TIMEOUTS = INDEX["timeouts"], _UNCERTAIN = INDEX["uncertain"]
cdef int _PROTOCOL_ERRORS = INDEX["protocol_errors"], _SPLITS = INDEX["splits"]


cdef class Client:
    """One client's connection: its bytes, its order of replies, its bounds.  An asyncio.Protocol."""

    def __init__(self, Lane lane not None):
        self.lane = lane
        self.proto = 2
        self.db = 0
        self.ready = []
        self.typical = REPLIES_BYTES // FIRST_WINDOW
        self.name = self.lib_name = self.lib_ver = b""

    # --- the transport's calls ---

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        peer = transport.get_extra_info("peername") or ("", 0)
        here = transport.get_extra_info("sockname") or ("", 0)
        self.addr = f"{peer[0]}:{peer[1]}"
        self.laddr = f"{here[0]}:{here[1]}"
        self.fd = transport.get_extra_info("socket").fileno()
        self.lane.now = _clock()
        self.created = self.last_active = self.lane.now
        self.id = self.lane.next_client_id
        self.lane.next_client_id += self.lane.id_step
        self.pool = self.lane.pool(2, 0)
        self.lane.clients.add(self)
        if self.lane.draining:
            self.parked |= Park.DRAIN
            self.touch()

    def data_received(self, bytes data not None):
        cdef Lane lane = self.lane
        cdef Py_ssize_t used
        lane.now = self.last_active = _clock()
        lane.bytes_in += PyBytes_GET_SIZE(data)
        if self.finishing:
            return
        try:
            if self.inbuf is not None:
                self.inbuf += data
                if not self.parked:
                    self._from_buffer()
            elif self.parked:
                self.inbuf = bytearray(data)
            else:
                used = self._consume(data, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
                if used < PyBytes_GET_SIZE(data) and not self.finishing:
                    self.inbuf = bytearray(data[used:])
        except Exception:
            self._broke()
        if self.inbuf is not None or self.in_counted:
            self._count_input()

    def eof_received(self):
        self.eof = True
        self.touch()
        return True

    def pause_writing(self):
        self.choked = True
        self.in_transport = self.transport.get_write_buffer_size()
        self.held += self.in_transport
        self.lane.held += self.in_transport

    def resume_writing(self):
        self.choked = False
        self.held -= self.in_transport
        self.lane.held -= self.in_transport
        self.in_transport = 0
        self.touch()

    def connection_lost(self, exc):
        """Gone: what is out for it becomes tombstones, what was not begun is dropped."""
        cdef Pending item = self.head, following
        cdef Lane lane = self.lane
        self.transport = None
        self.write = None
        self.finishing = True
        self.head = self.tail = None
        while item is not None:
            following = item.next_placed
            item.next_placed = None
            item.client = None
            item = following
        lane.held -= self.held + self.in_counted
        self.held = self.in_transport = self.in_counted = 0
        lane.inflight -= self.inflight
        self.inflight = 0
        self.inflight_bytes = 0
        self.inbuf = None
        self.ready = []
        lane.clients.discard(self)
        lane.row[_CLIENTS] = len(lane.clients)

    # --- bytes to commands ---

    cdef int _from_buffer(self) except -1:
        cdef bytearray inbuf = self.inbuf
        cdef Py_ssize_t used
        # held apart: nothing may resize the buffer while pointers into it are in use
        self.inbuf = None
        used = self._consume(inbuf, PyByteArray_AS_STRING(inbuf), len(inbuf))
        if self.finishing or used == len(inbuf):
            return 0
        if used:
            del inbuf[:used]
        self.inbuf = inbuf
        return 0

    cdef Py_ssize_t _consume(self, object owner, const char *p, Py_ssize_t n) except -1:
        """Dispatches the commands in p, which `owner` keeps alive, -> how many bytes of it are done with."""
        cdef Lane lane = self.lane
        cdef Py_ssize_t pos = 0, begin, start, length = 0
        cdef Py_ssize_t ends[RUN_FRAMES]
        cdef int count, i, most, left = TURN_COMMANDS
        cdef Found found = NEED_MORE
        cdef Fault fault
        cdef list argv
        while pos < n and not self.parked and not self.finishing:
            if left <= 0:
                self._next_turn()
                break
            begin = pos
            count = 0
            # no more than may be begun, or the rest would be parsed twice
            most = max(1, min(<int>RUN_FRAMES, self._window() - self.inflight))
            while count < most and pos - begin < RUN_BYTES:
                found = scan_request(p + pos, n - pos, &self.scan, &lane.limits, &length, &fault)
                if found != FRAME:
                    break
                pos += length
                ends[count] = pos
                count += 1
            if count:
                lane.reader_feed(owner, begin, pos - begin)
                start = begin
                for i in range(count):
                    argv = lane.reader_gets()
                    if not self._command(argv, p + start, ends[i] - start):
                        # not now: offered again later, from its first byte
                        self._unread(count - i - 1)
                        return start
                    start = ends[i]
                    if (self.parked or self.finishing) and i + 1 < count:
                        self._unread(count - i - 1)
                        return start
                left -= count
                if self.parked or self.finishing or found == FRAME:
                    continue
            if found == NEED_MORE:
                # the age of the unfinished request, not of its last byte
                if pos or not self.unfinished_since:
                    self.unfinished_since = lane.now
                return pos
            if found == BAD:
                lane.protocol_errors += 1
                self.say(errors.protocol(fault_text(&fault)))
                self.finish()
                return pos
            if found == INLINE and not self._inline(p[pos:pos + length]):
                return pos
            pos += length
            left -= 1
        self.unfinished_since = 0
        return pos

    cdef int _unread(self, int count) except -1:
        """Takes parsed commands back out of hiredis; their bytes are still in the client's buffer."""
        cdef int i
        for i in range(count):
            self.lane.reader_gets()
        self.scan.pos = 0
        self.scan.args_left = 0
        return 0

    cdef int _inline(self, bytes line) except -1:
        cdef list argv = request.split_inline(line.rstrip(b"\n").removesuffix(b"\r"))
        cdef bytes frame
        if argv is None:
            self.lane.protocol_errors += 1
            self.say(errors.unbalanced_quotes())
            self.finish()
            return True
        if not argv:
            return True
        frame = request.encode(argv)
        return self._command(argv, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))

    cdef int _command(self, list argv, const char *frame, Py_ssize_t size) except -1:
        """Begins one command, whose canonical bytes are at frame.  False: not now, the client was parked."""
        cdef Lane lane = self.lane
        cdef Py_ssize_t argc = len(argv)
        cdef Route route = lane.route(<bytes>argv[0])
        cdef Backend backend
        cdef Pending item
        cdef int verdict
        cdef object reply
        if route is not None and route.plain_key and (argc == route.arity or (route.arity < 0 and argc >= -route.arity)):
            backend = lane.backend_of(self, <bytes>argv[route.plain_key])
            if backend.door != Door.OPEN:
                verdict = backend.admit(self)
                if verdict < 0:
                    return False
                if verdict == 0:
                    self._counted(route)
                    self.say(backend.refusal)
                    return True
            item = self.place()
            item.size = size
            item.write = route.write
            item.shard = backend.shard
            if not route.write:
                item.request = argv
            self.inflight += 1
            self.inflight_bytes += size
            lane.inflight += 1
            backend.put(item, frame, size)
        elif route is not None and route.merge and argc >= -route.arity:
            if lane.splitter(self, route, argv, frame, size) < 0:
                return False
        else:
            reply = lane.take(self, route, argv)
            if reply is NOT_NOW:
                return False
            if reply is not None:
                self.say(<bytes?>reply)
        self._counted(route)
        if self.inflight >= self._window() or self.held > REPLIES_BYTES or self.inflight_bytes > REQUESTS_BYTES:
            self.parked |= Park.WINDOW
            self.touch()
        return True

    cdef void _counted(self, Route route):
        self.lane.commands += 1
        self.commands += 1
        self.last_route = route

    cdef int _window(self):
        """How many requests may be out: as many as will not bring more than REPLIES_BYTES of answers."""
        cdef Py_ssize_t window = REPLIES_BYTES // (self.typical + 1)
        if window < 1:
            return 1
        return <int>(window if window < self.lane.window_limit else self.lane.window_limit)

    cdef Pending place(self):
        """The next place in the order of replies."""
        cdef Pending item = Pending.__new__(Pending)
        item.client = self
        if self.reply_mode:
            item.mute = True
            if self.reply_mode == 2:
                self.reply_mode = 0
        if self.tail is None:
            self.head = item
        else:
            self.tail.next_placed = item
        self.tail = item
        return item

    cdef int say(self, bytes reply) except -1:
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
        self.held += size
        self.lane.held += size
        if self.head is None:
            self.ready.append(reply)
            self.touch()
            return 0
        item = self.place()
        item.reply = reply
        item.done = True
        return 0

    # --- what Python may ask of a client ---

    def defer(self):
        """Takes the next place in the order of replies, to be answered later with `Pending.answer`."""
        cdef Pending item = self.place()
        self.inflight += 1
        self.lane.inflight += 1
        return item

    def send(self, int shard, bytes frame not None, bint write):
        """Sends a whole command to a shard and takes its place -> True, or False where the client was parked or refused.

        False and not parked: the shard is down and the client has been told.
        """
        cdef Backend backend = <Backend>self.pool[shard]
        cdef Pending item
        cdef int verdict = backend.admit(self)
        if verdict < 0:
            return NOT_NOW
        if verdict == 0:
            return backend.refusal
        item = self.place()
        item.size = PyBytes_GET_SIZE(frame)
        item.write = write
        item.shard = shard
        if not write:
            item.request = frame
        self.inflight += 1
        self.inflight_bytes += item.size
        self.lane.inflight += 1
        backend.put(item, PyBytes_AS_STRING(frame), item.size)
        return None

    def switch(self, int proto, int db):
        """From the next command on: another protocol or database, once all earlier requests are answered."""
        if proto == self.proto and db == self.db:
            return
        self.proto = proto
        self.db = db
        self.pool = self.lane.pool(proto, db)
        if self.head is not None:
            self.parked |= Park.SWITCH

    def finish(self):
        """Begin nothing more; close when everything is answered and written."""
        self.finishing = True
        self.inbuf = None
        self.unfinished_since = 0
        self.touch()

    def abandon(self):
        """Close now, without answering: for clients that break the rules or the budget."""
        transport = self.transport
        if transport is None:
            return
        try:
            while os.read(self.fd, 65536):   # unread bytes would make the kernel send RST instead of FIN
                pass
        except OSError:
            pass
        transport.abort()
        self.connection_lost(None)

    @property
    def buffered(self):
        """Bytes this client costs: answers it has not read, and requests that are not finished."""
        return self.held + self.in_counted

    @property
    def buffered_in(self):
        return self.in_counted

    @property
    def buffered_out(self):
        return self.held

    @property
    def last_command(self):
        return self.last_route.name if self.last_route is not None else b""

    @property
    def closing(self):
        return self.finishing

    @property
    def waiting(self):
        """How many requests of this client are out."""
        return self.inflight

    def __repr__(self):
        return (f"<Client {self.id} {self.addr} resp{self.proto} db{self.db} out={self.inflight} held={self.held} "
                f"parked={self.parked}>")

    # --- going on, and writing ---

    def touch(self):
        if not self.dirty:
            self.dirty = True
            self.lane.dirty_clients.append(self)
            self.lane.wake()

    def unpark(self, int reasons):
        if self.parked & reasons:
            self.parked &= ~reasons
            if not self.parked:
                self._next_turn()

    cdef int _next_turn(self) except -1:
        self.parked |= Park.TURN     # until then it is neither read nor closed
        self.lane.backlog.append(self)
        self.lane.wake()
        return 0

    def go_on(self):
        """The reason to wait is gone: the bytes that were kept are looked at."""
        self.parked &= ~Park.TURN
        if self.parked or self.finishing or self.transport is None:
            return
        try:
            if self.inbuf is not None:
                self._from_buffer()
        except Exception:
            self._broke()
        self._count_input()
        if self.eof:
            self.touch()

    cdef int park_at(self, Backend backend) except -1:
        self.parked |= Park.DOOR
        backend.waiting.append(self)
        return 0

    cdef int _count_input(self) except -1:
        cdef Py_ssize_t size = len(self.inbuf) if self.inbuf is not None else 0
        self.lane.held += size - self.in_counted
        self.in_counted = size
        if self.transport is None:
            return 0
        if not self.reading_paused and self.parked and size > READ_AHEAD:
            self.reading_paused = True
            self.transport.pause_reading()
        elif self.reading_paused and (not self.parked or self.finishing):
            self.reading_paused = False
            self.transport.resume_reading()
        if self.lane.held > self.lane.memory_limit:
            self.lane.wake()
        return 0

    cdef int _broke(self) except -1:
        """Our own fault: it ends this connection and no other."""
        log.exception("-client-exception id=%d addr=%s", self.id, self.addr)
        self.lane._new_reader()
        self.say(errors.internal_error())
        self.finish()
        return 0

    def flush(self):
        """Writes the answered places at the head; then sees whether the client may go on, or is done."""
        cdef Pending item
        cdef list chunks
        cdef Py_ssize_t size = 0, total = 0, one
        cdef Lane lane = self.lane
        self.dirty = False
        if self.transport is None:
            return
        if not self.choked:
            chunks = self.ready
            self.ready = []
            for reply in chunks:
                size += PyBytes_GET_SIZE(<bytes>reply)
            item = self.head
            while item is not None and item.done and size + total < WRITE_BYTES:
                one = PyBytes_GET_SIZE(item.reply)
                self.head = item.next_placed
                if self.head is None:
                    self.tail = None
                item.next_placed = None
                item.client = None
                if item.mute:
                    self.held -= one
                    lane.held -= one
                elif one >= LARGE:
                    if chunks:
                        self._hand_over(chunks, size)
                        total += size
                        size = 0
                        chunks = []
                    self._hand_over([item.reply], one)
                    total += one
                else:
                    chunks.append(item.reply)
                    size += one
                item = self.head
                if self.choked:
                    break
            if chunks:
                self._hand_over(chunks, size)
            if item is not None and item.done and not self.choked:
                self.touch()
        if self.parked or self.eof or self.finishing:
            self._reconsider()

    cdef int _hand_over(self, list chunks, Py_ssize_t size) except -1:
        self.held -= size
        self.lane.held -= size
        self.lane.bytes_out += size
        self.write(<object>chunks[0] if len(chunks) == 1 else b"".join(chunks))
        return 0

    cdef int _reconsider(self) except -1:
        cdef bint idle = self.head is None and not self.ready
        if idle and (self.finishing or self.parked & Park.DRAIN or (self.eof and not self.parked)):
            self._close()
            return 0
        if self.parked & Park.SWITCH and self.head is None:
            self.unpark(Park.SWITCH)
        if (self.parked & Park.WINDOW and self.inflight <= self._window() >> 1 and not self.choked
                and self.held <= REPLIES_BYTES >> 1 and self.inflight_bytes <= REQUESTS_BYTES >> 1):
            self.unpark(Park.WINDOW)
        return 0

    cdef int _close(self) except -1:
        """FIN after the last byte; then what the client still sends is read and dropped, so that no RST is sent."""
        if self.lingering:
            if self.eof:
                self.transport.close()
            return 0
        self.finishing = True
        self.inbuf = None
        self._count_input()
        if self.eof:
            self.transport.close()
            return 0
        self.lingering = True
        self.linger_until = self.lane.now + LINGER_S
        self.lane.lingering.append(self)
        self.transport.write_eof()
        return 0


cdef class Backend:
    """One shard for one protocol and database: the requests that are out, and the door to them."""

    def __init__(self, Lane lane not None, link, int shard, int proto, int db):
        self.lane = lane
        self.link = link
        self.shard = shard
        self.proto = proto
        self.db = db
        self.door = Door.IDLE
        self.refusal = b""
        self.chunks = []
        self.waiting = []

    def __dealloc__(self):
        free(self.out)

    def __repr__(self):
        return f"<Backend {self.link.name} resp{self.proto} db{self.db} door={self.door} out={self.count}>"

    # --- the door ---

    cdef int admit(self, Client client) except -2:
        """1: may be put; 0: refused, see `refusal`; -1: not now, the client was parked."""
        if self.door == Door.OPEN:
            return 1
        if self.door == Door.IDLE:
            self.link.connect(self)
        if self.door == Door.SHUT:
            return 0
        if self.door == Door.CONGESTED or self.out_bytes > OUT_LIMIT:
            client.park_at(self)
            return -1
        return 1

    def shut(self, bytes refusal not None):
        """Down: whatever waits was not sent and is refused, whatever comes is refused at once."""
        self.door = Door.SHUT
        self.refusal = refusal
        self._fail_unsent()
        self._release()

    def queue(self):
        """Being connected: commands wait."""
        self.door = Door.QUEUE

    def reset(self):
        """No connection, and no reason not to have one: the next command opens it."""
        if self.door == Door.SHUT:
            self.door = Door.IDLE
            self.refusal = b""

    def open(self, Wire wire not None):
        """The connection is set up: what waited is sent."""
        self.wire = wire
        self.door = Door.OPEN
        self.last_frame = self.lane.now
        self._mark()

    @property
    def is_open(self):
        return self.door == Door.OPEN or self.door == Door.CONGESTED

    @property
    def is_shut(self):
        return self.door == Door.SHUT

    @property
    def is_base(self):
        """The one that is kept connected even when nobody asks: its loss is noticed at once."""
        return self.proto == 2 and self.db == 0

    @property
    def waiting_requests(self):
        """How many requests are out or wait to be sent, tombstones included."""
        return self.count

    cdef int _release(self) except -1:
        cdef list waiting = self.waiting
        if waiting:
            self.waiting = []
            for client in waiting:
                (<Client>client).unpark(Park.DOOR)
        return 0

    # --- requests ---

    cdef int put(self, Pending item, const char *frame, Py_ssize_t size) except -1:
        """Appends a request; it leaves with the turn's other requests."""
        item.sent_at = self.lane.now
        if self.tail is None:
            self.head = item
        else:
            self.tail.next_out = item
        self.tail = item
        if self.aging is None:
            self.aging = item
        self.count += 1
        self.unflushed += 1
        self._append(frame, size)
        if not self.dirty:
            self._mark()
        return 0

    cdef int _mark(self) except -1:
        if not self.dirty:
            self.dirty = True
            self.lane.dirty_backends.append(self)
            self.lane.wake()
        return 0

    cdef int _append(self, const char *p, Py_ssize_t n) except -1:
        cdef Py_ssize_t room
        cdef char *grown
        self.out_bytes += n
        if n >= LARGE:
            self._pack()
            self.chunks.append(PyBytes_FromStringAndSize(p, n))
            return 0
        if self.out_len + n > self.out_room:
            if self.out_room >= WRITE_BYTES:
                self._pack()
            else:
                room = self.out_room * 2 if self.out_room else OUT_ROOM
                if room < self.out_len + n:
                    room = self.out_len + n
                grown = <char *>realloc(self.out, room)
                if grown == NULL:
                    raise MemoryError
                self.out = grown
                self.out_room = room
        memcpy(self.out + self.out_len, p, n)
        self.out_len += n
        return 0

    cdef int _pack(self) except -1:
        if self.out_len:
            self.chunks.append(PyBytes_FromStringAndSize(self.out, self.out_len))
            self.out_len = 0
        return 0

    def flush(self):
        """Gives what was put to the connection, if it is up and the server reads."""
        cdef list chunks
        self.dirty = False
        if self.wire is None or self.wire.choked or self.wire.lost:
            if self.door == Door.OPEN and self.out_bytes > OUT_LIMIT:
                self.door = Door.CONGESTED
            return
        if self.chunks:
            self._pack()
            chunks = self.chunks
            self.chunks = []
            for chunk in chunks:
                self.wire.transport.write(chunk)
        elif self.out_len:
            self.wire.transport.write(PyBytes_FromStringAndSize(self.out, self.out_len))
            self.out_len = 0
        self.unflushed = 0
        self.out_bytes = 0
        if self.door == Door.CONGESTED:
            self.door = Door.OPEN
        if self.waiting:
            self._release()

    cdef Pending _pop(self):
        cdef Pending item = self.head
        self.head = item.next_out
        if self.head is None:
            self.tail = None
        if self.aging is item:
            self.aging = self.head
        item.next_out = None
        self.count -= 1
        return item

    # --- what goes wrong ---

    def expire(self, double now):
        """Answers requests whose deadline has passed; drops a connection that is silent too long."""
        cdef Pending item
        cdef Lane lane = self.lane
        cdef Wire wire = self.wire
        cdef double oldest = now - lane.reply_s
        while self.aging is not None and self.aging.sent_at < oldest:
            item = self.aging
            self.aging = item.next_out
            if item.client is not None or item.whole is not None:
                lane.timeouts += 1
                self._fail(item, errors.no_reply(lane.reply_s), False)
        if wire is not None and self.head is not None and not wire.lost:
            oldest = max(self.last_frame, self.head.sent_at)
            # a long reply may take its time as long as bytes come
            if (now - max(oldest, wire.last_bytes) > lane.silence_s
                    or now - oldest > 10 * lane.silence_s):
                wire.drop(errors.no_reply(now - oldest))

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
        cdef Split whole = item.whole
        item.request = None
        self.lane.errors += 1
        if whole is not None:
            return whole.fail(item, line, unsent)
        return self.lane.settle(item, line)

    def lost(self, str why):
        """The connection is gone: -> True where requests remain to be sent on a new one.

        Sent writes may have been applied.  Sent reads go out again once, unless the same client has a later write on
        the connection: the read would see the future.  What was never given to the connection is kept.
        """
        cdef Pending item
        cdef Py_ssize_t sent = self.count - self.unflushed, i
        cdef dict last_write = {}
        cdef list items = []
        self.wire = None
        for i in range(sent):
            item = self._pop()
            items.append(item)
            if item.write:
                owner = self._owner(item)
                if owner is not None:
                    last_write[owner] = i
        # items still out get their verdict; those to be tried again are collected in their order
        retries = []
        for i, held in enumerate(items):
            item = <Pending>held
            if item.client is None and item.whole is None:
                continue
            if item.write:
                self._fail(item, why, False)
            elif item.retried or item.request is None or last_write.get(self._owner(item), -1) > i:
                self._fail(item, why, True)
            else:
                retries.append(item)
        if retries:
            self._put_first(retries)
        self.door = Door.QUEUE if self.count else Door.IDLE
        return self.count > 0

    cdef object _owner(self, Pending item):
        if item.client is not None:
            return item.client
        if item.whole is not None and item.whole.place is not None:
            return item.whole.place.client
        return None

    cdef int _put_first(self, list retries) except -1:
        cdef Pending item, rest = self.head, rest_tail = self.tail
        cdef Py_ssize_t rest_count = self.unflushed
        cdef list frames = []
        self._pack()
        self.head = self.tail = None
        for held in retries:
            item = <Pending>held
            item.retried = True
            frames.append(item.request if type(item.request) is bytes else request.encode(item.request))
            if self.tail is None:
                self.head = item
            else:
                self.tail.next_out = item
            self.tail = item
        self.tail.next_out = rest
        if rest is not None:
            self.tail = rest_tail
        self.chunks = frames + self.chunks
        for frame in frames:
            self.out_bytes += len(frame)
        self.count = self.unflushed = rest_count + len(retries)
        self.aging = self.head
        return 0

    cdef int _fail_unsent(self) except -1:
        cdef Pending item
        self.out_len = 0
        self.chunks = []
        self.out_bytes = 0
        self.unflushed = 0
        while self.head is not None:
            item = self._pop()
            if item.client is not None or item.whole is not None:
                self._refuse(item, self.refusal, True)
        return 0


cdef class Wire:
    """One connection to a server.  An asyncio.Protocol; made for each connection anew."""

    def __init__(self, Backend backend not None, on_setup, on_lost):
        """`on_setup(frame)` gets the replies until the backend is opened; `on_lost(why)` is called once."""
        self.backend = backend
        self.on_setup = on_setup
        self.on_lost = on_lost

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, bytes data not None):
        cdef bytearray inbuf
        cdef Py_ssize_t used
        cdef Lane lane = self.backend.lane
        if self.lost:
            return
        lane.now = self.last_bytes = _clock()
        if self.inbuf is None:
            used = self._cut(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            if 0 <= used < PyBytes_GET_SIZE(data):
                self.inbuf = bytearray(data[used:])
            return
        inbuf = self.inbuf
        inbuf += data
        used = self._cut(PyByteArray_AS_STRING(inbuf), len(inbuf))
        if used == len(inbuf) or used < 0:
            self.inbuf = None
        elif used:
            del inbuf[:used]

    cdef Py_ssize_t _cut(self, const char *p, Py_ssize_t n) except -2:
        """Gives each whole reply to the request it belongs to -> bytes used; -1: the server broke the protocol."""
        cdef Backend backend = self.backend
        cdef Lane lane = backend.lane
        cdef Py_ssize_t pos = 0, length = 0
        cdef bint resp3 = backend.proto == 3 or self.on_setup is not None
        cdef Found found
        cdef Pending item
        while pos < n:
            found = scan_reply(p + pos, n - pos, &self.scan, resp3, &length)
            if found == NEED_MORE:
                if backend.head is None and self.on_setup is None:
                    self.drop(errors.garbled("sent a reply that nobody asked for"))
                    return -1
                return pos
            if found == BAD:
                self.drop(errors.garbled("sent bytes that are not a reply"))
                return -1
            if self.on_setup is not None:
                self.on_setup(p[pos:pos + length])
                if self.lost:
                    return -1
                resp3 = backend.proto == 3 or self.on_setup is not None
            else:
                # only what was given to this connection can have an answer on it
                if backend.count - backend.unflushed <= 0:
                    self.drop(errors.garbled("sent a reply that nobody asked for"))
                    return -1
                item = backend._pop()
                backend.last_frame = lane.now
                if item.client is not None or item.whole is not None:
                    if p[pos] == c'-':
                        lane.errors += 1
                        if self._distrusted(p + pos, length):
                            backend._fail(item, errors.garbled("answered with a redirection"), True)
                            pos += length
                            continue
                    lane.settle(item, PyBytes_FromStringAndSize(p + pos, length))
            pos += length
        return pos

    cdef bint _distrusted(self, const char *p, Py_ssize_t n):
        """-MOVED and -ASK would send clients past the proxy."""
        return n > 7 and (p[1:7] == b"MOVED " or p[1:5] == b"ASK ")

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
        if self.transport is not None:
            self.transport.abort()
        self.on_lost(why)

    def eof_received(self):
        return False

    def connection_lost(self, exc):
        self.drop(errors.LOST)

    def pause_writing(self):
        self.choked = True

    def resume_writing(self):
        self.choked = False
        self.backend._mark()

