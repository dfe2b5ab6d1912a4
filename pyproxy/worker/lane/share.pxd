"""Which shards the keys of a command belong to, and the part of the command for each."""

from protocol.scan cimport header
from pyproxy.worker.lane.lane cimport Lane, Route


cdef struct Share:      # of one shard, in one command
    Py_ssize_t keys
    Py_ssize_t bytes    # of these keys, with their values and headers
    char *cursor        # where the next of them is written, once its part is begun


cdef Py_ssize_t count_keys(Route route, const char *frame)
cdef int share_out(
    Lane lane, Route route, const char **first, bytes owners, Py_ssize_t begin, Py_ssize_t until, Share *shares
) except -1
cdef list cut_parts(Route route, const char *frame, bytes owners, Share *shares, int shards)
cdef list begin_parts(Route route, Share *shares, int shards)


cdef inline const char *first_key(const char *frame) noexcept nogil:
    """Where the header of its first key begins: behind its name."""
    cdef Py_ssize_t n = 0
    cdef const char *ptr = header(header(frame, &n), &n)
    return ptr + n + 2


cdef inline const char *past(const char *ptr, int count) noexcept nogil:
    """Behind so many arguments."""
    cdef Py_ssize_t n = 0
    while count:
        ptr = header(ptr, &n) + n + 2
        count -= 1
    return ptr
