"""Requests of very many words, or very large ones, that leave the lane: looked through a slice at a time."""

from pyproxy.worker.lane.lane cimport Client, Route


cdef bint prepare(Client client, Route route, const char *frame, Py_ssize_t size) except -1
