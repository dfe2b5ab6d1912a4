"""Commands of very many keys, or of very many bytes: cut and sent a slice at a time."""

from pyproxy.worker.lane.lane cimport Client, Route


cdef bint begin_sliced(Client client, Route route, const char *frame, Py_ssize_t size, Py_ssize_t keys) except -1
