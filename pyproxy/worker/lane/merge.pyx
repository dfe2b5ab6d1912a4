# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The one answer to a command that several shards were asked.  Hot path; compiled.

The answer to MGET is put together by walking the keys in the order of the request and taking the next element of each
one's shard.  The answers to a transaction, and any answer that is very large, are put together a slice at a time.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.string cimport memcpy

from protocol.scan cimport FRAME, ReplyScan, counted, scan_reply, short_bulk, short_count
from pyproxy.worker.lane.encode cimport digits, put_header
from pyproxy.worker.lane.lane cimport Client, Lane, Pending, Split, bug, cut_off
from pyproxy.worker.lane.steps cimport BYTES_OF_PART, MOVED_OF_PART, STEP_PARTS, SLICE_ABOVE_BYTES, SLICE_ABOVE_KEYS

from time import monotonic

from protocol import errors

cdef double SLICE_S = 0.004     # of one turn, for the answers to one transaction


cdef bytes merged(Split split, Pending place, Py_ssize_t size):
    """The one answer to a split request whose parts have all been answered, as a reply frame.

    `size`: bytes of the answers. None: it takes more than a turn, and `place` will get it.
    """
    cdef str how = split.route.merged_by
    cdef Assembly assembly
    if split.make_answer is not None:
        return _answered(split)
    if split.failed:
        return _failure(split) if split.commands is None else errors.transaction_discarded(_failure(split))
    if size > SLICE_ABOVE_BYTES and split.lane.buffered + 2 * size > split.lane.memory_limit:
        return _beyond_budget(split)    # what came, and what is made of it, are there at the same time
    try:
        if split.commands is not None:
            assembly = Assembly(split.lane, split.commands, split.frames, split.write)
            if not assembly.step():
                assembly.place = place
                split.lane.loop.call_soon(assembly.go_on)
            return assembly.reply
        if how == "gather":
            if size > SLICE_ABOVE_BYTES or PyBytes_GET_SIZE(split.order) > 2 * SLICE_ABOVE_KEYS:
                if place is not None:
                    merge_sliced(split, place, size)
                    return None
            return _gather(split)
        if how == "sum":
            return _sum(split)
        if how == "concat":
            if size > SLICE_ABOVE_BYTES and place is not None:
                merge_sliced(split, place, size)
                return None
            return _concat(split)
        for frame in split.frames:
            if frame is not None and frame != b"+OK\r\n":
                raise ValueError
        return b"+OK\r\n"
    except ValueError:
        return _unexpected(split.lane, split.route.name, split.write)


cdef bytes _beyond_budget(Split split):
    split.give_up()
    split.lane.errors += 1
    return errors.reply_too_large(split.lane.memory_limit)


cdef bytes _unexpected(Lane lane, bytes name, bint write):
    """The answers do not fit together."""
    lane.errors += 1
    if write:
        lane.uncertain += 1
    return errors.unexpected_part(name, write)


cdef bytes _failure(Split split):
    """One part failed: never a value; for a write, which shards may have applied theirs."""
    lines = {line for line, _ in split.failed.values()}
    asked = [shard for shard, frame in enumerate(split.frames) if frame is not None or shard in split.failed]
    is_of_all = len(asked) == len(split.failed) > 1     # nobody did anything: it is about the command, not a shard
    if len(lines) == 1 and (is_of_all or errors.reply_too_large(split.lane.memory_limit) in lines):
        return lines.pop()
    names = [link.name for link in split.lane.links]
    shard = min(split.failed)
    applied = []
    if split.write:
        applied = [names[other] for other in asked
                   if other != shard and not split.failed.get(other, (b"", False))[1]]
        if applied:
            split.lane.uncertain += 1
    return errors.part_failed(names[shard], split.failed[shard][0], applied)


cdef bytes _answered(Split split):
    """The answer of the one shard, as it is to be said to the client."""
    if split.failed:
        ((line, _),) = split.failed.values()
        return line
    (frame,) = [frame for frame in split.frames if frame is not None]
    return split.make_answer(frame)


cdef bytes _sum(Split split):
    """The counts of all parts; each is a number of keys, so far below 64 bits."""
    cdef bytes frame, text
    cdef object total = 0
    for value in split.frames:
        if value is None:
            continue
        frame = value
        text = frame[1:PyBytes_GET_SIZE(frame) - 2]
        if not frame.startswith(b":") or not text.isdigit() or len(text) > 15:
            raise ValueError
        total += int(text)
    return b":%d\r\n" % total


cdef bytes _concat(Split split):
    cdef Py_ssize_t count = 0, body = 0
    cdef list bodies = []
    for frame in split.frames:
        count += count_elements(<bytes?>frame, &body)
        bodies.append((<bytes>frame)[body:])
    return b"*%d\r\n" % count + b"".join(bodies)


cdef bytes _gather(Split split):
    """The elements of all parts in the order of the request's keys, as they came."""
    cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(split.order)
    cdef Py_ssize_t keys = PyBytes_GET_SIZE(split.order) // 2, i, total = 0, length
    cdef int shard, shards = <int>len(split.frames)
    cdef bytes out
    cdef char *to
    cdef const char **cursors = open_arrays(split.frames, keys, &total)
    try:
        out = PyBytes_FromStringAndSize(NULL, digits(keys) + 3 + total)
        to = put_header(PyBytes_AS_STRING(out), c'*', keys)
        for i in range(keys):
            shard = order[i]
            length = element_size(cursors[shard], cursors[shards + shard])
            memcpy(to, cursors[shard], length)
            to += length
            cursors[shard] += length
        return out
    finally:
        PyMem_RawFree(cursors)


# --- a slice at a time ------------------------------------------------------------------------------------------------


@cython.final
cdef class Assembly:
    """The answers to the commands of a transaction, in their order, put together a slice at a time."""

    cdef readonly bytes reply       # once `step` has said that it is done
    cdef Lane lane
    cdef list commands
    cdef list frames
    cdef Py_ssize_t *offsets        # of each shard: where its next answer begins in its frame
    cdef Py_ssize_t done            # of the commands
    cdef bytearray out
    cdef Pending place              # who is to get it; None: whoever calls `step`
    cdef bint write

    def __init__(self, Lane lane not None, list commands not None, list frames not None, bint write):
        """`commands`, `write`: as for `execute`; `frames`: what the shards answered, by shard.

        ValueError if one of these is no array.
        """
        cdef Py_ssize_t body = 0
        cdef int shard
        self.lane = lane
        self.write = write
        self.commands = commands
        self.frames = frames
        self.offsets = <Py_ssize_t *>PyMem_RawCalloc(len(frames) + 1, sizeof(Py_ssize_t))
        if self.offsets == NULL:
            raise MemoryError
        for shard in range(<int>len(frames)):
            if frames[shard] is not None:
                count_elements(<bytes>frames[shard], &body)
                self.offsets[shard] = body
        self.out = bytearray(b"*%d\r\n" % len(commands))

    def __dealloc__(self):
        PyMem_RawFree(self.offsets)

    def step(self):
        """Goes on for a moment -> whether it is done."""
        cdef double until = monotonic() + SLICE_S
        cdef Py_ssize_t count = len(self.commands)
        cdef int shard
        try:
            while self.done < count:
                self._one(self.commands[self.done])
                self.done += 1
                if not self.done & 31 and monotonic() > until:
                    return False
            for shard in range(<int>len(self.frames)):
                if self.frames[shard] is not None and self.offsets[shard] != len(<bytes>self.frames[shard]):
                    raise ValueError
            self.reply = bytes(self.out)
        except ValueError:
            self.reply = _unexpected(self.lane, b"exec", self.write)
        return True

    def go_on(self):
        """In a later turn; `place` gets the answer, unless its client has gone."""
        cdef Client client = self.place.client
        if client is None:
            return
        try:
            if self.step():
                self.lane.settle(self.place, self.reply)
            else:
                self.lane.loop.call_soon(self.go_on)
        except Exception:
            bug(client)
            cut_off(client)     # its answer is lost, and those behind it wait for that

    cdef int _one(self, command) except -1:
        """The answer to one command."""
        cdef Split split
        cdef Py_ssize_t length
        cdef int shard
        cdef bytes frame
        if type(command) is int:
            shard = command
            length = self._next_length(shard)
            self._append(PyBytes_AS_STRING(<bytes>self.frames[shard]) + self.offsets[shard], length)
            self.offsets[shard] += length
            return 0
        if type(command) is bytes:
            frame = command
        elif len(<tuple>command) == 2:
            make, shards = command
            frame = make([self._next_answer(shard) for shard in shards])
        else:
            route, owners, shards = command
            split = Split.__new__(Split)
            split.lane = self.lane
            split.route = route
            split.write = split.route.write
            if type(owners) is bytes:
                split.order = owners
            else:
                split.make_answer = owners
            split.frames = [None] * len(self.frames)
            for shard in shards:
                frame = self._next_answer(shard)
                split.frames[shard] = frame
                if frame.startswith(b"-"):
                    split._failed(shard, frame, True)
            frame = merged(split, None, 0)
        self._append(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        return 0

    cdef Py_ssize_t _next_length(self, int shard) except -1:
        """How long the next answer of a shard is."""
        cdef bytes frame = self.frames[shard]
        cdef Py_ssize_t length = 0, left
        cdef ReplyScan state
        if frame is None:
            raise ValueError
        state.left = 0
        state.pos = 0
        left = PyBytes_GET_SIZE(frame) - self.offsets[shard]
        if (left <= 0 or scan_reply(PyBytes_AS_STRING(frame) + self.offsets[shard], left, &state, True, left, &length)
                != FRAME):
            raise ValueError
        return length

    cdef bytes _next_answer(self, int shard):
        """The next answer of a shard."""
        cdef Py_ssize_t length = self._next_length(shard), ptr = self.offsets[shard]
        self.offsets[shard] += length
        return (<bytes>self.frames[shard])[ptr:ptr + length]

    cdef int _append(self, const char *p, Py_ssize_t n) except -1:
        cdef Py_ssize_t size = len(self.out)
        PyByteArray_Resize(self.out, size + n)
        memcpy(PyByteArray_AS_STRING(self.out) + size, p, n)
        return 0


@cython.final
cdef class Merging:
    """The answers of all shards, until they are one; work for slices.py."""

    cdef Split split
    cdef Pending place
    cdef bytes out
    cdef char *to
    cdef const char *piece          # what is being copied, and how much of it is left
    cdef Py_ssize_t left
    cdef Py_ssize_t done            # elements, where each is looked for; else frames
    cdef Py_ssize_t charged
    cdef const char **cursors       # of the shards, see `open_arrays`; NULL: whole frames follow each other

    def __dealloc__(self):
        PyMem_RawFree(self.cursors)

    def __iter__(self):
        return self

    def __next__(self):
        """A step -> how many parts were done, as slices.py counts them."""
        cdef Py_ssize_t parts = 0
        cdef Client client = self.place.client
        if client is None:      # it has gone, and took along what was counted
            raise StopIteration
        try:
            parts = self._step()
        except ValueError:
            self.out = errors.unexpected_part(self.split.route.name)
            client.lane.errors += 1
        except Exception:
            bug(self.split.route.name)
            client.abandon()    # its answer is lost, and those behind it wait for that
            raise StopIteration from None
        if parts == 0:
            client.charge(-self.charged)
            client.lane.settle(self.place, self.out)
            raise StopIteration
        return parts

    cdef Py_ssize_t _step(self) except -1:
        """0: it is done."""
        cdef Py_ssize_t elements = STEP_PARTS * MOVED_OF_PART, left = STEP_PARTS * BYTES_OF_PART, n
        while elements and left:
            if self.left == 0:
                if not self._next_piece():
                    break
                elements -= 1
            n = min(self.left, left)
            memcpy(self.to, self.piece, n)
            self.to += n
            self.piece += n
            self.left -= n
            left -= n
        elements = STEP_PARTS * MOVED_OF_PART - elements
        left = STEP_PARTS * BYTES_OF_PART - left
        return max(1, elements // MOVED_OF_PART, left // BYTES_OF_PART) if elements or left else 0

    cdef bint _next_piece(self) except -1:
        """Finds what is copied next -> whether there is anything."""
        cdef Split split = self.split
        cdef Py_ssize_t body = 0, shards = len(split.frames)
        cdef int shard
        cdef bytes frame
        if self.cursors != NULL:
            if self.done < PyBytes_GET_SIZE(split.order) // 2:
                shard = (<const unsigned short *>PyBytes_AS_STRING(split.order))[self.done]
                self.left = element_size(self.cursors[shard], self.cursors[shards + shard])
                self.piece = self.cursors[shard]
                self.cursors[shard] += self.left
                self.done += 1
        else:
            while self.left == 0 and self.done < shards:
                frame = <bytes>split.frames[self.done]
                count_elements(frame, &body)
                self.piece = PyBytes_AS_STRING(frame) + body
                self.left = PyBytes_GET_SIZE(frame) - body
                self.done += 1
        return self.left > 0


cdef int merge_sliced(Split split, Pending place, Py_ssize_t size) except -1:
    """The answer that is made of so many bytes is settled when it is whole.  ValueError as for `merged`."""
    cdef Merging merging = Merging.__new__(Merging)
    cdef Client client = place.client
    cdef Py_ssize_t count = 0, total = 0, body = 0
    merging.split = split
    merging.place = place
    if split.route.merged_by == "gather":
        count = PyBytes_GET_SIZE(split.order) // 2
        merging.cursors = open_arrays(split.frames, count, &total)
    else:
        for frame in split.frames:
            count += count_elements(<bytes?>frame, &body)
            total += PyBytes_GET_SIZE(<bytes>frame) - body
    merging.out = PyBytes_FromStringAndSize(NULL, digits(count) + 3 + total)
    merging.to = put_header(PyBytes_AS_STRING(merging.out), c'*', count)
    merging.charged = size + PyBytes_GET_SIZE(merging.out)
    place.shard = -2        # no shard has anything of it any more
    client.charge(merging.charged)
    client.lane.slices.run(merging)
    return 0


# --- the elements of an answer ----------------------------------------------------------------------------------------


cdef Py_ssize_t count_elements(bytes frame, Py_ssize_t *body) except -1:
    """How many elements an array has, and where the first begins; ValueError if it is none."""
    cdef long long count = short_count(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
    if count >= 0:
        body[0] = 4
        return count
    body[0] = counted(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), &count)
    if body[0] == 0 or count < 0 or PyBytes_AS_STRING(frame)[0] != c'*':
        raise ValueError
    return count


cdef const char **open_arrays(list frames, Py_ssize_t keys, Py_ssize_t *size) except NULL:
    """For each shard where the next element of its array begins, then for each where the array ends; to be freed.

    `size`: of all elements, in bytes.  ValueError where they are not as many as the keys.
    """
    cdef Py_ssize_t body = 0, n = 0, total = 0
    cdef int shard, shards = <int>len(frames)
    cdef bytes frame
    cdef const char **cursors = <const char **>PyMem_RawCalloc(shards * 2, sizeof(char *))
    if cursors == NULL:
        raise MemoryError
    try:
        for shard in range(shards):
            if frames[shard] is None:
                continue
            frame = <bytes>frames[shard]
            n += count_elements(frame, &body)
            cursors[shard] = PyBytes_AS_STRING(frame) + body
            cursors[shards + shard] = PyBytes_AS_STRING(frame) + PyBytes_GET_SIZE(frame)
            total += PyBytes_GET_SIZE(frame) - body
        if n != keys:
            raise ValueError
    except ValueError:
        PyMem_RawFree(cursors)
        raise
    size[0] = total
    return cursors


cdef inline Py_ssize_t element_size(const char *ptr, const char *end) except -1:
    """The bytes of the element at `at`."""
    cdef Py_ssize_t n = end - ptr, length = short_bulk(ptr, n)
    cdef ReplyScan state
    if not length:
        state.left = 0
        state.pos = 0
        if n <= 0 or scan_reply(ptr, n, &state, True, n, &length) != FRAME:
            raise ValueError
    return length
