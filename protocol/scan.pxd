"""What the hot path calls of scan.pyx without going through Python."""

cdef enum Found:
    NEED_MORE = 0
    FRAME = 1
    EMPTY = 2
    INLINE = 3
    BAD = -1


cdef struct Limits:
    long long args          # arguments of one command
    long long bulk          # bytes of one argument
    long long inline_bytes  # bytes of an inline command, and of any header line


cdef struct RequestScan:
    Py_ssize_t pos          # next header to read, counted from the start of the frame
    long long args_left     # arguments still to come; 0: the frame's own header is still to be read


cdef struct ReplyScan:
    Py_ssize_t pos          # next element to read, counted from the start of the frame
    long long left          # elements still to come; 0: the frame has not begun
    Py_ssize_t seen         # bytes of its first line that were searched for the end in vain


cdef struct Fault:
    const char *text        # Redis' wording, with %c for `got` where it has one
    unsigned char got


cdef Found scan_request(const char *p, Py_ssize_t n, RequestScan *s, const Limits *limits,
                        Py_ssize_t *length, Fault *fault) noexcept nogil
cdef Found scan_reply(const char *p, Py_ssize_t n, ReplyScan *s, bint resp3, Py_ssize_t line_limit,
                      Py_ssize_t *length) noexcept nogil
cdef Py_ssize_t counted(const char *p, Py_ssize_t n, long long *value) noexcept nogil
cdef bytes fault_text(const Fault *fault)
cdef list arguments(const char *frame)


cdef class Words:
    cdef readonly bytes frame
    cdef public object placed       # what is known of where its keys belong; None: nothing
    cdef Py_ssize_t count
    cdef Py_ssize_t found           # of them it is known where they stand
    cdef Py_ssize_t next            # where the header of the next one begins
    cdef Py_ssize_t *at             # where their headers begin
    cdef bint find(self, Py_ssize_t most)
    cdef const char *word(self, Py_ssize_t index, Py_ssize_t *size)

cdef inline Py_ssize_t short_bulk(const char *p, Py_ssize_t n) noexcept nogil:
    """The length of the bulk string at p, if all of it is here and it has less than a hundred bytes; else 0."""
    cdef Py_ssize_t size
    cdef int head
    if n < 6 or p[0] != c'$' or p[1] < c'0' or p[1] > c'9':
        return 0
    if p[2] == c'\r':
        size = p[1] - c'0'
        head = 4
    elif p[3] == c'\r' and p[1] != c'0' and c'0' <= p[2] <= c'9':
        size = (p[1] - c'0') * 10 + p[2] - c'0'
        head = 5
    else:
        return 0
    if n < head + size + 2 or p[head - 1] != c'\n' or p[head + size] != c'\r' or p[head + size + 1] != c'\n':
        return 0
    return head + size + 2


cdef inline Py_ssize_t short_count(const char *p, Py_ssize_t n) noexcept nogil:
    """How many elements an array has whose header at p has one digit, so four bytes, as most have; else -1."""
    if n < 4 or p[0] != c'*' or p[1] < c'0' or p[1] > c'9' or p[2] != c'\r' or p[3] != c'\n':
        return -1
    return p[1] - c'0'


cdef inline const char *header(const char *p, Py_ssize_t *number) noexcept nogil:
    """What `*3` or `$5` at p says -> the byte behind its CR LF.

    Only of a request that scan_request has accepted, or that was encoded here: such a header is a few digits and CR LF,
    so nothing is checked again.  What a server sent is read by `counted`.
    """
    cdef Py_ssize_t value = p[1] - c'0'
    p += 2
    while p[0] != c'\r':
        value = value * 10 + p[0] - c'0'
        p += 1
    number[0] = value
    return p + 2
