"""How the parts of a command are sent, if all of their shards take them."""

from pyproxy.worker.lane.lane cimport Backend, Client, Pending, Route, Split


cdef bint decline(Client client) except -1
cdef bint admit_all(Client client, bint write, shards, Py_ssize_t size, list backends) except -1
cdef Split new_split(Client client, Route route, bytes owners, int parts, Py_ssize_t size)
cdef Split new_split_at(Client client, Route route, bytes owners, int parts, Pending place)
cdef int send(Backend backend, Split split, bytes frame, int queued, bint primary_only, int timeout_class) except -1
cdef int send_all(list backends, Split split, list frames) except -1
cdef int put_uncopied(Backend backend, Pending item, object frame, Py_ssize_t size) except -1
