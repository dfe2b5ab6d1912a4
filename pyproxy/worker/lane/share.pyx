# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which shards the keys of a command belong to, and the part of the command for each.  Hot path; compiled.

The keys of a part keep their order, duplicates included.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from protocol.scan cimport header
from pyproxy.worker.lane.encode cimport bulk_size, digits, put_bulk, put_header
from pyproxy.worker.lane.lane cimport Lane, Route


cdef Py_ssize_t count_keys(Route route, const char *frame):
    """How many keys it has, each with its value where the step is 2; -1: a value is missing."""
    cdef Py_ssize_t argc = 0
    header(frame, &argc)
    return -1 if (argc - 1) % route.step else (argc - 1) // route.step


cdef int share_out(
        Lane lane, Route route, const char **first, bytes owners, Py_ssize_t begin, Py_ssize_t until, Share *shares
) except -1:
    """Finds the shards of these keys, of which the first is at `first`; the next is there then -> how many are new."""
    cdef unsigned short *order = <unsigned short *>PyBytes_AS_STRING(owners)
    cdef Py_ssize_t i, n = 0
    cdef int shard, involved = 0
    cdef const char *ptr = first[0]
    cdef const char *key
    cdef const char *end
    for i in range(begin, until):
        key = header(ptr, &n)
        end = past(key + n + 2, route.step - 1)
        shard = lane.owner[lane.slot(key, n)]
        order[i] = <unsigned short>shard
        if shares[shard].keys == 0:
            involved += 1
        shares[shard].keys += 1
        shares[shard].bytes += end - ptr
        ptr = end
    first[0] = ptr
    return involved


cdef list cut_parts(Route route, const char *frame, bytes owners, Share *shares, int shards):
    """The frame for each shard, None for those that have no key of it."""
    cdef const unsigned short *order = <const unsigned short *>PyBytes_AS_STRING(owners)
    cdef Py_ssize_t i, keys = PyBytes_GET_SIZE(owners) // 2
    cdef int shard
    cdef list frames = begin_parts(route, shares, shards)
    cdef const char *ptr = first_key(frame)
    cdef const char *end
    for i in range(keys):
        shard = order[i]
        end = past(ptr, route.step)
        memcpy(shares[shard].cursor, ptr, end - ptr)
        shares[shard].cursor += end - ptr
        ptr = end
    return frames


cdef list begin_parts(Route route, Share *shares, int shards):
    """The frame for each shard as far as the name, and room for its keys; None for those that have none."""
    cdef Py_ssize_t words
    cdef int shard
    cdef list frames = [None] * shards
    cdef bytes part, name = route.upper
    for shard in range(shards):
        if shares[shard].keys:
            words = 1 + shares[shard].keys * route.step
            part = PyBytes_FromStringAndSize(NULL, digits(words) + 3 + bulk_size(name) + shares[shard].bytes)
            shares[shard].cursor = put_bulk(put_header(PyBytes_AS_STRING(part), c'*', words), name)
            frames[shard] = part
    return frames
