# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests of very many words, or very large ones, that leave the lane: looked through a slice at a time.  Compiled.

What costs something for each word, or for each byte, is done here before the command is taken, whatever the command:
its bytes are taken over, its words found, the shards of its keys, and inside of MULTI the parts of what is cut.
Meanwhile the client is parked before it; then the command is offered again, with its `Words`.  All that is made of it
counts as the client's until the command has been taken, or the conversation that took it is over
(`Client.command_bytes`).
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memcpy

from protocol.scan cimport Words
from pyproxy.worker.lane.lane cimport Client, Lane, Park, Route, bug
from pyproxy.worker.lane.share cimport Share, begin_parts, count_keys, first_key, past, share_out
from pyproxy.worker.lane.steps cimport BYTES_OF_PART, FOUND_OF_PART, MOVED_OF_PART, SHARED_OF_PART, STEP_PARTS

from protocol import errors, request
from protocol.keyspecs import BadKeys, Places


@cython.final
cdef class Placed:
    """Where the keys of a request belong: `shards`, of `count` keys, while the shards are these `links`."""

    cdef readonly list links
    cdef readonly Py_ssize_t count
    cdef readonly frozenset shards
    cdef readonly bytes owners      # of what is cut: as `Split.order`, and the Request of each shard; else None
    cdef readonly dict parts


@cython.final
cdef class Preparation:
    """One such request until all of that is done; work for slices.py."""

    cdef Client client
    cdef Route route
    cdef bytes frame
    cdef Py_ssize_t size
    cdef Py_ssize_t copied
    cdef Py_ssize_t charged
    cdef Words words
    cdef bint all_found
    cdef object runs                # of positions: those whose keys are not looked at yet; None: nobody has asked
    cdef Py_ssize_t keys
    cdef Py_ssize_t done            # of the keys, or of the last run
    cdef set seen
    cdef list links
    cdef bint is_cut
    cdef bytes owners
    cdef Share *shares
    cdef const char *next_key
    cdef list frames

    def __dealloc__(self):
        PyMem_RawFree(self.shares)

    def __iter__(self):
        return self

    def __next__(self):
        """A step -> how many parts were done, as slices.py counts them."""
        cdef Client client = self.client
        cdef Py_ssize_t parts
        if client.preparation is not self:
            raise StopIteration     # it has gone, or begins nothing more
        try:
            parts = self._step()
            self.charge()
        except Exception:
            bug(self)
            client.put_answer(errors.internal_error())
            client.finish()
            raise StopIteration from None
        if parts == 0:
            client.preparation = None
            client.words = self.words
            client.unpark(Park.WORDS)
            raise StopIteration
        return parts

    def costs(self):
        """Bytes of what is there: the copy, where the words stand, the shards of the keys, the parts."""
        cdef Py_ssize_t size = self.size
        if self.words is not None:
            size += len(self.words) * <Py_ssize_t>sizeof(Py_ssize_t)
        if self.owners is not None:
            size += len(self.owners)
        for frame in self.frames or ():
            if frame is not None:
                size += len(<bytes>frame)
        return size

    cdef int charge(self) except -1:
        cdef Py_ssize_t size = self.costs()
        if size != self.charged:
            self.client.charge_command(size - self.charged)
            self.charged = size
        return 0

    cdef Py_ssize_t _step(self) except -1:
        cdef Py_ssize_t n
        if self.copied < self.size:
            n = min(self.size - self.copied, STEP_PARTS * BYTES_OF_PART)
            memcpy(
                PyBytes_AS_STRING(self.frame) + self.copied, PyByteArray_AS_STRING(self.client.inbuf) + self.copied, n)
            self.copied += n
            return max(1, n // BYTES_OF_PART)
        if self.words is None:
            self.words = Words(self.frame)
        if not self.all_found:
            self.all_found = self.words.find(STEP_PARTS * FOUND_OF_PART)
            return STEP_PARTS
        if self.runs is None:
            self._find_keys()
            return 1
        if self.links is not self.client.lane.links:
            self._begin_to_place()      # the shards are others
        if self.is_cut:
            return self._cut()
        if self.runs:
            return self._place()
        return self._placed()

    cdef int _find_keys(self) except -1:
        cdef object command = self.route.command, places = ()
        if command.subcommands:
            command = command.subcommands.get(self.words[1].lower())
        if command is not None and command.kind != 1 and command.arity_ok(len(self.words)):
            try:
                places = command.keys(self.words)
            except BadKeys:
                pass    # who takes the command says so
        self.is_cut = (bool(self.route.merge) and len(places) > 0
                       and count_keys(self.route, PyBytes_AS_STRING(self.frame)) > 0)
        self.keys = len(places)
        self.runs = list(places.runs) if isinstance(places, Places) else [places] if places else []
        self._begin_to_place()
        return 0

    cdef int _begin_to_place(self) except -1:
        self.links = self.client.lane.links
        self.done = 0
        self.seen = set()
        if self.is_cut:
            self.keys = count_keys(self.route, PyBytes_AS_STRING(self.frame))
            self.owners = PyBytes_FromStringAndSize(NULL, self.keys * 2)
            self.next_key = first_key(PyBytes_AS_STRING(self.frame))
            self.frames = None
            PyMem_RawFree(self.shares)
            self.shares = <Share *>PyMem_RawCalloc(len(self.links), sizeof(Share))
            if self.shares == NULL:
                raise MemoryError
        return 0

    cdef Py_ssize_t _place(self) except -1:
        """The shards of more keys."""
        cdef Lane lane = self.client.lane
        cdef object run = self.runs[0]
        cdef Py_ssize_t i, size = 0, count = len(run), until = min(count, self.done + STEP_PARTS * SHARED_OF_PART)
        cdef Py_ssize_t first = run[0] if count else 0, step = run[1] - first if count > 1 else 1, last = -1
        cdef const char *key
        cdef int shard
        for i in range(self.done, until):
            key = self.words.word(first + i * step, &size)
            shard = lane.owner[lane.slot(key, size)]
            if shard != last:
                self.seen.add(shard)
                last = shard
        self.done = until
        if self.done == count:
            self.runs.pop(0)
            self.done = 0
        return STEP_PARTS

    cdef Py_ssize_t _cut(self) except -1:
        """More of a command that is cut into a part for each shard; 0: it is done."""
        cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(self.owners)
        cdef Py_ssize_t until, left, begun = self.done
        cdef int shard, shards = <int>len(self.links)
        cdef const char *end
        cdef object of_frame = request.Request.of_accepted
        if self.frames is None and self.done < self.keys:
            until = min(self.keys, self.done + STEP_PARTS * SHARED_OF_PART)
            share_out(self.client.lane, self.route, &self.next_key, self.owners, self.done, until, self.shares)
            self.done = until
            return STEP_PARTS
        if self.frames is None:
            self.seen = {shard for shard in range(shards) if self.shares[shard].keys}
            if len(self.seen) == 1:
                return self._placed()
            self.frames = begin_parts(self.route, self.shares, shards)
            self.next_key = first_key(PyBytes_AS_STRING(self.frame))
            self.done = 0
            return 1
        if self.done < self.keys:
            until = min(self.keys, self.done + STEP_PARTS * MOVED_OF_PART)
            left = STEP_PARTS * BYTES_OF_PART
            while self.done < until and left > 0:
                end = past(self.next_key, self.route.step)
                memcpy(self.shares[order[self.done]].cursor, self.next_key, end - self.next_key)
                self.shares[order[self.done]].cursor += end - self.next_key
                left -= end - self.next_key
                self.next_key = end
                self.done += 1
            return max(1, (self.done - begun) // MOVED_OF_PART, STEP_PARTS - left // BYTES_OF_PART)
        self._placed()
        (<Placed>self.words.placed).owners = self.owners
        (<Placed>self.words.placed).parts = {
            shard: of_frame(self.frames[shard]) for shard in range(shards) if self.frames[shard] is not None}
        return 0

    cdef Py_ssize_t _placed(self) except -1:
        cdef Placed placed = Placed.__new__(Placed)
        placed.links = self.links
        placed.count = self.keys
        placed.shards = frozenset(self.seen)
        self.words.placed = placed
        return 0

    def start(self):
        self.client.lane.slices.run(self)

    def __repr__(self):
        return f"<Preparation {self.route.name.decode()} of {self.size} bytes of {self.client!r}>"


cdef bint prepare(Client client, Route route, const char *frame, Py_ssize_t size) except -1:
    """Parks the client before this command, until its words are there.  False, see Splitter."""
    cdef Preparation preparation = Preparation.__new__(Preparation)
    preparation.client = client
    preparation.route = route
    preparation.size = size
    preparation.frame = PyBytes_FromStringAndSize(NULL, size)
    client.preparation = preparation
    client.parked |= Park.WORDS
    preparation.charge()
    # In a turn of its own: then the bytes are at the beginning of `inbuf`.
    client.lane.loop.call_soon(preparation.start)
    return False
