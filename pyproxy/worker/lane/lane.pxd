"""The compiled half of a worker: what its modules share with lane.pyx."""

cimport cython

from protocol.scan cimport Limits, ReplyScan, RequestScan


cdef enum:          # how long a server may take; see Command.slow and Command.shard_wide
    SLOW = 1
    SHARD_WIDE = 2

cdef enum:
    LARGE = 16384           # bytes; from here on they are passed on as they are, not joined
    # Every server takes a request of so many, see server_limits.py; a larger read is not asked again.
    SAFE_REQUEST_BYTES = 983040
    REPLAY_BYTES = 262144   # a larger write cannot be held or sent again once it was begun

cdef enum Door:
    IDLE = 0        # no connection yet: the first command asks the link for one
    CONNECTING = 1  # commands wait, bounded by the connect deadline
    OPEN = 2
    CONGESTED = 3   # the server reads too slowly: clients are parked before their next command to it
    DOWN = 4        # commands are answered at once with `refusal`


# Why nothing more of a client is begun.  A reason is set by whoever finds it, and the table says who takes it away; a
# client goes on, in a turn of its own, when the last reason is gone.  check.pyx holds that each has somebody to do so.
#
#   reason        parked by                                  unparked by
#   WINDOW        Client._command, .conversation_sent        _reconsider, as its answers are written
#   SWITCH        Client.switch, .converse, .settled,        _reconsider, when all that it asked is answered
#                 .may_use; replay.pxi for one whose
#                 request waits there
#   TURN          Client._next_turn                          Lane.turn, the next one, by Client.go_on
#   DOOR          Backend._park                              Backend._unpark_waiting, when the door opens or closes;
#                                                            ._expire_waiting
#   DRAIN         Lane.drain, Client.connection_made         nobody: it is closed when it is idle
#   HOLD          Client.hold, for gate.py                   Client.release, when the gate opens; .leave, refused
#   CONVERSATION  Client.converse                            Client.answer, .conversation_sent
#   WORDS         prepare, in words.pyx                      Preparation, when it is done
cdef enum Park:
    WINDOW = 1          # too much of it is out, or it does not read
    SWITCH = 2          # its earlier requests must be answered first: it changes its protocol, database, or server
    TURN = 4            # it had its share of this turn of the loop
    DOOR = 8            # a backend is congested
    DRAIN = 16          # the worker is going
    HOLD = 32           # a gate is closed; unlike for the others, reading goes on
    CONVERSATION = 64   # a conversation is going on; see conversation.py
    WORDS = 128         # the words of its next command are looked through


# says in the log what nobody expected; the exception is the one being handled
cdef int bug(object where) except -1

# takes a command: whether it was begun or answered; False: not now, the client was parked
ctypedef bint (*Splitter)(Client client, Route route, const char *frame, Py_ssize_t size) except -1
# the one answer to a split command whose parts are all answered, in so many bytes; None: it will be given to its place
ctypedef bytes (*Merger)(Split split, Pending place, Py_ssize_t size)


@cython.final
cdef class Key:
    cdef const char *data
    cdef Py_ssize_t size


@cython.final
cdef class Route:
    cdef readonly bytes name
    cdef readonly bytes upper       # its name as it is sent to a server
    cdef readonly object command
    cdef readonly int arity
    cdef readonly int plain_key     # argv position of the only key; 0: not a plain command
    cdef readonly int step
    cdef readonly str merge         # how the parts of a split are merged; "" if it is not split
    cdef readonly str merged_by     # how the answers of several shards are, whoever asked them
    cdef readonly bint write
    cdef readonly int max_args      # words of a command that the proxy answers itself, in one piece; 0: as many as come
    # It may name very many keys, or what it is sent with may be large, and is no plain one.
    cdef readonly bint names_keys
    cdef readonly int timeout_class  # 0, SLOW or SHARD_WIDE
    cdef readonly bint replayable   # what a server says that it refused was not done: it may be sent again


ctypedef unsigned char Flag     # 0 or 1; in a byte, as all of a Pending is cleared for each request


# The life of a Pending.  +: set; -: None, 0 or False; .: either.  "place": it is in its client's order of replies.
# "queue": it is in a backend's request queue, among the last `unsent` of it, or before these ("sent"), where its bytes
# were written to a transport; or it is in `replay_queue`, or in a Withheld.  check.pyx holds most of this against what
# there is.
#
#   state                 client split place queue    done reply request  besides
#   begun                   +      -     -   -         -     -     .      nothing can be lost of it yet; size
#   queued                  +      -     +   unsent    -     -     .      sent_at; in inflight, as all that are not done
#   sent                    +      -     +   sent      -     -     .      ahead: counts down to its own answer
#   answered                +      -     +   -         +     +     -      until those before it are, and it is written
#   answered by the proxy   +      -     +   -         +     +     -      never counted in inflight
#   expired                 +      -     +   sent      +     +     -      its reply is an error; of a write:
#                                                                         unresolved_for
#   tombstone               -      -     -   any       .     .     .      its client left, or it expired and that was
#                                                                         written, or it is part of a split that has
#                                                                         its error: it swallows its reply
#   tombstone of a read     -      -     -   sent      -     -     -      at the position of a read that another server
#                                                                         was asked
#   to be replayed          +      -     +   replay    -     -     +      replay_since; waits for the gate, or a server
#   withheld                +      -     +   Withheld  -     -     +      refused; or a read behind such a write (its
#                                                                         frame beside it there), until it is decided
#   place of a split        +      -     +   -         -     -     -      shard: -1, or the one it is relayed to; it is
#                                                                         the Split's `place`, and never in a queue
#   part of a split         -      +     -   any       -     -     .      as a request, in all of the above but for its
#                                                                         place
#   place of a conversation +      -     +   -         -     -     -      shard: -2; `client.conversation` answers it
#   canary                  -      -     -   any       -     -     +      expected; where it is not sent there will be
#                                                                         another, as it is never replayed
#
# A place is linked by next_placed, a position in a queue by next_queued; both are None outside.

@cython.final
cdef class Pending:
    cdef Client client
    cdef Pending next_placed
    cdef Pending next_queued
    cdef bytes reply
    cdef bytes request              # the whole frame, where it may have to be sent again; else None
    cdef Split split
    cdef short shard                # -1: several; -2: a conversation, which asks shards in its own time
    cdef Flag write
    cdef Flag done
    cdef Flag mute
    cdef Flag retried
    cdef Flag primary_only          # a read that only the primary may answer
    cdef unsigned char timeout_class  # of the slowest of its commands
    cdef Client unresolved_for      # whose write it is that was said to be uncertain while its reply may still come
    cdef bytes expected             # of a canary: the one answer that is in step; None: it is none
    cdef int queued                 # commands of its transaction; 0: it is none
    cdef int ahead                  # answers that come before its own: to MULTI, and to each that was queued
    cdef readonly double sent_at
    cdef double replay_since        # when it was begun; 0: it was never in a replay queue
    cdef Py_ssize_t size


@cython.final
cdef class Withheld:
    cdef list items                 # from the first refused write of a client on, with the frames that came
    cdef int left                   # of its later requests on the connection, not answered yet
    cdef bint applied               # one of the later writes was not refused


@cython.final
cdef class Split:
    cdef Lane lane
    cdef Pending place
    cdef Route route
    cdef bint write
    cdef bint given_up              # its answer is beyond the memory budget: nothing is kept of it
    cdef int left
    cdef bytes order                # shard index of each key, as native uint16
    cdef list commands              # of a transaction: the shard index of each, or its Spread; else None
    cdef list frames                # of each shard: its reply, or None
    cdef dict failed                # shard index -> (error line, whether it surely was not applied); None: none failed
    cdef Py_ssize_t buffered        # bytes of the frames
    cdef object on_answered         # of a conversation: takes the answers; None: they are merged and are the client's
    cdef object make_answer         # makes the client's answer of the one that came; None: they are merged
    cdef Pending part(self, int shard, Py_ssize_t size)
    cdef int answered(self, Pending part, bytes frame) except -1
    cdef int fail(self, Pending part, bytes line, bint unsent) except -1
    cdef int not_sent(self, Backend backend) except -1
    cdef int give_up(self) except -1
    cdef int _count_buffered(self, Py_ssize_t size) except -1
    cdef int _merge(self) except -1
    cdef bytes _not_kept(self, int shard)
    cdef int _failed(self, int shard, bytes line, bint unsent) except -1


cdef struct CachedRoute:
    unsigned long long name         # of a command as a client wrote it, if that is short, and its length; 0: none yet
    void *route                     # of `routes`


@cython.final
cdef class Lane:
    cdef readonly object loop
    cdef readonly object dispatch
    cdef readonly object row
    cdef object hash32
    cdef Key key
    cdef Splitter splitter
    cdef Splitter preparer
    cdef Merger merger
    cdef object checker             # see check.pyx
    cdef dict routes
    cdef CachedRoute route_cache[64]
    cdef dict pools
    cdef readonly list links        # to the primaries
    cdef readonly list replica_links        # links to replicas of the shards
    # The Outcome of a request that may not be sent: NOT_NOW, or the line that refuses it.
    cdef object declined
    cdef double ticked
    cdef bint slept                 # since the last tick
    cdef bint is_late               # with this tick: what servers did meanwhile was not seen
    cdef public object on_slept
    cdef public bint at_rest        # nothing is out: `on_begun` is told of the next thing that happens
    cdef public object on_begun
    cdef unsigned short owner[16384]
    cdef public object slices       # for what takes long, see pyproxy/slices.py
    # Bytes or a bytearray that are passed on uncopied where they are all of a large request.
    cdef object donated
    cdef list dirty_clients
    cdef list dirty_backends
    cdef double dirty_since
    cdef bint received              # anything, since the last turn
    cdef list backlog
    cdef bint awake
    cdef readonly set clients
    cdef int accepted
    cdef list lingering
    cdef double now
    cdef Limits limits
    cdef long long bulk_limit       # the configuration's bound; that of a server may be lower
    cdef readonly long long block_bytes  # the servers' bound of a transaction
    cdef Py_ssize_t reply_line      # bytes that a line of a server may have
    cdef readonly long long memory_limit
    cdef readonly long long window_limit
    cdef readonly long long output_limit
    cdef Py_ssize_t first_typical_reply   # size that the answers of a new client are taken to have
    cdef readonly double reply_s
    cdef readonly double slow_reply_s  # for what goes through all keys
    cdef readonly double slow_s     # for other slow requests
    cdef readonly double silence_s
    cdef readonly long long buffered
    cdef readonly long long upstream_buffered  # of it, what waits for a server, or comes from one: it is no client's
    cdef readonly long long partial_reply_bytes  # of that, replies that are not whole yet, if they are large
    cdef readonly long long partial_message_bytes  # and messages that are not whole, on other connections
    cdef list partial_replies       # the wires on which they come
    cpdef bint has_room(self, Py_ssize_t size) except -1
    cdef int keep_budget(self) except -1
    cdef list _partial_splits(self)
    cdef bint _is_over(self)
    cdef readonly long long commands
    cdef readonly long long errors
    cdef readonly long long bytes_in
    cdef readonly long long bytes_out
    cdef readonly long long inflight
    cdef readonly long long shed_clients
    cdef readonly long long timeouts
    cdef readonly long long uncertain
    cdef readonly long long protocol_errors
    cdef readonly long long splits
    cdef readonly long long out_of_step  # connections that were closed as the reply to a canary was out of order
    cdef readonly bint canary       # connections that clients share are watched by canaries
    cdef bytes _random              # of which nonces are made, and how much of it is used
    cdef Py_ssize_t _random_used
    cdef bytes nonce(self)
    cdef long long next_client_id
    cdef int id_step
    cdef readonly bint draining
    cdef Route route(self, bytes name)
    cdef Route route_at(self, const char *name, Py_ssize_t size)
    cpdef double deadline_s(self, int timeout_class)
    cpdef int timeout_class_of(self, bytes frame, int queued) except -1
    cdef int slot(self, const char *key, Py_ssize_t size) except -1
    cdef void wake(self) noexcept
    cdef int wake_up(self) except -1
    cpdef count_accepted(self, int change)
    cdef int mark_connection_lost(self, int shard) except -1
    cdef int settle(self, Pending item, bytes frame) except -1


@cython.final
cdef class Client:
    cdef readonly Lane lane
    cdef object transport
    cdef object write
    cdef list pool
    cdef Pending head
    cdef Pending tail
    cdef list ready
    cdef bytearray inbuf
    cdef RequestScan scan
    # Bytes of the request that was offered in vain, at the beginning of `inbuf`; 0: none.
    cdef Py_ssize_t offered
    cdef int parked
    cdef bint dirty
    cdef bint writing_paused
    cdef bint write_buffered        # the transport may still have bytes of ours
    cdef bint peer_closed           # it has closed its connection: nothing more can be written to it
    cdef bint eof
    # Bytes in the transport's write buffer at the last check, and since when that has not changed.
    cdef Py_ssize_t unwritten
    cdef double unwritten_since
    cdef bint finishing
    cdef bint lingering
    cdef bint reading_paused
    cdef bint busy
    cdef double linger_until
    cdef Py_ssize_t linger_unread
    cdef readonly Py_ssize_t buffered_out  # bytes of its answers in this process
    cdef Py_ssize_t in_transport
    cdef readonly Py_ssize_t buffered_in  # bytes of its requests that were not begun
    cdef Py_ssize_t inflight_bytes
    cdef int inflight
    cdef Py_ssize_t typical_reply   # size of its answers lately; decides how many may be out
    cdef bytes last_name
    cdef dict upstreams             # shard -> the backend of a replica that it reads from; None: of none
    cdef dict unresolved            # shard -> how many of its writes may still be applied there; None: none may
    cdef double door_from           # since when the command of this number has waited at a congested door
    cdef long long door_command
    cdef object preparation           # what looks through the words of the command that is offered; None: nothing does
    cdef object words               # those words, once that is done; None: they have not been looked through
    cdef object router              # where it is held
    cdef double hold_from
    cdef long long hold_command     # which one that was for
    cdef readonly long long id
    cdef readonly int proto
    cdef readonly int db
    cdef readonly int fd
    cdef readonly str addr
    cdef readonly str laddr
    cdef readonly double created
    cdef readonly double last_active
    cdef readonly double unfinished_since
    cdef readonly long long commands
    cdef public bytes name
    cdef public bytes lib_name
    cdef public bytes lib_ver
    cdef public int reply_mode
    cdef public object transaction  # begun by MULTI; None: in none
    cdef public object conversation  # the conversation that is going on; None: none
    cdef public object watched      # the keys of a WATCH, and the connection that watches them; None: none
    # Bit shard % 64: the shards it has written to since WAIT last forgot them; those whose connection was lost since.
    cdef public unsigned long long written_shards
    cdef public unsigned long long lost_shards
    cdef public object waited       # by WAIT: shard -> how many replicas had all of its writes; None: it never waited
    cdef readonly Py_ssize_t queued_bytes  # of it
    cdef object _subscriber         # what it is subscribed to, see registry.py; None: to nothing
    cdef readonly bint limited      # subscribed, in RESP2: only few commands are taken
    cdef Py_ssize_t subscribed_bytes  # what its subscriptions cost
    # What its next command costs while it is looked through, or is done by a conversation.
    cdef readonly Py_ssize_t command_bytes
    cdef int end_command(self) except -1
    cpdef touch(self)
    cpdef unpark(self, int reasons)
    cpdef go_on(self)
    cpdef finish(self)
    cdef Pending new_pending(self, Py_ssize_t size)
    cdef void enqueue(self, Pending item) noexcept
    cdef int put_answer(self, bytes reply) except -1
    cdef int conversation_sent(self) except -1
    cdef int _from_buffer(self) except -1
    cdef Py_ssize_t _consume(self, const char *p, Py_ssize_t n) except -1
    cdef int _inline(self, bytes line) except -1
    cdef int _command(self, const char *frame, Py_ssize_t size, bint is_framed) except -1
    cdef void _counted(self)
    cdef int _count_input(self) except -1
    cdef int _on_fault(self) except -1
    cdef int _next_turn(self) except -1


@cython.final
cdef class Backend:
    cdef readonly Lane lane
    cdef readonly object link
    cdef readonly int shard
    cdef unsigned long long bit     # of the shard, in `Client.written_shards`
    cdef readonly int proto
    cdef readonly int db
    cdef readonly Wire wire
    cdef readonly object router     # of the shard, once it is known
    cdef bint plain                 # open, and all is as usual
    cdef bint _guarded
    cdef bint replays_writes        # writes may have to be sent again: the shard has replicas
    cdef int door
    cdef readonly bytes refusal
    cdef Pending head
    cdef Pending tail
    cdef Pending aging              # the oldest request whose deadline has not passed
    cdef public bint canary         # an ECHO goes before each request, and its reply must come in order
    cdef Py_ssize_t count
    cdef bytes last_canary          # the answer of the last one
    cdef Py_ssize_t canaries        # how many of those that are counted are canaries
    cdef Py_ssize_t unsent          # how many at the tail were never given to a transport
    cdef char *outbuf
    cdef Py_ssize_t outbuf_len
    cdef Py_ssize_t outbuf_room
    cdef list chunks
    cdef Py_ssize_t unsent_bytes
    cdef readonly bint is_bulk      # the second connection, beside that which most requests share
    cdef Backend bulk               # of the first one: the second, once there has been a need for it; None: not yet
    cdef bint in_transfer           # a large reply is coming, and nothing else can meanwhile
    cdef int shard_wide             # requests through all keys that are out or wait to be sent
    cdef double free_at             # until when it is known to have been busy with what was asked before
    cdef long long acknowledged     # bytes that had reached the other end when enough had last, and when that was
    cdef double acknowledged_at
    cdef set uncertain_clients      # clients whose write was uncertain when the connection was lost; None: none
    cdef bint dirty
    cdef double last_frame
    cdef public int unanswered      # requests in a row whose deadline passed, and nothing came since
    cdef double unanswered_at
    cdef list replay_queue          # begun, to be sent when the gate opens; in no queue
    cdef dict withheld              # client -> Withheld; None: there is none
    cdef list waiting
    cdef int _set_door(self, int door) except -1
    cdef int put(self, Pending item, const char *frame, Py_ssize_t size) except -1
    cdef int _write_to(self, Wire wire) except -1
    cdef int _lost_by_fault(self, Wire wire, str why) except -1
    cdef int _cut_off_owner(self, Pending item) except -1
    cdef Py_ssize_t charged         # what of the lane's `buffered` is for this one
    cdef Py_ssize_t copies          # of it, what was copied, as it was counted last
    cdef void _review(self) noexcept
    cdef int charge(self) except -1
    cdef Py_ssize_t _copied(self)
    cdef public double idle_s       # without a request for so long, it is sent a PING; 0: never
    cdef bint admit(self, Client client, Py_ssize_t size) except -1
    cdef bint _park(self, Client client) except -1
    cpdef flush(self)
    cpdef expire(self, double now, bint busy)
    cdef int set_in_transfer(self, bint begins) except -1
    cdef void _count_shard_wide(self, int change) noexcept
    cdef Py_ssize_t _unacknowledged_bytes(self, Wire wire) except -1
    cdef bint _makes_progress(self, double now) except -1
    cdef int _expire_one(self, Pending item, double now) except -1
    cdef int _expire_waiting(self, double now) except -1
    cdef int mark_uncertain(self, object owner) except -1
    cdef int _resolve(self, Pending item) except -1
    cdef int _resolve_uncertain(self) except -1
    cdef int _unpark_waiting(self) except -1
    cdef Pending _new_canary(self)
    cdef int _mark(self) except -1
    cdef int _append(self, const char *p, Py_ssize_t n) except -1
    cdef int _pack(self) except -1
    cdef int _fail(self, Pending item, str why, bint unsent) except -1
    cdef int _refuse(self, Pending item, bytes line, bint unsent) except -1
    cdef object _owner(self, Pending item)
    cdef int _put_first(self, list retries) except -1


@cython.final
cdef class Wire:
    cdef readonly Backend backend
    cdef object transport
    cdef object on_setup
    cdef object on_lost
    cdef bytearray inbuf
    cdef bytes large                # a bulk that is being received, of its final size
    cdef Py_ssize_t large_filled
    cdef Py_ssize_t skipping        # bytes still to come of a bulk that is larger than the memory budget: thrown away
    cdef char last                  # the last byte that was thrown away
    cdef bint overlong              # all that comes of this answer is thrown away
    cdef Py_ssize_t charged         # what of the lane's `buffered` is for an answer that is not whole
    cdef ReplyScan scan
    cdef int fd
    cdef bint tls                   # the socket belongs to the transport alone
    cdef bint write_buffered
    cdef bint writing_paused
    cdef bint lost
    cdef readonly double last_bytes
    cdef long long bytes_in
    cdef long long bytes_out
    cdef long long progress_bytes   # of a reply that comes: how many there were when enough had come last, and when
    cdef double progress_at
    cdef public object run_id       # of the server, once somebody has asked it; None: not known
    cdef Py_ssize_t _cut(self, const char *p, Py_ssize_t n) except -2
    cdef int _receive(self, bytes data) except -1
    cdef int _on_fault(self, Pending item) except -1
    cdef bint _is_redirection(self, const char *p, Py_ssize_t n)
    cdef bint _report_refusal(self, const char *p, Py_ssize_t n) except -1
    cdef int put(self, const char *data, Py_ssize_t size, object whole) except -1
    cdef int _garbled(self, str what) except -2
    cdef bint _expects_reply(self) except -1
    cdef bint _check_canary(self, Pending item, const char *p, Py_ssize_t n) except -1
    cdef int _out_of_step(self, str what) except -1
    cdef int _deliver(self, Pending item, const char *p, Py_ssize_t n, bytes frame) except -1
    cdef int _swallow(self, Pending item, const char *p, Py_ssize_t n) except -1
    cdef bint _begin_large(self, const char *p, Py_ssize_t n) except -1
    cdef Py_ssize_t _fill(self, bytes data) except -1
    cdef Py_ssize_t _skip(self, bytes data) except -1
    cdef int _unfinished(self) except -1
    cdef int _charge(self, Py_ssize_t size) except -1
    cdef int discard(self) except -1
    cdef int _trim(self) except -1
    cdef int _end_garbled(self, str why) except -2
    cdef int _deliver_overlong(self) except -1


cdef Backend choose_backend(Client client, Backend backend, bint write, Py_ssize_t size)
cdef bytes refusal_at_gate(Client client, Backend backend, Py_ssize_t size)
cdef int cut_off(Client client) except -1
