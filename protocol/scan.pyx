# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Where a request ends, and where a reply ends.  Hot path; compiled; strict.

Bytes come in any cut; out comes the length of the next whole frame, "more is needed", or Redis' own words for what is
wrong.  Nothing is allocated or copied for that, so no header can make the proxy reserve memory on its word.

Requests are accepted only in the one canonical form of RESP (lengths without signs or leading zeros, every line and
every argument ended by CR LF).  So the bytes of an accepted frame are the very bytes that an encoder would write for
the same arguments, and may be sent on as they are: no byte sequence is framed one way here and another way by a server.

A scan that runs out of bytes keeps its place in a small struct, so a frame that arrives in a million pieces is read
once.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memchr, memcmp

cdef enum:
    LINE_LIMIT = 65536          # Redis' PROTO_INLINE_MAX_SIZE
    DIGITS_LIMIT = 20
    NUMBER_LIMIT = 64           # a reply line that is one number: a double is the longest


cdef const char *TOO_BIG_INLINE = "too big inline request"
cdef const char *NUL_INLINE = "unexpected NUL in inline request"
cdef const char *TOO_BIG_COUNT = "too big mbulk count string"
cdef const char *BAD_COUNT = "invalid multibulk length"
cdef const char *TOO_BIG_BULK = "too big bulk count string"
cdef const char *EXPECTED_DOLLAR = "expected '$', got '%c'"
cdef const char *BAD_BULK = "invalid bulk length"
cdef const char *NO_CRLF = "invalid CRLF in request"    # Valkey 9's words; Redis 7 does not look
cdef const char *TYPES = "+-:$*_#,(!=%~|"    # RESP2's five, then RESP3's
cdef const char *COUNTED = "=!~%|"          # those whose header is a number, as that of $ and *


cdef inline bint _integer(const char *p, Py_ssize_t n, long long *value) noexcept nogil:
    """Redis' string2ll: no sign but '-', no leading zero, no space, nothing that overflows."""
    cdef Py_ssize_t i = 0
    cdef bint negative = False
    cdef unsigned long long v = 0
    cdef int digit
    if n <= 0 or n > DIGITS_LIMIT:
        return False
    if p[0] == c'-':
        negative = True
        i = 1
        if n == 1 or p[1] == c'0':
            return False
    if p[i] == c'0':
        if n == 1:
            value[0] = 0
            return True
        return False
    while i < n:
        digit = p[i] - c'0'
        if digit < 0 or digit > 9:
            return False
        if v > 922337203685477580ULL:
            return False
        v = v * 10 + <unsigned long long>digit
        i += 1
    if negative:
        if v > 9223372036854775808ULL:
            return False
        value[0] = -<long long>(v - 1) - 1
    else:
        if v > 9223372036854775807ULL:
            return False
        value[0] = <long long>v
    return True


cdef Py_ssize_t counted(const char *p, Py_ssize_t n, long long *value) noexcept nogil:
    """The bytes of a header such as *3 or $5 at p, of which n bytes are here, and the number it says.

    0: its CR LF is not here, or it says no number.
    """
    cdef Py_ssize_t near = n if n < DIGITS_LIMIT + 2 else DIGITS_LIMIT + 2
    cdef const char *cr = <const char *>memchr(p, c'\r', near) if n > 0 else NULL
    if cr == NULL or cr + 1 >= p + n or cr[1] != c'\n' or not _integer(p + 1, cr - p - 1, value):
        return 0
    return cr + 2 - p


cdef inline Found _bad(Fault *fault, const char *text, unsigned char got=0) noexcept nogil:
    fault.text = text
    fault.got = got
    return BAD


cdef Found scan_request(const char *p, Py_ssize_t n, RequestScan *s, const Limits *limits,
                        Py_ssize_t *length, Fault *fault) noexcept nogil:
    """Looks for the end of the request that begins at p, of which n bytes are here.

    FRAME: a multibulk of `length` bytes.  EMPTY: `length` bytes that ask nothing (`*0`, `*-1`).  INLINE: a line of
    `length` bytes, its LF included.  NEED_MORE: call again with the same `s` and more bytes.  BAD: see `fault`.
    """
    cdef const char *cr
    cdef const char *line
    cdef Py_ssize_t size
    cdef long long value = 0
    cdef Found found
    if n <= 0:
        return NEED_MORE
    if s.args_left == 0:
        if p[0] != c'*':
            return _inline(p, n, s, limits, length, fault)
        cr = <const char *>memchr(p, c'\r', n if n < limits.inline_bytes + 1 else limits.inline_bytes + 1)
        if cr == NULL:
            return _bad(fault, TOO_BIG_COUNT) if n > limits.inline_bytes else NEED_MORE
        if cr + 1 >= p + n:
            return NEED_MORE
        if not _integer(p + 1, cr - p - 1, &value) or value > limits.args:
            return _bad(fault, BAD_COUNT)
        if cr[1] != c'\n':
            return _bad(fault, NO_CRLF)
        if value <= 0:
            length[0] = cr + 2 - p
            return EMPTY
        s.args_left = value
        s.pos = cr + 2 - p
    while True:
        line = p + s.pos
        size = short_bulk(line, n - s.pos)
        if size == 0 or size > limits.bulk:
            found = _argument(line, n - s.pos, limits, &size, fault)
            if found != FRAME:
                return found
        s.pos += size
        s.args_left -= 1
        if s.args_left == 0:
            length[0] = s.pos
            s.pos = 0
            return FRAME


cdef Found _argument(const char *line, Py_ssize_t room, const Limits *limits, Py_ssize_t *size,
                     Fault *fault) noexcept nogil:
    """FRAME: the whole argument that begins at line is `size` bytes, header and end included; or NEED_MORE, BAD."""
    cdef const char *end = line + room
    cdef const char *cr
    cdef long long value = 0
    if room < 4:                     # "$0\r\n" is the shortest header there is
        if room <= 0 or memchr(line, c'\r', room) == NULL:
            return NEED_MORE
    cr = <const char *>memchr(line, c'\r', room if room < limits.inline_bytes + 1 else limits.inline_bytes + 1)
    if cr == NULL:
        return _bad(fault, TOO_BIG_BULK) if room > limits.inline_bytes else NEED_MORE
    if cr + 1 >= end:
        return NEED_MORE
    if line[0] != c'$':
        return _bad(fault, EXPECTED_DOLLAR, <unsigned char>line[0])
    if not _integer(line + 1, cr - line - 1, &value) or value < 0 or value > limits.bulk:
        return _bad(fault, BAD_BULK)
    if cr[1] != c'\n':
        return _bad(fault, NO_CRLF)
    # value is at most 512 MiB, so the sum cannot overflow
    if cr + 2 + value + 2 > end:
        # a wrong byte where the CR belongs is said at once, not when the LF comes
        if cr + 2 + value < end and cr[2 + value] != c'\r':
            return _bad(fault, NO_CRLF)
        return NEED_MORE
    if cr[2 + value] != c'\r' or cr[3 + value] != c'\n':
        return _bad(fault, NO_CRLF)
    size[0] = cr + 4 + value - line
    return FRAME


cdef Found _inline(const char *p, Py_ssize_t n, RequestScan *s, const Limits *limits,
                   Py_ssize_t *length, Fault *fault) noexcept nogil:
    # s.pos remembers how much of the line was searched in vain
    cdef Py_ssize_t seen = n if n < limits.inline_bytes + 1 else limits.inline_bytes + 1
    cdef const char *lf = NULL
    if seen > s.pos:
        lf = <const char *>memchr(p + s.pos, c'\n', seen - s.pos)
        if memchr(p + s.pos, 0, (lf - p if lf != NULL else seen) - s.pos) != NULL:
            return _bad(fault, NUL_INLINE)
    if lf == NULL:
        if n > limits.inline_bytes:
            return _bad(fault, TOO_BIG_INLINE)
        s.pos = seen
        return NEED_MORE
    length[0] = lf + 1 - p
    s.pos = 0
    return INLINE


cdef list arguments(const char *frame):
    """The arguments of a frame that was accepted, its name among them."""
    cdef Py_ssize_t count = 0, size = 0, _
    cdef const char *at = header(frame, &count)
    cdef list argv = []
    for _ in range(count):
        at = header(at, &size)
        argv.append(PyBytes_FromStringAndSize(at, size))
        at += size + 2
    return argv


cdef class Words:
    """The arguments of one request where they stand: a sequence of bytes, each made when it is asked for.

    For very many of them, or very large ones: nothing is done for each, nor is anything copied.  `frame`: the request,
    as it was accepted.  Nothing is read before `find` has said that all are found.
    """

    def __cinit__(self, bytes frame not None):
        cdef Py_ssize_t count = 0
        cdef const char *start = PyBytes_AS_STRING(frame)
        self.frame = frame
        self.next = header(start, &count) - start
        self.count = count
        self.at = <Py_ssize_t *>PyMem_RawMalloc(count * sizeof(Py_ssize_t))
        if self.at == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_RawFree(self.at)

    cdef bint find(self, Py_ssize_t most):
        """Looks for so many more -> whether all are found."""
        cdef const char *start = PyBytes_AS_STRING(self.frame)
        cdef const char *at = start + self.next
        cdef Py_ssize_t size = 0, until = min(self.count, self.found + most)
        while self.found < until:
            self.at[self.found] = at - start
            self.found += 1
            at = header(at, &size)
            at += size + 2
        self.next = at - start
        return self.found == self.count

    cdef const char *word(self, Py_ssize_t index, Py_ssize_t *size):
        """Where it stands, which is not looked at whether it is one of them."""
        return header(PyBytes_AS_STRING(self.frame) + self.at[index], size)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        cdef Py_ssize_t size = 0, place
        cdef const char *at
        if type(index) is slice:
            return [self[each] for each in range(*index.indices(self.count))]
        place = index + self.count if index < 0 else index
        if place < 0 or place >= self.found:
            raise IndexError(f"expected one of {self.found} words, got {index}")
        at = self.word(place, &size)
        return PyBytes_FromStringAndSize(at, size)


def words(bytes frame not None):
    """The arguments of one request, as `argv` gives them, where they stand.  Raises ProtocolError as that."""
    if not is_request(frame):
        raise ProtocolError(b"expected a request")
    cdef Words made = Words(frame)
    made.find(made.count)
    return made


cdef Found scan_reply(const char *p, Py_ssize_t n, ReplyScan *s, bint resp3, Py_ssize_t line_limit,
                      Py_ssize_t *length) noexcept nogil:
    """Looks for the end of the reply that begins at p.  FRAME, NEED_MORE or BAD.

    A line of text may have `line_limit` bytes: servers put arguments into their errors, of whatever length.  Nested
    aggregates are one running count, so depth costs nothing.  The types of RESP3 are accepted only where `resp3` says
    that the connection speaks it; pushes never are: a connection that gets one here has not asked for any.
    """
    cdef Py_ssize_t size, count
    cdef long long owed
    cdef Found found
    if s.left == 0:
        # what most replies are needs no state
        size = 5 if n >= 5 and memcmp(p, b"+OK\r\n", 5) == 0 else short_bulk(p, n)
        if size:
            length[0] = size
            return FRAME
        s.left = 1
        s.pos = 0
        s.seen = 0
        count = short_count(p, n)
        if count > 0:
            s.left = count
            s.pos = 4
    while True:
        size = short_bulk(p + s.pos, n - s.pos)
        owed = -1
        if size == 0:
            found = _element(p + s.pos, n - s.pos, s, resp3, line_limit, &size, &owed)
            if found != FRAME:
                return found
        else:
            s.seen = 0      # of its header, if that came in two pieces; the next line is another
        s.left += owed
        if s.left > (<long long>1 << 40):
            return BAD
        s.pos += size
        if s.left == 0:
            length[0] = s.pos
            s.pos = 0
            return FRAME


cdef Found _element(const char *line, Py_ssize_t room, ReplyScan *s, bint resp3, Py_ssize_t line_limit,
                    Py_ssize_t *size, long long *owed) noexcept nogil:
    """FRAME: the element that begins at line, or the header of an aggregate, is `size` bytes, and changes how many are
    still to come by `owed`.  NEED_MORE or BAD else."""
    cdef const char *cr = NULL
    cdef long long value = 0
    cdef char kind
    if room <= 0:
        return NEED_MORE
    kind = line[0]
    if kind == c'$' or kind == c'*':
        line_limit = DIGITS_LIMIT + 1       # a number is refused at the first digit that is too many
    elif kind != c'+' and kind != c'-':
        if memchr(TYPES, kind, 14 if resp3 else 5) == NULL:
            return BAD      # what cannot become a reply is refused at its first byte
        if kind != c'(':
            line_limit = DIGITS_LIMIT + 1 if memchr(COUNTED, kind, 5) != NULL else NUMBER_LIMIT
    if line_limit > room:
        line_limit = room
    # s.seen: how much of the line was searched in vain
    if line_limit > s.seen:
        cr = <const char *>memchr(line + s.seen, c'\r', line_limit - s.seen)
    if cr == NULL:
        s.seen = line_limit
        return BAD if line_limit < room else NEED_MORE
    s.seen = cr - line
    if cr + 1 >= line + room:
        return NEED_MORE
    if cr[1] != c'\n':
        return BAD
    s.seen = 0
    size[0] = cr + 2 - line
    owed[0] = -1
    if kind == c'$' or (resp3 and (kind == c'=' or kind == c'!')):
        if not _integer(line + 1, size[0] - 3, &value) or value < -1 or value > 0x7fffffff:
            return BAD
        if value == -1:
            return FRAME if kind == c'$' else BAD
        if kind == c'=' and value < 4:
            return BAD      # "txt:" is before its text
        if room < size[0] + value + 2:
            return NEED_MORE
        if kind == c'=' and line[size[0] + 3] != c':':
            return BAD
        size[0] += value + 2
        return FRAME if line[size[0] - 2] == c'\r' and line[size[0] - 1] == c'\n' else BAD
    if kind == c'+' or kind == c'-':
        # a line that ends in LF alone would take the next one along
        return FRAME if memchr(line, c'\n', cr - line) == NULL else BAD
    if kind == c':':
        return FRAME if _integer(line + 1, size[0] - 3, &value) else BAD
    if kind == c'*' or (resp3 and (kind == c'~' or kind == c'%' or kind == c'|')):
        if not _integer(line + 1, size[0] - 3, &value) or value < -1 or value > 0x7fffffff:
            return BAD
        if value == -1:
            return FRAME if kind == c'*' else BAD
        if kind == c'%' or kind == c'|':
            value *= 2
        # an attribute comes before the element it speaks of, so it does not count as one
        owed[0] = value if kind == c'|' else value - 1
        return FRAME
    if not resp3:
        return BAD
    cr = line + 1
    room = size[0] - 3      # of what is between its first byte and its end
    if kind == c'_':
        return FRAME if room == 0 else BAD
    if kind == c'#':
        return FRAME if room == 1 and (cr[0] == c't' or cr[0] == c'f') else BAD
    if kind == c',':
        return FRAME if _double(cr, room) else BAD
    # what is in a big number servers do not look at themselves: a script may say what it likes
    return FRAME if kind == c'(' else BAD


cdef bint _double(const char *p, Py_ssize_t n) noexcept nogil:
    """As C prints one, or could: digits with what may be between them, or a word for what is no number."""
    cdef bint digits = False
    cdef Py_ssize_t i
    if n > 0 and (p[0] == c'-' or p[0] == c'+'):
        p += 1
        n -= 1
    if n == 3 and (memcmp(p, b"inf", 3) == 0 or memcmp(p, b"nan", 3) == 0):
        return True
    for i in range(n):
        if c'0' <= p[i] <= c'9':
            digits = True
        elif memchr(b".eE+-", p[i], 5) == NULL:
            return False
    return digits


cdef bytes fault_text(const Fault *fault):
    """The words for a fault, without CR or LF, as Redis would say them after `Protocol error: `."""
    cdef unsigned char got = fault.got
    if fault.text == EXPECTED_DOLLAR:
        if got == c'\r' or got == c'\n':
            got = c' '
        return b"expected '$', got '" + bytes((got,)) + b"'"
    return <bytes>fault.text


class ProtocolError(Exception):
    """A peer broke the framing.  `args[0]` is Redis' wording as bytes."""


cdef class Requests:
    """The request side as a machine for tests and tools: bytes in, whole frames out, in any cut.

    >>> Requests().feed(b"*1\\r\\n$4\\r\\nPING\\r\\nPING\\r\\n")
    [('frame', b'*1\\r\\n$4\\r\\nPING\\r\\n'), ('inline', b'PING\\r\\n')]
    """

    cdef Limits limits
    cdef RequestScan state
    cdef bytearray rest

    def __init__(self, long long args=1048576, long long bulk=67108864, long long inline_bytes=LINE_LIMIT):
        self.limits.args = args
        self.limits.bulk = bulk
        self.limits.inline_bytes = inline_bytes
        self.rest = bytearray()

    def feed(self, bytes data):
        """-> [(kind, frame)], kind "frame", "inline" or "empty".  Raises ProtocolError; the machine is then dead."""
        cdef const char *p
        cdef Py_ssize_t pos = 0, n, length = 0
        cdef Fault fault
        cdef Found found
        cdef list out = []
        self.rest += data
        p = <const char *>self.rest
        n = len(self.rest)
        while True:
            found = scan_request(p + pos, n - pos, &self.state, &self.limits, &length, &fault)
            if found == NEED_MORE:
                break
            if found == BAD:
                raise ProtocolError(fault_text(&fault))
            kind = "frame" if found == FRAME else "inline" if found == INLINE else "empty"
            out.append((kind, p[pos:pos + length]))
            pos += length
        del self.rest[:pos]
        return out


def argv(bytes frame not None):
    """The arguments of one request: b'*1\\r\\n$4\\r\\nPING\\r\\n' -> [b'PING'].

    Raises ProtocolError when `frame` is not exactly one whole multibulk.
    """
    if Requests().feed(frame) != [("frame", frame)]:
        raise ProtocolError(b"expected a request")
    return arguments(PyBytes_AS_STRING(frame))


def is_request(bytes frame not None):
    """Whether this is exactly one whole multibulk with at least one argument: what a server answers exactly once."""
    cdef RequestScan state
    cdef Limits limits
    cdef Fault fault
    cdef Py_ssize_t length = 0
    state.pos = 0
    state.args_left = 0
    limits.args = limits.bulk = limits.inline_bytes = <long long>1 << 40
    return (scan_request(<const char *>frame, len(frame), &state, &limits, &length, &fault) == FRAME
            and length == len(frame))


cdef class Replies:
    """The reply side as a machine, outside of the lane: bytes in, whole reply frames out, in any cut.

    `pushes`: `feed` takes those of RESP3 between replies, as of a connection that has asked for them.
    """

    cdef ReplyScan state
    cdef bint resp3
    cdef bint pushes
    cdef bint in_push
    cdef Py_ssize_t line_bytes
    cdef bytearray rest

    def __init__(self, bint resp3=False, Py_ssize_t line_bytes=LINE_LIMIT, bint pushes=False):
        self.resp3 = resp3
        self.pushes = pushes
        self.line_bytes = line_bytes
        self.rest = bytearray()

    def feed(self, bytes data):
        """-> [frame].  Raises ProtocolError; the machine is then dead."""
        cdef char *p
        cdef Py_ssize_t pos = 0, n, length = 0
        cdef Found found
        cdef list out = []
        self.rest += data
        p = <char *>self.rest
        n = len(self.rest)
        while True:
            if self.pushes and not self.in_push and pos < n and p[pos] == c'>':
                self.in_push = True
                p[pos] = c'*'       # which it is framed as, until its end was found
            found = scan_reply(p + pos, n - pos, &self.state, self.resp3, self.line_bytes, &length)
            if found == NEED_MORE:
                break
            if found == BAD:
                raise ProtocolError(b"invalid reply")
            if self.in_push:
                self.in_push = False
                p[pos] = c'>'
            out.append(p[pos:pos + length])
            pos += length
        del self.rest[:pos]
        return out

    def whole(self, bytes data not None):
        """-> the bytes of all whole replies, one behind the other.  Raises ProtocolError; the machine is then dead."""
        cdef const char *p
        cdef Py_ssize_t pos = 0, n, length = 0
        cdef Found found
        cdef bytes out
        cdef bint alone = not self.rest
        if not alone:
            self.rest += data
        p = <const char *>data if alone else <const char *>self.rest
        n = len(data) if alone else len(self.rest)
        while True:
            found = scan_reply(p + pos, n - pos, &self.state, self.resp3, self.line_bytes, &length)
            if found == NEED_MORE:
                break
            if found == BAD:
                raise ProtocolError(b"invalid reply")
            pos += length
        if alone:
            self.rest += data[pos:]
            return data if pos == n else data[:pos]
        out = p[:pos]
        del self.rest[:pos]
        return out

    @property
    def unfinished(self):
        """Bytes of a reply whose end has not come."""
        return len(self.rest)

    @property
    def begins(self):
        """The first of them, eight at most."""
        return bytes(self.rest[:8])


cdef class Elements:
    """The frames of an array's elements, as `elements` gives them, each made in its turn, as there may be many.

    Raises ProtocolError when `frame` is no array; and, in its place, where it is shorter or longer than its header
    says.
    """

    cdef readonly bytes frame
    cdef Py_ssize_t pos
    cdef long long left
    cdef bint resp3

    def __init__(self, bytes frame not None, bint resp3=False):
        cdef long long count = 0
        self.frame = frame
        self.resp3 = resp3
        self.pos = counted(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), &count)
        if self.pos == 0 or PyBytes_AS_STRING(frame)[0] != c'*' or count < 0:
            raise ProtocolError(b"expected an array")
        self.left = count

    def __len__(self):
        """How many are left, as the header says."""
        return self.left

    def __iter__(self):
        return self

    def __next__(self):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.frame), length = 0, begin = self.pos
        cdef const char *p = PyBytes_AS_STRING(self.frame)
        cdef ReplyScan state
        if self.left == 0:
            if self.pos != n:
                raise ProtocolError(b"array is longer than its header says")
            raise StopIteration
        state.left = 0
        state.pos = 0
        if begin > n or scan_reply(p + begin, n - begin, &state, self.resp3, n, &length) != FRAME:
            raise ProtocolError(b"array is shorter than its header says")
        self.pos += length
        self.left -= 1
        return PyBytes_FromStringAndSize(p + begin, length)


def elements(bytes frame not None, bint resp3=False):
    """The frames of an array's elements: b'*2\\r\\n:1\\r\\n$1\\r\\na\\r\\n' -> [b':1\\r\\n', b'$1\\r\\na\\r\\n'].

    Raises ProtocolError when `frame` is not exactly one whole array.
    """
    cdef const char *p = <const char *>frame
    cdef Py_ssize_t n = len(frame), length = 0
    cdef long long count = 0, _
    cdef Py_ssize_t pos = counted(p, n, &count)
    cdef ReplyScan state
    cdef list out = []
    if pos == 0 or p[0] != c'*' or count < 0:
        raise ProtocolError(b"expected an array")
    for _ in range(count):
        state.left = 0
        state.pos = 0
        if pos > n or scan_reply(p + pos, n - pos, &state, resp3, n, &length) != FRAME:
            raise ProtocolError(b"array is shorter than its header says")
        out.append(p[pos:pos + length])
        pos += length
    if pos != n:
        raise ProtocolError(b"array is longer than its header says")
    return out
