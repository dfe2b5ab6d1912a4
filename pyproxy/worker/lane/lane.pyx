# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The way of a plain request from socket to socket and back.  Hot path; compiled.

    client bytes ──▶ Client ── scan, table, slot ──▶ Backend.put ──▶ out buffer ── one write a turn ──▶ server
                       │ place                          │ the same Pending
                       ▼                                ▼
        replies in the order of requests       replies in the order of sending
        head ▢ ▣ ▣ ▢ tail  (▣ answered)        head ▢ ▢ ▢ tail
                       ▲                                │
    client bytes ◀── flush: answered ones at the head ◀── settle ◀── Wire ── cut frames ◀── server bytes

A Pending stands in two lists at once: it has a place in the client's order, and a position in the request queue of the
connection.  A client that leaves, or a deadline that passes, takes the Pending out of the first list only: what is left
in the second is a tombstone, which swallows exactly its reply.

Commands that are not plain (one key at a fixed position) leave through one call, `dispatch`, into Python.

*Parking.*  A client may have to wait: it has too much out, it changed its protocol or database, it had its share of the
turn, a backend is congested, a gate is closed.  It is then parked *before* its next command: the bytes stay in its
buffer (bounded: reading stops), and are looked at again when the reason is gone.  So whatever waits has not been sent,
and a client that leaves takes it along.

Per plain request: no await, task, future, log line or exception.  Everything that happens in one loop turn leaves in
one write per socket, at the start of the next turn (`Lane.turn`).  A write costs more than all else that is done for a
request, so those to the shards wait a little longer while more comes in; one that is alone does not wait.
"""

import os
import traceback
from operator import attrgetter

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport ECONNRESET, EPIPE, errno
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from protocol.scan cimport (
    BAD, FRAME, INLINE, NEED_MORE, Fault, Found, arguments, counted, fault_text, header, scan_reply, scan_request)

import mmh3

from protocol import errors, request
from pyproxy import access
from pyproxy.events import Event, emit
from pyproxy.metrics import INDEX
from pyproxy.worker.lane.outcome import NOT_NOW, PLACED

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>" nogil:
    enum:
        SIOCOUTQ

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    struct linger:
        int l_onoff
        int l_linger
    enum:
        SOL_SOCKET
        SO_LINGER
        MSG_PEEK
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef extern from *:
    """
    #if defined(PYPROXY_CHECKED)
    #define BUILD_NAME "checked"
    #elif defined(PYPROXY_SANITIZED)
    #define BUILD_NAME "sanitized"
    #else
    #define BUILD_NAME ""
    #endif
    #define CHECKED_BUILD (BUILD_NAME[0] == 'c')
    """
    const char *BUILD_NAME
    bint CHECKED_BUILD      # known to the C compiler: nothing is left of what depends on it in the build that serves

cdef extern from *:
    """
    /* One of 64. The product is meant to wrap, which the checked build holds against a product of its own. */
    static inline unsigned int cache_place(unsigned long long word) {
        return (unsigned int)(word * 0x9E3779B97F4A7C15ULL >> 58);
    }
    """
    unsigned int cache_place(unsigned long long word) noexcept nogil

BUILD = BUILD_NAME.decode()     # see tools/make_build.py; "": the one that serves

cdef enum:
    MOST_WORDS = 1024           # of a command that the proxy answers itself: it does so in one piece
    WORD_BYTES = 64             # what a word costs as a Python object, beside its bytes
    MANY_WORDS = 4096           # of a command that leaves the lane: more are looked through in slices first
    SLOW_WORDS = 100000         # of a command that its server works on for long: at a million BLPOP takes 3 s
    TURN_COMMANDS = 1024        # one client's share of a loop turn
    DISPATCH_COST = 4           # of it, for a command that leaves the lane: so much more work it is
    TURN_LINE = 16              # bytes of an inline command, likewise
    TURN_KEYS = 8               # of a command of many, as much as a command of one
    TURN_BYTES = 2097152        # given to the connections in one turn; a connection's share is not cut
    # Of a client that does not read itself, limits.client_output_bytes instead, as it may write all before it reads.
    READ_AHEAD = 65536          # unread bytes of a parked client before reading stops
    REPLIES_BYTES = 1048576     # answers of one client kept here before nothing more of it is begun
    REQUESTS_BYTES = 1048576    # and its requests that are out
    FIRST_WINDOW = 16           # requests out before anything is known of the size of the answers; one for each
    WINDOW_MEMORY = 16777216    # 16 MiB of the memory, if that is fewer
    WRITE_BYTES = 262144        # given to a transport at once
    LINE_ROOM = 65536           # what a server says in an error, beside a key and a name that the client sent
    COUNTED_BYTES = 65536       # of a reply that is not whole, counted in the memory budget; less costs no more to keep
    SETUP_BYTES = 131072        # of a reply before any request: none is as long
    LARGEST = 67108864          # a server's header is believed up to here; more is kept as it comes
    PROGRESS_BYTES = 1024         # of a reply that is not whole yet, within its deadline: then it is waited for
    BULK_BYTES = 1048576        # a request or reply of so much is kept from the connection that small ones share
    OUT_ROOM = 16384
    PENDING_BYTES = 256         # what is known of a request, and its place in the order
    ELSEWHERE = 16              # reads that are out to a replica because its primary did not answer them in time
    CHEAP_REPLY = 65536         # answers that are smaller are no burden

cdef Py_ssize_t OUT_LIMIT = 8388608     # bytes waiting for one backend before it counts as congested
cdef double TURN_S = 0.004     # and of its time, by what cannot be told before what it takes
cdef double COALESCE_S = 0.0002   # while more comes in, requests wait so long at most for others to leave with them
# A tick that comes so much later than the one before has seen nothing of what servers did.
cdef double LATE_S = 0.1
cdef double SLEPT_S = 1.0       # a worker that did not run for so long asks before it writes

cdef double WRITE_STALL_S = 3.0     # a client that is not read any further is closed if it takes nothing for so long
cdef double LINGER_S = 2.0      # how long a closing client may send, or not read, before it is cut off
cdef bytes CANARY = b"pyproxy-canary-"    # and 32 hexadecimal digits, which nobody can know before they are sent
cdef bytes CANARY_REPLY = b"$%d\r\n%b" % (len(CANARY) + 32, CANARY)    # how its answer begins
# What a server may say to all that it is asked.
cdef frozenset NOT_NOW_ECHO = frozenset({b"LOADING", b"MASTERDOWN", b"BUSY"})
cdef bytes OK = b"+OK\r\n"        # most writes are answered with it: no copy of its own for each


cdef inline Py_ssize_t _send(int fd, const char *data, Py_ssize_t size) noexcept nogil:
    """Straight to the socket, without the loop's own queue -> bytes written; -1: the other end has closed it.

    Any other error is the transport's to find out.
    """
    cdef ssize_t written = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if written >= 0:
        return written
    return -1 if errno == EPIPE or errno == ECONNRESET else 0


cdef inline Py_ssize_t _unacknowledged(int fd) noexcept nogil:
    """Bytes that the kernel has and the other end has not acknowledged (tcp(7)): a long request leaves slowly."""
    cdef int count = 0
    return count if ioctl(fd, SIOCOUTQ, &count) == 0 else 0


cdef inline void _reset_on_close(int fd) noexcept nogil:
    """Has the kernel forget what it has not sent when the socket is closed (socket(7), SO_LINGER)."""
    cdef linger at_once
    at_once.l_onoff = 1
    at_once.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once))


cdef inline bint _readable(int fd) noexcept nogil:
    """Whether bytes have come that the loop has not read yet."""
    cdef char byte
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0


cdef int bug(object where) except -1:
    """Says in the log what nobody expected; the exception is the one being handled."""
    try:
        emit(Event.BUG, where=where, trace=traceback.format_exc())
    except Exception:
        pass    # what is done about it matters more than the line
    return 0


cdef int cut_off(Client client) except -1:
    """The last resort where the lane itself failed: its connection ends, and no other."""
    try:
        client.abandon()
    except Exception:
        bug(client)
    return 0


cdef double _simulated = 0.0    # what the time is in a simulation; 0: it is none


def simulate(double now, Py_ssize_t congested_at):
    """From now on it is so late here (s; 0: as late as it is), and a backend is congested from so many bytes on.

    For tests/simulation, where time passes when it is told to.
    """
    global _simulated, OUT_LIMIT
    _simulated = now
    OUT_LIMIT = congested_at


cdef inline double _clock() noexcept nogil:
    cdef timespec t
    if _simulated:
        return _simulated
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


@cython.final
cdef class Key:
    """The bytes of a key where they stand, for mmh3 to read there."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 1, flags)


@cython.final
cdef class Route:
    """What the lane needs to know of a command; made from a `protocol.commands.Command`."""

    def __init__(self, command):
        self.command = command
        self.name = command.name
        self.upper = command.name.upper()
        self.arity = command.arity
        self.plain_key = command.first_key if command.kind == 1 else 0
        self.step = command.step
        self.merge = command.merge if command.kind == 3 else ""
        self.merged_by = command.merge
        self.write = not command.is_read
        self.max_args = MOST_WORDS if command.kind == 5 else 0
        self.names_keys = command.kind in (1, 2, 3, 8)      # plain ones are looked through inside of MULTI
        self.timeout_class = SHARD_WIDE if command.shard_wide else SLOW if command.slow else 0
        # a script can write, and then return what looks like a refusal
        self.replayable = "@scripting" not in command.row.categories.split()


@cython.final
@cython.no_gc
@cython.freelist(4096)
cdef class Pending:
    """A request that waits for its reply: it has a client's place, unless it is a part, and a position in a queue."""


@cython.final
cdef class Withheld:
    """A write that the server refused, and the later answers of its client, until it is known whether it may be
    replayed."""


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Split:
    """A request of several parts: the replies of its shards, until all are here and can be merged."""

    cdef Pending part(self, int shard, Py_ssize_t size):
        """For a part of so many bytes."""
        cdef Pending part = Pending.__new__(Pending)
        part.split = self
        part.shard = shard
        part.size = size
        part.write = self.write
        part.timeout_class = self.route.timeout_class
        return part

    cdef int answered(self, Pending part, bytes frame) except -1:
        if PyBytes_AS_STRING(frame)[0] == c'-':
            # an error reply of a command that touches data means that the server did not do it; unless it is ours
            self._failed(part.shard, frame, not self.write or frame != errors.reply_too_large(self.lane.memory_limit))
        elif self.given_up:
            frame = self._not_kept(part.shard)
        part.split = None
        self.left -= 1
        self.frames[part.shard] = frame
        self._count_buffered(PyBytes_GET_SIZE(frame))
        if self.left == 0:
            self._merge()
        return 0

    cdef int fail(self, Pending part, bytes line, bint unsent) except -1:
        self._failed(part.shard, line, unsent)
        part.split = None
        self.left -= 1
        if self.left == 0:
            self._merge()
        return 0

    cdef int give_up(self) except -1:
        """What has come is thrown away, and so will be what comes: who asked is told so, by the error of a reply that
        is beyond the memory budget."""
        cdef int shard
        cdef object frame
        self.given_up = True
        for shard, frame in enumerate(self.frames):
            if frame is not None and (self.failed is None or shard not in self.failed):
                link = self.lane.links[shard]
                emit(Event.REPLY_DISCARDED, shard=link.name, node=link.node, bytes=len(<bytes>frame),
                     limit=self.lane.memory_limit)
                self.frames[shard] = self._not_kept(shard)
        if self.buffered:
            self._count_buffered(-self.buffered)
        return 0

    cdef bytes _not_kept(self, int shard):
        """What stands for the reply of this shard, which has done its part."""
        cdef bytes line = errors.reply_too_large(self.lane.memory_limit)
        self._failed(shard, line, False)
        return line

    cdef int not_sent(self, Backend backend) except -1:
        """By a fault of ours, whose exception is being handled, a part was not put: the others may be on their way."""
        bug(backend)
        self._failed(backend.shard, errors.not_applied(backend.link.name, backend.link.node, errors.FAULT), True)
        self.left -= 1
        if self.left == 0:
            self._merge()
        return 0

    cdef int _failed(self, int shard, bytes line, bint unsent) except -1:
        if self.failed is None:
            self.failed = {}
        self.failed[shard] = (line, unsent)
        return 0

    cdef int _count_buffered(self, Py_ssize_t size) except -1:
        """What waits here counts as the client's; one that left has taken its count along."""
        cdef Client client = self.place.client
        if client is not None:
            self.buffered += size
            client.buffered_out += size
            self.lane.buffered += size
            if self.lane.buffered > self.lane.memory_limit:
                self.lane.wake()
        return 0

    cdef int _merge(self) except -1:
        cdef Pending place = self.place
        cdef Py_ssize_t size = self.buffered
        cdef bytes frame
        self._count_buffered(-size)
        self.place = None
        try:
            if self.on_answered is not None:
                self.on_answered(self.frames, self.failed)
            elif place is not None and place.client is not None:
                frame = self.lane.merger(self, place, size)
                if frame is not None:
                    self.lane.settle(place, frame)
        except Exception:
            bug(self.route.name)
            if place is not None and place.client is not None:
                cut_off(place.client)    # its answer is lost, and those behind it wait for that
        return 0


@cython.final
cdef class Lane:
    """What all connections of a worker share: the table, the shards, the turn, the memory budget."""

    def __init__(self, loop, dispatch, row, config, int index, int workers):
        """`dispatch(client, route, argv)` -> the Outcome of the command.

        `index` of `workers`: client ids are unique over all workers that run.
        """
        self.loop = loop
        self.dispatch = dispatch
        self.row = row
        self.routes = {}
        self.pools = {}
        self.links = []
        self.replica_links = []
        self.dirty_clients = []
        self.dirty_backends = []
        self.backlog = []
        self.clients = set()
        self.lingering = []
        self.partial_replies = []
        self.limits.args = config.limits.args
        self.limits.bulk = self.bulk_limit = config.limits.bulk_bytes
        self.block_bytes = 1 << 62
        self.limits.inline_bytes = config.limits.inline_bytes
        self.reply_line = 2 * config.limits.bulk_bytes + LINE_ROOM
        self.memory_limit = config.limits.memory_bytes
        self.window_limit = config.limits.inflight
        self.first_typical_reply = REPLIES_BYTES // max(1, min(FIRST_WINDOW, self.memory_limit // WINDOW_MEMORY)) - 1
        self.output_limit = min(config.limits.client_output_bytes, config.limits.memory_bytes)
        self.reply_s = config.timeouts.reply_s
        self.slow_reply_s = config.timeouts.slow_reply_s
        self.silence_s = config.timeouts.silence_s
        self.slow_s = min(self.silence_s, self.slow_reply_s)
        self.canary = config.canary
        self._random = b""
        self.hash32 = mmh3.mmh3_32_uintdigest
        self.key = Key()
        self.next_client_id = index + 1
        self.id_step = workers
        self.now = self.ticked = _clock()
        memset(self.owner, 0, sizeof(self.owner))

    def set_table(self, table):
        """Takes a command table (lower-case name -> Command) into use."""
        routes = {}
        for name, command in table.items():
            route = Route(command)
            routes[name] = routes[name.upper()] = route
        memset(self.route_cache, 0, sizeof(self.route_cache))
        self.routes = routes

    def set_shards(self, links, owner):
        """Takes the links (one a shard) and the owner of each slot (an index into links) into use."""
        cdef int i
        cdef list shards = list(links)
        # whatever is looked up by a slot is looked up unchecked
        if len(owner) != 16384 or not 0 <= min(owner) <= max(owner) < len(shards):
            raise ValueError(f"expected the owners of 16384 slots among {len(shards)} shards")
        for i in range(16384):
            self.owner[i] = owner[i]
        self.links = shards
        self.pools = {key: self._pool(*key) for key in self.pools}
        for client in self.clients:
            (<Client>client).pool = self.pool((<Client>client).proto, (<Client>client).db)

    def review_limits(self):
        """Takes what the servers take as a bound -> whether one argument may be smaller now than it might be before.

        A client that sends more is answered as by that server, before anything of it is sent.
        """
        cdef list links = self.links + self.replica_links
        cdef long long before = self.limits.bulk
        self.limits.bulk = min(self.bulk_limit, min([link.limits.argument for link in links]))
        self.block_bytes = min([link.limits.block for link in links])
        if self.limits.bulk < before:
            for client in self.clients:
                (<Client>client).offered = 0    # what waits there is looked at again
        return self.limits.bulk < before

    @property
    def bulk_bytes(self):
        """Of one argument, at most: the bound of the configuration, or of the server that takes least."""
        return self.limits.bulk

    def fits(self, asked not None):
        """Whether the servers take this Request or Block; what clients send alone was looked at when it was read."""
        cdef bytes frames
        cdef const char *ptr
        cdef const char *end
        cdef Py_ssize_t argc = 0, size = 0, _
        if asked.size <= SAFE_REQUEST_BYTES:
            return True
        if asked.queued and asked.size > self.block_bytes:
            return False
        frames = asked.frame
        ptr = PyBytes_AS_STRING(frames)
        end = ptr + PyBytes_GET_SIZE(frames)
        while ptr < end:
            ptr = header(ptr, &argc)
            for _ in range(argc):
                ptr = header(ptr, &size)
                if size > self.limits.bulk:
                    return False
                ptr += size + 2
        return True

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

    cdef Route route_at(self, const char *name, Py_ssize_t size):
        """As `route`, of a name where it stands; for one of those that clients use all the time nothing is made."""
        cdef unsigned long long word = size
        cdef CachedRoute *cached
        cdef Route route
        cdef Py_ssize_t i
        if size < 1 or size > 7:
            return self.route(PyBytes_FromStringAndSize(name, size))
        for i in range(size):
            word = word << 8 | <unsigned char>name[i]
        cached = &self.route_cache[cache_place(word)]
        if cached.name == word:
            return <Route>cached.route
        route = self.route(PyBytes_FromStringAndSize(name, size))
        if route is not None:
            cached.name = word
            cached.route = <void *>route
        return route

    cpdef double deadline_s(self, int timeout_class):
        """How long a server may take to answer a request of this timeout class."""
        return self.slow_reply_s if timeout_class == SHARD_WIDE else self.slow_s if timeout_class else self.reply_s

    cpdef int timeout_class_of(self, bytes frame, int queued) except -1:
        """Of the slowest command in a request; of a block of `queued` commands with its MULTI and EXEC.

        One of very many words keeps its server busy as one through all keys does.
        """
        cdef const char *ptr = PyBytes_AS_STRING(frame)
        cdef Py_ssize_t argc = 0, length = 0
        cdef int commands = queued + 2 if queued else 1, slowest = 0
        cdef Route route
        while commands:
            ptr = header(header(ptr, &argc), &length)
            route = self.route_at(ptr, length)
            if route is not None and route.timeout_class > slowest:
                slowest = route.timeout_class
            if argc > SLOW_WORDS:
                slowest = SHARD_WIDE
            commands -= 1
            if not commands:
                break       # nobody looks behind the name of the last one, and its words may be very many
            ptr += length + 2
            while argc > 1:
                ptr = header(ptr, &length) + length + 2
                argc -= 1
        return slowest

    cdef int slot(self, const char *key, Py_ssize_t size) except -1:
        cdef const char *opened = <const char *>memchr(key, c'{', size)
        cdef const char *closed
        if opened != NULL:
            closed = <const char *>memchr(opened + 1, c'}', key + size - opened - 1)
            if closed != NULL and closed > opened + 1:
                key = opened + 1
                size = closed - key
        self.key.data = key
        self.key.size = size
        return <unsigned int>self.hash32(self.key, 0) & 16383

    def shard_of(self, bytes key not None):
        """The index of the shard that owns a key."""
        return self.owner[self.slot(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))]

    def forget_replica_links(self, int shard):
        """Nobody has anything out to a replica of this shard any more."""
        cdef Client client
        for each in self.clients:
            client = <Client>each
            if (client.upstreams is not None and shard in client.upstreams
                    and (<Backend>client.upstreams[shard]).link is not self.links[shard]):
                use_upstream(client, <Backend>client.pool[shard])

    cdef bytes nonce(self):
        """The text of one canary."""
        if self._random_used + 16 > len(self._random):
            self._random = os.urandom(4096)
            self._random_used = 0
        self._random_used += 16
        return CANARY + self._random[self._random_used - 16:self._random_used].hex().encode()

    cdef int wake_up(self) except -1:
        """This process did not run for a while: the world may be another."""
        if self.now - self.ticked > SLEPT_S:
            self.ticked = self.now
            self.slept = True
            if self.on_slept is not None:
                self.on_slept(self.now)
        return 0

    cdef void wake(self) noexcept:
        """Asks for a turn; one that could not be asked for is by the next tick."""
        if not self.awake:
            try:
                self.loop.call_soon(self.turn)
                self.awake = True
            except Exception:
                bug("a turn")

    def turn(self):
        """Once a loop turn in which anything happened: what may go on goes on, and what is ready is written."""
        cdef list work
        cdef Client client
        cdef Backend backend
        cdef Py_ssize_t given = 0
        self.awake = False
        self.now = _clock()
        if self.at_rest:
            self.at_rest = False
            self.on_begun()
        if self.now - self.ticked > SLEPT_S:
            self.wake_up()
        if self.backlog:
            work = self.backlog
            self.backlog = []
            for client in work:
                try:
                    client.go_on()
                except Exception:
                    bug(client)
                    cut_off(client)
        # whatever fails in here must not keep the others from being written
        if self.dirty_backends and self.received and self.inflight > 1 and self.now - self.dirty_since < COALESCE_S:
            self.wake()
        elif self.dirty_backends:
            work = self.dirty_backends
            self.dirty_backends = []
            for backend in work:
                if given >= TURN_BYTES:
                    self.dirty_backends.append(backend)
                    continue
                given += backend.unsent_bytes
                try:
                    backend.flush()
                except Exception:
                    bug(backend)
        if self.dirty_clients:
            work = self.dirty_clients
            self.dirty_clients = []
            for client in work:
                try:
                    write_answers(client)
                except Exception:
                    bug(client)
                    cut_off(client)
        self.received = False
        if given >= TURN_BYTES and self.dirty_backends:
            self.wake()
        if self._is_over():
            self._shed()
        if CHECKED_BUILD and self.checker is not None:
            self._check_or_die()

    def check(self):
        """Raises Broken where a queue or a count is not as it must be between two turns; see check.pyx."""
        self.checker(self)

    def _check_or_die(self):
        try:
            self.check()
        except MemoryError:
            pass    # nobody can look now: a test has memory fail
        except Exception:
            bug(self)
            os.abort()      # where it is seen at once: what follows from it would be hard to understand

    cdef bint _is_over(self):
        """Whether the budget is not kept, and closing clients helps: what waits for a server stays there."""
        return self.buffered > self.memory_limit and self.buffered - self.upstream_buffered > self.memory_limit // 4

    def _shed(self):
        """Closes the clients that cost most memory until the budget is kept, with a tenth to spare. Before that, the
        largest answers of several shards are given up of which something has come."""
        cdef Client client
        for _, _, split in sorted(self._partial_splits(), reverse=True):
            if not self._is_over():
                return
            (<Split>split).give_up()
        if not self._is_over():
            return
        for client in sorted(self.clients, key=lambda c: -c.buffered):
            if (self.buffered <= self.memory_limit * 9 // 10
                    or self.buffered - self.upstream_buffered <= self.memory_limit // 4):
                break
            self.shed_clients += 1
            emit(Event.SHED, id=client.id, addr=client.addr, bytes=client.buffered, limit=self.memory_limit)
            client.abandon()

    cdef list _partial_splits(self):
        """The answers of several shards of which something has come, and not all: (bytes, its id, Split)."""
        cdef Backend backend
        cdef Pending item
        cdef dict found = {}
        for link in self.links + self.replica_links:
            for each in link.backends.values():
                backend = <Backend>each
                item = backend.head
                while item is not None:
                    if item.split is not None and item.split.buffered:
                        found[id(item.split)] = item.split
                    item = item.next_queued
        return [((<Split>split).buffered, number, split) for number, split in found.items()]

    def count_partial_message(self, Py_ssize_t change):
        """So many bytes more, or less, have come of messages that are not whole."""
        self.buffered += change
        self.upstream_buffered += change
        self.partial_message_bytes += change
        self.keep_budget()

    cpdef bint has_room(self, Py_ssize_t size) except -1:
        """Whether so many bytes more may be kept of what clients ask for: a quarter of the budget is for answers.

        What a server does not bring to its end is no reason against it: it is given up where the budget needs that."""
        return self.buffered - self.partial_reply_bytes + size <= self.memory_limit // 4 * 3

    cdef int keep_budget(self) except -1:
        """Above the memory budget the largest reply that is not whole is thrown away, and the next, until the budget is
        kept or these are a quarter of it at most: more is for the clients to give, see `_shed`."""
        cdef Wire wire, largest
        while self.buffered > self.memory_limit and self.partial_reply_bytes > self.memory_limit >> 2:
            largest = None
            for each in self.partial_replies:
                wire = <Wire>each
                if largest is None or wire.charged > largest.charged:
                    largest = wire
            largest.discard()
        if self.buffered > self.memory_limit:
            self.wake()
        return 0

    cdef int settle(self, Pending item, bytes frame) except -1:
        """Gives a request its reply, whoever waits for it; a tombstone swallows it."""
        cdef Client client
        cdef Split split = item.split    # a reference: its last part lets go of it
        cdef Py_ssize_t size
        if split is not None:
            return split.answered(item, frame)
        client = item.client
        if client is None or item.done:     # a tombstone, or a place that got its error at the deadline
            return 0
        size = PyBytes_GET_SIZE(frame)
        if client.head is item:
            client.touch()      # first, as only this can fail
        item.reply = frame
        item.request = None
        item.done = True
        client.buffered_out += size
        self.buffered += size
        client.inflight -= 1
        client.inflight_bytes -= item.size
        self.inflight -= 1
        if size > client.typical_reply:
            client.typical_reply = size
        else:
            client.typical_reply -= (client.typical_reply - size) >> 3
        if self.buffered > self.memory_limit:
            self.wake()
        return 0

    def heartbeat(self):
        """It runs, and has not slept: so much of a tick as is due while nothing has begun."""
        self.now = _clock()
        self.wake_up()
        self.ticked = self.now
        self.publish()

    def tick(self):
        """Every few milliseconds: deadlines, silence, lingering clients, the numbers of the shared page."""
        cdef Backend backend
        cdef Client client
        cdef bint busy
        self.now = _clock()
        self.is_late = self.slept or self.now - self.ticked > LATE_S
        self.wake_up()
        self.slept = False
        self.ticked = self.now
        for link in self.links + self.replica_links:
            busy = link.busy_until > self.now
            for backend in link.backends.values():
                busy = busy or backend.shard_wide
            for backend in list(link.backends.values()):
                try:
                    backend.expire(self.now, busy)
                except Exception:
                    bug(backend)
        if self.dirty_clients or self.dirty_backends or self.backlog:
            self.wake()
        if self.lingering:
            for client in list(self.lingering):
                if client.transport is None or has_lingered(client):
                    self.lingering.remove(client)
        self.publish()
        if CHECKED_BUILD and self.checker is not None:
            self._check_or_die()

    @property
    def has_deadlines(self):
        """Whether a server owes an answer, or a client is being closed: what must be looked at every few milliseconds.

        Not who waits in a conversation (BRPOP), is subscribed, or has sent half a request: for hours, as it may be.
        """
        if self.lingering or self.draining:
            return True
        for link in self.links + self.replica_links:
            for backend in link.backends.values():
                if (<Backend>backend).count or (<Backend>backend).replay_queue or (<Backend>backend).waiting:
                    return True
        return False

    @property
    def unanswered_requests(self):
        """How many requests are out or wait to be sent on the connections that clients share, tombstones included."""
        cdef Py_ssize_t unanswered_requests = 0
        for link in self.links + self.replica_links:
            for backend in link.backends.values():
                unanswered_requests += (<Backend>backend).count - (<Backend>backend).canaries
        return unanswered_requests

    def check_unfinished(self, double limit_s):
        """Closes clients whose unfinished request is older than `limit_s`, and those that write and never read."""
        cdef Client client
        for client in list(self.clients):
            if is_stuck(client):
                emit(Event.CLIENT_OUTPUT,
                     id=client.id, addr=client.addr, bytes=client.buffered, limit=self.output_limit)
                client.abandon()
                continue
            if client.unfinished_since and not client.parked and self.now - client.unfinished_since > limit_s:
                emit(Event.CLIENT_UNFINISHED, id=client.id, addr=client.addr, bytes=client.buffered_in)
                client.finish()
                write_answers(client)

    cdef int mark_connection_lost(self, int shard) except -1:
        """Its primary's connection is gone: whether the replicas have what was written on it cannot be found out."""
        cdef unsigned long long bit = <unsigned long long>1 << (shard & 63)
        for client in self.clients:
            (<Client>client).lost_shards |= (<Client>client).written_shards & bit
        return 0

    cpdef count_accepted(self, int change):
        """Clients that were accepted and are not among the clients yet count like those that are."""
        self.accepted += change
        self.row[_CLIENTS] = len(self.clients) + self.accepted

    def publish(self):
        row = self.row
        self.count_accepted(0)
        row[_HEARTBEAT] = <long long>(self.now * 1e6)
        row[_COMMANDS] = self.commands
        row[_ERRORS] = self.errors
        row[_BYTES_IN] = self.bytes_in
        row[_BYTES_OUT] = self.bytes_out
        row[_INFLIGHT] = self.inflight
        row[_BUFFERED] = self.buffered
        row[_SHED] = self.shed_clients
        row[_TIMEOUTS] = self.timeouts
        row[_UNCERTAIN] = self.uncertain
        row[_PROTOCOL_ERRORS] = self.protocol_errors
        row[_SPLITS] = self.splits
        row[_OUT_OF_STEP] = self.out_of_step

    def drain(self):
        """Nothing new is begun; each client is closed when what it has out is answered."""
        cdef Client client
        self.draining = True
        for client in list(self.clients):
            client.parked |= Park.DRAIN
            client.touch()
            if client.conversation is not None:
                client.conversation.drain()


cdef int _CLIENTS = INDEX["clients"], _HEARTBEAT = INDEX["heartbeat_us"], _COMMANDS = INDEX["commands"]
cdef int _ERRORS = INDEX["errors"], _BYTES_IN = INDEX["bytes_in"], _BYTES_OUT = INDEX["bytes_out"]
cdef int _INFLIGHT = INDEX["inflight"], _BUFFERED = INDEX["buffered_bytes"], _SHED = INDEX["shed"]
cdef int _TIMEOUTS = INDEX["timeouts"], _UNCERTAIN = INDEX["uncertain"]
cdef int _PROTOCOL_ERRORS = INDEX["protocol_errors"], _SPLITS = INDEX["splits"], _OUT_OF_STEP = INDEX["out_of_step"]


cdef object _by_age = attrgetter("sent_at")


# One compiled module, as its classes know each other; a file for each side.
include "client.pxi"
include "client_upstream.pxi"
include "client_output.pxi"
include "backend.pxi"
include "wire.pxi"
include "replay.pxi"
