# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What is true of all queues between two turns.  Compiled.

Nothing here is called in the build that serves; in a checked one (./run test --checked) it is after every turn.  It
walks all there is, and raises `Broken` with what is not as it must be.
"""

from pyproxy.worker.lane.lane cimport SHARD_WIDE, Backend, Client, Door, Lane, Park, Pending, Split, Wire, Withheld


class Broken(AssertionError):
    """A queue or a count of the lane is not as it must be; the text says whose, and what was found."""


def check(Lane lane not None):
    """Raises Broken where a queue or a count is not as it must be."""
    cdef Client client
    cdef set answered = set()       # the places that somebody will answer
    cdef dict parts = {}            # client -> bytes of parts that wait for their siblings
    cdef dict unresolved = {}             # client -> shard -> how many of its writes may still be applied
    cdef list backends = _all_backends(lane)
    cdef long long buffered = lane.upstream_buffered, upstream_buffered = 0, arriving = 0, inflight = 0
    for backend in backends:
        _check_backend(lane, <Backend>backend, answered, parts, unresolved)
        upstream_buffered += (<Backend>backend).charged
    for wire in lane.partial_replies:
        arriving += (<Wire>wire).charged
        if (<Wire>wire).lost or not (<Wire>wire).charged:
            raise Broken(f"{lane}: nothing arrives on a connection that is listed for it")
    _expect(lane, "bytes of replies that are not whole", lane.partial_reply_bytes, arriving)
    upstream_buffered += arriving + lane.partial_message_bytes
    _expect(lane, "bytes that wait for servers", lane.upstream_buffered, upstream_buffered)
    _check_gates(lane, backends)
    dirty = set(lane.dirty_clients)
    backlog = set(lane.backlog)
    lingering = set(lane.lingering)
    waiting = {client for backend in backends for client in (<Backend>backend).waiting}
    for each in lane.clients:
        client = <Client>each
        _check_client(client, answered, parts.get(client, 0), client in dirty)
        _expect(client, "writes that may still be applied", client.unresolved or {}, unresolved.get(client, {}))
        _check_at(client, backends)
        _check_parked(client, client in backlog, client in waiting)
        _check_end(client, client in lingering)
        _check_command(client)
        buffered += client.buffered_out + client.buffered_in + client.queued_bytes + client.subscribed_bytes
        buffered += client.command_bytes
        inflight += client.inflight
    _expect(lane, "buffered bytes", lane.buffered, buffered)
    _expect(lane, "requests in flight", lane.inflight, inflight)
    if (lane.dirty_clients or lane.dirty_backends or lane.backlog) and not lane.awake:
        raise Broken(f"{lane}: there is work, and no turn is asked for")


cdef int _expect(object whose, str what, object is_, object expected) except -1:
    if is_ != expected:
        raise Broken(f"{whose}: expected {what} to be {expected}, got {is_}")
    return 0


cdef list _all_backends(Lane lane):
    cdef list found = []
    for link in lane.links + lane.replica_links:
        found += link.backends.values()
        found += [lease.backend for lease in getattr(link, "leased", ())]
    return found


cdef int _count_unresolved(dict unresolved, Client client, int shard) except -1:
    cdef dict shards = unresolved.setdefault(client, {})
    shards[shard] = shards.get(shard, 0) + 1
    return 0


cdef int _check_backend(Lane lane, Backend backend, set answered, dict parts, dict unresolved) except -1:
    cdef Pending item = backend.head, last = None
    cdef Py_ssize_t count = 0, canaries = 0, shard_wide = 0
    cdef bint ages = backend.aging is None
    cdef bint is_open = backend.door == Door.OPEN or backend.door == Door.CONGESTED
    while item is not None:
        count += 1
        if count > backend.count:
            raise Broken(f"{backend}: more is in the queue than the {backend.count} that are counted")
        canaries += item.expected is not None
        shard_wide += item.timeout_class == SHARD_WIDE
        ages = ages or item is backend.aging
        if item.unresolved_for is not None:
            _count_unresolved(unresolved, item.unresolved_for, backend.shard)
        _check_item(backend, item, answered, parts)
        last = item
        item = item.next_queued
    _expect(backend, "requests in the queue", count, backend.count)
    _expect(backend, "canaries in the queue", canaries, backend.canaries)
    _expect(backend, "requests through all keys", shard_wide, backend.shard_wide)
    if last is not backend.tail:
        raise Broken(f"{backend}: its tail is not the last of its queue")
    if not ages:
        raise Broken(f"{backend}: the oldest request whose deadline has not passed is not in its queue")
    if not 0 <= backend.unsent <= count:
        raise Broken(f"{backend}: {backend.unsent} requests of {count} were never given to a transport")
    _expect(backend, "bytes to write", backend.unsent_bytes, sum(map(len, backend.chunks)) + backend.outbuf_len)
    _expect(backend, "whether there are bytes to write", backend.unsent_bytes > 0, backend.unsent > 0)
    # one that is listed and was flushed meanwhile has nothing more to give, until it is marked again
    if backend.dirty and backend not in lane.dirty_backends:
        raise Broken(f"{backend}: it waits for a turn, and is not listed for it")
    _expect(backend, "to have a connection", backend.wire is not None, is_open)
    if backend.wire is None and count > backend.unsent:
        raise Broken(f"{backend}: {count - backend.unsent} requests are out, and there is no connection")
    if (backend.wire is not None and backend.unsent
            and not (backend.dirty or backend.wire.writing_paused or backend.wire.lost)):
        raise Broken(f"{backend}: {backend.unsent} requests wait for a turn that nobody asks for")
    if backend.in_transfer and (backend.wire is None or not (backend.wire.large is not None or backend.wire.skipping
                                                             or backend.wire.inbuf is not None
                                                             or backend.wire.overlong)):
        raise Broken(f"{backend}: a large reply comes on no connection")
    plain = (is_open and backend.door == Door.OPEN
             and not (backend._guarded or backend.in_transfer or backend.wire.writing_paused))
    _expect(backend, "whether all is as usual", backend.plain, plain)
    for client in backend.uncertain_clients or ():
        _count_unresolved(unresolved, <Client>client, backend.shard)
    for entry in backend.replay_queue:
        if (<Pending>entry).next_queued is not None:
            raise Broken(f"{backend}: a request to replay is in the request queue as well")
        if (<Pending>entry).unresolved_for is not None:
            raise Broken(f"{backend}: a request to replay was never sent, and counts as unresolved")
        _check_item(backend, <Pending>entry, answered, parts)
    if backend.withheld is not None:
        for withheld in backend.withheld.values():
            if (<Withheld>withheld).left <= 0:
                raise Broken(f"{backend}: a refused write waits for nothing")
            for entry, _ in (<Withheld>withheld).items:
                _check_item(backend, <Pending>entry, answered, parts)
    for client in backend.waiting:
        if (<Client>client).transport is not None and not (<Client>client).parked & Park.DOOR:
            raise Broken(f"{backend}: {client} waits at its door, and is not parked there")
    return 0


cdef int _check_item(Backend backend, Pending item, set answered, dict parts) except -1:
    cdef Split split = item.split
    cdef Client client
    if split is None:
        if item.client is not None:
            answered.add(id(item))
        return 0
    if item.expected is not None or item.client is not None:
        raise Broken(f"{backend}: a part of a split is something else as well")
    if split.left <= 0:
        raise Broken(f"{backend}: a part is out of a split that waits for none")
    if split.place is None:
        raise Broken(f"{backend}: a part is out of a split that has no place")
    if id(split.place) not in answered:     # so each split is counted once
        answered.add(id(split.place))
        client = split.place.client
        if client is not None:
            parts[client] = parts.get(client, 0) + split.buffered
    return 0


cdef int _check_client(Client client, set answered, Py_ssize_t in_parts, bint dirty) except -1:
    cdef Pending item = client.head, last = None
    cdef Py_ssize_t out = 0, size = 0, buffered = client.in_transport + in_parts
    if client.dirty and not dirty:      # as for backends, one that was flushed by itself may still be listed
        raise Broken(f"{client}: it waits for a turn, and is not listed for it")
    for reply in client.ready:
        buffered += len(<bytes>reply)
    while item is not None:
        if item.client is not client:
            raise Broken(f"{client}: a place in its order is not its own")
        if item.done:
            buffered += len(item.reply)
        else:
            out += 1
            size += item.size
            if out > client.inflight:
                break
            if item.shard != -2 and id(item) not in answered:
                raise Broken(f"{client}: nobody will answer a request of it, to shard {item.shard}")
        last = item
        item = item.next_placed
    _expect(client, "requests in flight", client.inflight, out)
    _expect(client, "bytes of requests in flight", client.inflight_bytes, size)
    _expect(client, "buffered bytes of answers", client.buffered_out, buffered)
    if last is not client.tail:
        raise Broken(f"{client}: its tail is not the last of its places")
    if (client.ready or (client.head is not None and client.head.done)) and not (client.dirty or client.writing_paused):
        raise Broken(f"{client}: it has answers that nobody will write")
    return 0


cdef int _check_command(Client client) except -1:
    """What it is charged for a command is what there is of it, while somebody is at that."""
    if client.preparation is not None:
        _expect(client, "bytes of the command that is looked through", client.command_bytes, client.preparation.costs())
    elif client.command_bytes and client.words is None and client.conversation is None:
        raise Broken(f"{client}: it is charged for a command that nobody is at")
    if client.words is not None and client.command_bytes <= 0:
        raise Broken(f"{client}: its words were looked through, and it is not charged for them")
    return 0


cdef int _check_gates(Lane lane, list backends) except -1:
    """Who is held at a gate knows of it, and what a gate counts is there."""
    cdef dict requests = {}, sizes = {}     # router -> of the writes in its replay queue
    cdef dict holds = {}                    # the numbers of several gates, by identity -> numbers, requests, bytes
    cdef Client client
    cdef Pending item
    for backend in backends:
        router = (<Backend>backend).router
        for entry in (<Backend>backend).replay_queue:
            item = <Pending>entry
            if router is None:
                raise Broken(f"{backend}: a request waits for a replay, and there is no gate that it waits for")
            if item.write:
                requests[router] = requests.get(router, 0) + 1
                sizes[router] = sizes.get(router, 0) + item.size
        if router is not None:
            requests.setdefault(router, 0)
    for router, writes in requests.items():
        gate = router.gate
        for client in gate.held_clients:
            if client not in lane.clients or not client.parked & Park.HOLD or client.router is not router:
                raise Broken(f"{router.link}: {client} is held at its gate, and does not know of it")
        size = sum([each.bytes for each in gate.held_clients.values()])
        _expect(router.link, "writes to replay", gate.replay_requests, writes)
        _expect(router.link, "bytes of writes to replay", gate.replay_bytes, sizes.get(router, 0))
        _expect(router.link, "bytes held at its gate", gate.held.bytes, size + gate.replay_bytes)
        _, all_requests, all_bytes = holds.get(id(gate.stats), (None, 0, 0))
        size += gate.replay_bytes
        holds[id(gate.stats)] = gate.stats, all_requests + len(gate.held_clients) + writes, all_bytes + size
    for counted, all_requests, all_bytes in holds.values():
        _expect(lane, "what all gates hold", (counted.requests, counted.bytes), (all_requests, all_bytes))
    return 0


cdef int _check_at(Client client, list backends) except -1:
    """Its shards are those of the lane; where it is in between is a connection to one of them, or forgotten by all."""
    cdef Backend backend
    if client.pool is not client.lane.pools.get((client.proto, client.db)):
        raise Broken(f"{client}: its shards are not those of its protocol and database")
    if [backend.link for backend in client.pool] != client.lane.links:
        raise Broken(f"{client}: its shards are not those that there are")
    for shard, upstream in (client.upstreams or {}).items():
        backend = <Backend>upstream
        if not 0 <= shard < len(client.pool) or backend.shard != shard:
            raise Broken(f"{client}: what it asks of shard {shard} goes to {backend}")
        if backend is client.pool[shard]:
            raise Broken(f"{client}: that it asks shard {shard} where all do is told apart")
        # after a switch, or where that connection is given up, it is forgotten when the client asks next, and has
        # nothing out
        if backend not in backends and backend.head is not None:
            raise Broken(f"{client}: it uses {backend}, which was given up and has requests out")
    return 0


cdef int _check_end(Client client, bint in_lingering) except -1:
    """Whoever is to be closed will be: when what is out for it is answered, or when it has had time enough to close."""
    cdef bint goes_on = client.dirty or client.writing_paused or client.head is not None
    _expect(client, "to be cut off if it does not close", in_lingering, client.lingering)
    if client.lingering and not client.finishing:
        raise Broken(f"{client}: it is closed, and would begin more")
    if client.finishing and not (goes_on or client.lingering):
        raise Broken(f"{client}: it has nothing more to come, and nobody closes it")
    if client.parked & Park.DRAIN and not (goes_on or client.lingering):
        raise Broken(f"{client}: it waits for the end of a worker, and nobody closes it")
    if client.eof and not client.parked and not (goes_on or client.lingering):
        raise Broken(f"{client}: it has closed its half and is answered, and nobody closes it")
    return 0


cdef int _check_parked(Client client, bint in_backlog, bint at_a_door) except -1:
    """Whoever waits is waited for by something that wakes it."""
    # one that is closed begins nothing more, whatever it waited for; _check_end holds that it comes to that
    cdef bint goes_on = client.dirty or client.writing_paused or client.head is not None or client.lingering
    _expect(client, "to have a turn to come", bool(client.parked & Park.TURN), in_backlog)
    if client.parked & Park.DOOR and not at_a_door:
        raise Broken(f"{client}: it is parked at a door, and at none it waits")
    if client.parked & Park.HOLD and (client.router is None or client not in client.router.gate.held_clients):
        raise Broken(f"{client}: it is held, and by no gate")
    if client.parked & Park.CONVERSATION and (
            client.conversation is None or client.head is None or client.head.shard != -2):
        raise Broken(f"{client}: it is parked for a conversation that it does not have")
    if client.parked & Park.WORDS and client.preparation is None and not client.finishing:
        raise Broken(f"{client}: it is parked until its words are looked through, and nobody does that")
    if client.parked & (Park.SWITCH | Park.WINDOW) and not goes_on:
        raise Broken(f"{client}: it waits for earlier requests, and has none")
    if client.parked & Park.DRAIN and not client.lane.draining:
        raise Broken(f"{client}: it waits for the end of a worker that goes on")
    return 0
