# What a client is answered: gathered, written, and the close behind it.  Included by lane.pyx.


cdef bint is_stuck(Client client) except -1:
    """Whether it is not read any further, as it has all that it may have, and takes nothing either."""
    cdef Py_ssize_t unwritten
    if not (client.writing_paused and (client.reading_paused or client.eof)) or client.transport is None:
        client.unwritten_since = 0
        return False
    unwritten = client.transport.get_write_buffer_size()
    if not client.unwritten_since or unwritten != client.unwritten:
        client.unwritten = unwritten
        client.unwritten_since = client.lane.now
    return client.lane.now - client.unwritten_since >= WRITE_STALL_S


cdef int write_answers(Client client) except -1:
    """Writes the answered places at the head; then sees whether the client may go on, or is done."""
    cdef Pending item
    cdef list chunks
    cdef Py_ssize_t size = 0, total = 0, one
    cdef Lane lane = client.lane
    client.dirty = False
    if client.transport is None:
        return 0
    item = client.head
    if (item is not None and item.done and item.next_placed is None and not item.mute and not client.ready
            and not client.write_buffered):
        _write_only(client, item)      # without a pipeline there is nothing to gather
    elif not client.writing_paused:
        chunks = client.ready
        client.ready = []
        for reply in chunks:
            size += PyBytes_GET_SIZE(<bytes>reply)
        while item is not None and item.done and size + total < WRITE_BYTES:
            one = PyBytes_GET_SIZE(item.reply)
            client.head = item.next_placed
            if client.head is None:
                client.tail = None
            item.next_placed = None
            item.client = None
            if item.mute:
                client.buffered_out -= one
                lane.buffered -= one
            elif one >= LARGE:
                if chunks:
                    _write_chunks(client, chunks, size)
                    total += size
                    size = 0
                    chunks = []
                _write_chunks(client, [item.reply], one)
                total += one
            else:
                chunks.append(item.reply)
                size += one
            item = client.head
            if client.writing_paused:
                break
        if chunks:
            _write_chunks(client, chunks, size)
        if item is not None and item.done and not client.writing_paused:
            client.touch()
    if client.parked or client.eof or client.finishing:
        _reconsider(client)
    return 0


cdef int _write_only(Client client, Pending item) except -1:
    client.head = client.tail = None
    item.client = None
    return _write(client, item.reply, PyBytes_GET_SIZE(item.reply))


cdef int _write_chunks(Client client, list chunks, Py_ssize_t size) except -1:
    return _write(client, <bytes>chunks[0] if len(chunks) == 1 else b"".join(chunks), size)


cdef int _write(Client client, bytes data, Py_ssize_t size) except -1:
    cdef Py_ssize_t written = 0
    client.buffered_out -= size
    client.lane.buffered -= size
    if client.peer_closed:
        return 0
    client.lane.bytes_out += size
    if client.write_buffered and not client.transport.get_write_buffer_size():
        client.write_buffered = False
    if not client.write_buffered:
        written = _send(client.fd, PyBytes_AS_STRING(data), size)
        if written == size:
            return 0
        if written < 0:
            # It has closed, and what it sent before that may still be in the socket: to write on would have the
            # transport give up, and nothing more would be read.  Reading ends it: by FIN, or by the reset it was.
            client.peer_closed = True
            return 0
    # from here on the transport has bytes: nothing may overtake them
    client.write_buffered = True
    client.write(memoryview(data)[written:] if size - written >= LARGE else data[written:])
    return 0


cdef int _reconsider(Client client) except -1:
    cdef bint idle = client.head is None and not client.ready
    if idle and (client.finishing or client.parked & Park.DRAIN or (client.eof and not client.parked)):
        _close(client)
        return 0
    if client.parked & Park.SWITCH and client.head is None:
        client.unpark(Park.SWITCH)
    if (client.parked & Park.WINDOW and not _fills(client, 2 * client.inflight - 1) and not client.writing_paused
            and client.buffered_out <= REPLIES_BYTES >> 1 and client.inflight_bytes <= REQUESTS_BYTES >> 1):
        client.unpark(Park.WINDOW)
    return 0


cdef int _close(Client client) except -1:
    """FIN after the last byte; then what the client still sends is read and dropped, so that no RST is sent."""
    if not client.lingering:
        client.lingering = True
        client.finishing = True
        client.inbuf = None
        client.end_command()
        client._count_input()
        client.linger_until = client.lane.now + LINGER_S
        client.lane.lingering.append(client)
        if not client.eof:
            client.transport.write_eof()
    if client.eof:
        client.transport.close()
    return 0


cdef bint has_lingered(Client client) except -1:
    """Whether a closing client that neither reads nor closes has been cut off; one that still reads has time."""
    cdef Py_ssize_t unread = client.transport.get_write_buffer_size()
    if unread and unread != client.linger_unread:
        client.linger_unread = unread
        client.linger_until = client.lane.now + LINGER_S
    if client.lane.now < client.linger_until:
        return False
    client.abandon()
    return True
