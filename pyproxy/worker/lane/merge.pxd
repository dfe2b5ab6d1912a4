"""The one answer to a command that several shards were asked."""

from pyproxy.worker.lane.lane cimport Pending, Split


cdef bytes merged(Split split, Pending place, Py_ssize_t size)
