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


cdef struct Fault:
    const char *text        # Redis' wording, with %c for `got` where it has one
    unsigned char got


cdef Found scan_request(const char *p, Py_ssize_t n, RequestScan *s, const Limits *limits,
                        Py_ssize_t *length, Fault *fault) noexcept nogil
cdef Found scan_reply(const char *p, Py_ssize_t n, ReplyScan *s, bint resp3,
                      Py_ssize_t *length) noexcept nogil
cdef bytes fault_text(const Fault *fault)

# Of a frame that scan_request has accepted, so nothing is checked again:

cdef inline const char *header(const char *p, Py_ssize_t *number) noexcept nogil:
    """What `*3` or `$5` at p says -> the byte behind its CR LF.  The argument itself follows, and a CR LF."""
    cdef Py_ssize_t value = p[1] - c'0'
    p += 2
    while p[0] != c'\r':
        value = value * 10 + p[0] - c'0'
        p += 1
    number[0] = value
    return p + 2

cdef list arguments(const char *frame)
