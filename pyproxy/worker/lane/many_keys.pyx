# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Commands of very many keys, or of very many bytes: cut and sent a slice at a time.  Compiled.

A split command costs time for each of its keys, and for each byte that is copied.  Nobody else is served meanwhile, so
beyond a bound the work is done in slices (slices.py): the client is parked like one with a conversation until the
parts are sent, and from then on it is a split like any other; its answers, when all are here, become one in the
same way (merge.pyx).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memcpy

from pyproxy.worker.lane.lane cimport (
    REPLAY_BYTES, SAFE_REQUEST_BYTES, Backend, Client, Lane, Pending, Route, Split, bug, choose_backend)
from pyproxy.worker.lane.sending cimport admit_all, new_split_at, put_uncopied, send_all
from pyproxy.worker.lane.share cimport Share, begin_parts, first_key, past, share_out
from pyproxy.worker.lane.steps cimport BYTES_OF_PART, MOVED_OF_PART, SHARED_OF_PART, STEP_PARTS

from protocol import errors
from pyproxy.worker.lane.outcome import NOT_NOW


@cython.final
cdef class SlicedSplit:
    """A command of very many keys until its parts are sent: what its client is at, and the work that is done for it.

    For the client it is what a conversation is, see `Client.converse`.
    """

    cdef Client client              # None: it is over
    cdef Route route
    cdef object whole               # the bytes or bytearray in which it came; nobody else changes it
    cdef bint is_alone_in_buffer      # there is nothing else in it
    cdef Py_ssize_t size
    cdef const char *first          # key
    cdef const char *next_key        # the key that is next, and how much of it was copied
    cdef Py_ssize_t copied
    cdef Py_ssize_t keys
    cdef Py_ssize_t done            # of the keys
    cdef bytes owners
    cdef Share *shares
    cdef int shards
    cdef int involved
    cdef list frames                # for each shard its part, or None; None: no part has been begun
    cdef list links                 # to which the shares were made out
    cdef Py_ssize_t charged
    cdef bint at_door               # it waits there, or at a gate
    cdef readonly bint waits        # for what may never come: it does not

    def __dealloc__(self):
        PyMem_RawFree(self.shares)

    def __iter__(self):
        return self

    def __next__(self):
        """A step -> how many parts were done, as slices.py counts them."""
        cdef Py_ssize_t parts = 0
        if self.client is not None:
            try:
                parts = self._step()
            except Exception:
                self._on_fault()
        if parts == 0:
            raise StopIteration
        return parts

    cdef int share_anew(self) except -1:
        """From the first key on."""
        cdef Lane lane = self.client.lane
        self.links = lane.links
        self.shards = <int>len(lane.links)
        PyMem_RawFree(self.shares)
        self.shares = <Share *>PyMem_RawCalloc(self.shards, sizeof(Share))
        if self.shares == NULL:
            raise MemoryError
        self.next_key = self.first
        self.done = self.involved = 0
        self.frames = None
        return 0

    cdef Py_ssize_t _step(self) except -1:
        cdef Py_ssize_t until
        if self.links is not self.client.lane.links:
            self.share_anew()       # the shards are others
        if self.frames is None and self.done < self.keys:
            until = min(self.keys, self.done + STEP_PARTS * SHARED_OF_PART)
            self.involved += share_out(
                self.client.lane, self.route, &self.next_key, self.owners, self.done, until, self.shares)
            until -= self.done
            self.done += until
            return max(1, until // SHARED_OF_PART)
        if self.frames is None:
            if self.involved == 1 and self.is_alone_in_buffer:
                self.frames = [self.whole if self.shares[shard].keys else None for shard in range(self.shards)]
            else:
                self.frames = begin_parts(self.route, self.shares, self.shards)
                self.next_key = self.first
                self.done = 0
                self._charge(self.size)
            return 1
        if self.done < self.keys:
            return self._copy()
        self._ask()
        return 0

    cdef Py_ssize_t _copy(self) except -1:
        """More of the keys, with their values, into the parts."""
        cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(self.owners)
        cdef Py_ssize_t left = STEP_PARTS * BYTES_OF_PART, begun = self.done, n
        cdef Py_ssize_t until = min(self.keys, begun + STEP_PARTS * MOVED_OF_PART)
        cdef const char *end
        cdef Share *share
        while self.done < until and left > 0:
            share = &self.shares[order[self.done]]
            end = past(self.next_key, self.route.step)
            n = end - self.next_key - self.copied
            if n > left:
                n = left
            memcpy(share.cursor, self.next_key + self.copied, n)
            share.cursor += n
            left -= n
            self.copied += n
            if self.next_key + self.copied == end:
                self.next_key = end
                self.copied = 0
                self.done += 1
        if self.done == self.keys:
            self._charge(-<Py_ssize_t>len(self.whole))
            self.whole = None
        return max(1, (self.done - begun) // MOVED_OF_PART, STEP_PARTS - left // BYTES_OF_PART)

    cdef int _ask(self) except -1:
        """Sends the parts, if all doors and gates are open; `go_on` asks again."""
        cdef Client client = self.client
        cdef list asked = [shard for shard in range(self.shards) if self.shares[shard].keys]
        cdef list backends = list(client.pool)
        cdef Backend backend
        cdef bint admitted
        if self.involved == 1:
            backend = choose_backend(client, <Backend>backends[asked[0]], self.route.write, self.size)
            backends[asked[0]] = backend
            admitted = backend is not None
        else:
            admitted = admit_all(client, self.route.write, asked, self.size, backends)
        if not admitted and client.lane.declined is NOT_NOW:
            self.at_door = True
        elif not admitted:
            self._end(<bytes?>client.lane.declined)
        elif self.involved == 1:
            self._send_whole(<Backend>backends[asked[0]], self.frames[asked[0]])
        else:
            self._send_parts(backends)
        return 0

    cdef int _send_whole(self, Backend backend, object frame) except -1:
        cdef Client client = self.client
        cdef Pending place = client.head
        cdef Py_ssize_t size = len(frame)
        place.write = self.route.write
        place.timeout_class = self.route.timeout_class
        place.shard = backend.shard
        if size <= REPLAY_BYTES if place.write else size <= SAFE_REQUEST_BYTES:
            if not place.write or (backend.replays_writes and self.route.replayable):
                place.request = bytes(frame)
        put_uncopied(backend, place, frame, size)
        self._sent(place)
        return 0

    cdef int _send_parts(self, list backends) except -1:
        cdef Client client = self.client
        cdef Pending place = client.head
        cdef list frames = self.frames
        cdef Split split = new_split_at(client, self.route, self.owners, self.involved, place)
        place.shard = -1
        self._sent(place)
        send_all(backends, split, frames)
        return 0

    cdef int _sent(self, Pending place) except -1:
        """It is a request like any other from now on."""
        cdef Client client = self.client
        place.size = self.size
        client.inflight_bytes += self.size
        self._release()
        client.conversation_sent()
        return 0

    cdef int _end(self, bytes line) except -1:
        cdef Client client = self.client
        self._release()
        client.answer(line)
        return 0

    cdef int _release(self) except -1:
        self._charge(-self.charged)
        self.client = None
        self.whole = None
        self.frames = None
        return 0

    cdef int _charge(self, Py_ssize_t size) except -1:
        """What is here counts as the client's."""
        self.charged += size
        self.client.charge(size)
        return 0

    cdef int _on_fault(self) except -1:
        """Our own fault, whose exception is being handled: it ends this connection and no other."""
        cdef Client client = self.client
        bug(self)
        if client is not None:
            self._end(errors.internal_error())
            client.finish()
        return 0

    # --- what the client's connection says ---

    def start(self):
        """In a turn of its own: the client is done with what it read by then."""
        if self.client is not None:
            self.client.lane.slices.run(self)

    def go_on(self):
        """What was asked and had to wait may be asked again."""
        if self.at_door:
            self.at_door = False
            self.client.lane.loop.call_soon(self.start)     # who says so is in the middle of something

    def left(self):
        self._release()

    def half_closed(self):
        """What it sent before is done and answered."""

    def drain(self):
        """As `half_closed`."""

    def refuse(self, bytes line not None):
        self._end(line)

    def __repr__(self):
        return f"<SlicedSplit {self.route.name.decode()} of {self.keys} keys of {self.client!r}>"


cdef bint begin_sliced(Client client, Route route, const char *frame, Py_ssize_t size, Py_ssize_t keys) except -1:
    """As `begin`, for one of very many keys or bytes."""
    cdef SlicedSplit sliced = SlicedSplit.__new__(SlicedSplit)
    cdef Lane lane = client.lane
    cdef bytearray donated
    if not client.settled():
        return False
    sliced.client = client
    sliced.route = route
    sliced.size = size
    sliced.keys = keys
    sliced.owners = PyBytes_FromStringAndSize(NULL, keys * 2)
    # What else is in it is copied by who reads on.
    if type(lane.donated) is bytearray and len(<bytearray>lane.donated) <= 2 * size:
        donated = <bytearray>lane.donated
        lane.donated = None
        sliced.whole = donated
        sliced.is_alone_in_buffer = len(donated) == size
    else:
        sliced.whole = PyBytes_FromStringAndSize(frame, size)
        sliced.is_alone_in_buffer = True
        frame = PyBytes_AS_STRING(<bytes>sliced.whole)
    sliced.first = first_key(frame)
    sliced.share_anew()
    client.converse(sliced)
    sliced._charge(len(sliced.whole) + keys * 2)
    lane.loop.call_soon(sliced.start)
    return True
