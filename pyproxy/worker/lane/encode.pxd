# cython: cdivision=True
"""How replies and requests are written, byte by byte."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy


cdef inline Py_ssize_t digits(Py_ssize_t value) noexcept nogil:
    cdef Py_ssize_t n = 1
    while value >= 10:
        value //= 10
        n += 1
    return n


cdef inline char *put_header(char *out, char kind, Py_ssize_t value) noexcept nogil:
    """Writes a header such as *3 or $5 with its CR LF, -> behind it."""
    cdef Py_ssize_t n = digits(value), i
    out[0] = kind
    for i in range(n):
        out[n - i] = <char>(c'0' + value % 10)
        value //= 10
    out[n + 1] = c'\r'
    out[n + 2] = c'\n'
    return out + n + 3


cdef inline Py_ssize_t bulk_size(bytes value):
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    return digits(n) + n + 5


cdef inline char *put_bulk(char *out, bytes value):
    cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
    out = put_header(out, c'$', n)
    memcpy(out, PyBytes_AS_STRING(value), n)
    out[n] = c'\r'
    out[n + 1] = c'\n'
    return out + n + 2
