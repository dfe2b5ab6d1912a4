# Which connection a client's command takes, where something is not as usual.  Included by lane.pyx.


cdef Backend choose_backend(Client client, Backend backend, bint write, Py_ssize_t size):
    """Which backend a command goes to whose shard has this one.

    None: to none, and `lane.declined` says why.
    """
    cdef Lane lane = client.lane
    cdef object decision
    if backend._guarded:
        if write:
            decision = backend.router.admit_write(client, size)
            if decision is not None:
                lane.declined = decision
                return None
        else:
            decision = backend.router.route_read(client, backend)
            if type(decision) is not Backend:
                lane.declined = decision
                return None
            backend = <Backend?>decision
    backend = choose_connection(client, backend, size)
    return backend if backend is not None and backend.admit(client, size) else None


cdef Backend choose_connection(Client client, Backend backend, Py_ssize_t size):
    """Which of the two connections to a primary it goes on, where `backend` is the first of them.

    None: not now, and `lane.declined` says so.
    The second is for what would keep small requests waiting: large requests, and all of clients whose answers are
    large; and for small ones while a large reply comes on the first.  Whoever has anything out to the shard, or a
    write that may still be applied, stays on the connection that has it, or its commands could overtake each other.
    """
    cdef Backend first = <Backend>client.pool[backend.shard], bulk = first.bulk
    cdef object current = client.upstreams.get(backend.shard, first) if client.upstreams is not None else first
    cdef bint large
    if backend is not first or (current is not first and current is not bulk):
        if not client.may_use(backend):
            client.lane.declined = NOT_NOW
            return None
        if backend is not first:
            return backend
        current = first
    large = (size >= BULK_BYTES or client.typical_reply >= BULK_BYTES
             or (first.in_transfer and (bulk is None or not bulk.in_transfer)))
    if bulk is not None and bulk.door == Door.DOWN:
        large = False
    if large == (current is not first) or has_in_flight(client, backend.shard) or client.is_unresolved(backend.shard):
        return <Backend>current
    if large and bulk is None:
        bulk = first.bulk = first.link.bulk(first)
    backend = bulk if large else first
    use_upstream(client, backend)
    return backend


cdef int use_upstream(Client client, Backend backend) except -1:
    """From now on its commands to this shard go to this backend."""
    if backend is client.pool[backend.shard]:
        if client.upstreams is not None:
            client.upstreams.pop(backend.shard, None)
            if not client.upstreams:
                client.upstreams = None
        return 0
    if client.upstreams is None:
        client.upstreams = {}
    client.upstreams[backend.shard] = backend
    return 0


cdef bint has_in_flight(Client client, int shard):
    """Whether anything of it is out to this shard."""
    cdef Pending item = client.head
    while item is not None:
        if not item.done and (item.shard == shard or item.shard == -1):
            return True
        item = item.next_placed
    return False


cdef int count_unresolved(Client client, int shard, int writes) except -1:
    """So many more of its writes may still be applied on this shard; or, negative, so many less."""
    cdef int left
    if client.unresolved is None:
        client.unresolved = {}
    left = client.unresolved.get(shard, 0) + writes
    if left > 0:
        client.unresolved[shard] = left
    else:
        client.unresolved.pop(shard, None)
        if not client.unresolved:
            client.unresolved = None
    return 0


cdef bytes refusal_at_gate(Client client, Backend backend, Py_ssize_t size):
    """The line if a write would be refused at the gate; None: it may pass or wait."""
    return backend.router.check_write(client, size) if backend._guarded else None
