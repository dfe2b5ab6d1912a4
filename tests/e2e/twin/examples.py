"""Calls of every command, which must succeed: through the proxy as at one plain server.

Steps stand between semicolons, words between blanks; the last step is the example, the others make it possible. Where
keys lie is part of it: those of a command that asks one shard share the hash tag {t}, those of a command that is split
or asks all shards are spread. `WORDS` says what the words in angle brackets stand for.

What the proxy refuses today is here too, so that it is compared from the day on which it is served.
"""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple

from protocol.table import lookup

Step = list[bytes]


class Example(NamedTuple):
    """`name` as in the command table ("object|encoding"); the last step calls it."""

    name: str
    steps: list[Step]

    @property
    def call(self) -> Step:
        return self.steps[-1]


SCRIPT = b"return redis.call('SET', KEYS[1], ARGV[1])"
READER = b"return redis.call('GET', KEYS[1])"
LIBRARY = b"""#!lua name=mylib
redis.register_function('put', function(keys, args) return redis.call('SET', keys[1], args[1]) end)
redis.register_function{
    function_name='see', callback=function(keys) return redis.call('GET', keys[1]) end, flags={'no-writes'}
}"""

WORDS = {
    b"''": b"",
    b"<script>": SCRIPT,
    b"<sha>": sha1(SCRIPT).hexdigest().encode(),
    b"<reader>": READER,
    b"<reader-sha>": sha1(READER).hexdigest().encode(),
    b"<library>": LIBRARY,
}
DUMP, FUNCTIONS = b"<dump>", b"<functions>"
"""What a server says of a small hash (DUMP) and of `LIBRARY` (FUNCTION DUMP): differs from version to version."""

_DATA = """
append k a
bitcount k
set k foobar ; bitcount k 1 1 BYTE
set k foobar ; bitcount k 5 30 BIT
bitfield k SET u8 0 200 GET u4 0
set k foobar ; bitfield k OVERFLOW FAIL INCRBY u2 100 3 OVERFLOW SAT INCRBY i8 #2 100 GET i8 #2
set k foobar ; bitfield_ro k GET u8 0
set {t}a foo ; set {t}b bar ; bitop AND {t}d {t}a {t}b
mset {t}a foo {t}b ba {t}c xyz ; bitop OR {t}d {t}a {t}b {t}c
mset {t}a foo {t}b bar ; bitop XOR {t}d {t}a {t}b
set {t}a foo ; bitop NOT {t}d {t}a
set k foobar ; bitpos k 1
set k foobar ; bitpos k 0 2 -1 BYTE
set k foobar ; bitpos k 1 7 15 BIT
set {t}a v ; copy {t}a {t}b
set {t}a v ; copy {t}a {t}b DB 4
set {t}a v EX 100 ; set {t}b w ; copy {t}a {t}b REPLACE
mset a 1 b 2 c 3 d 4 e 5 ; dbsize
set k 5 ; decr k
decrby k 3
mset a 1 b 2 c 3 d 4 e 5 ; del a b c nosuch d e a
set k v ; delifeq k v
set k v ; dump k
hset k f v ; dump k
rpush k a b ; dump k
zadd k 1.5 a 2 b ; dump k
xadd k 1-1 f v ; dump k
pfadd k a b ; dump k
mset a 1 b 2 c 3 d 4 e 5 ; exists a b c a nosuch e
set k v ; expire k 100
set k v ; expireat k 4102444800
set k v ; expireat k 4102444800 ; expiretime k
mset a 1 b 2 c 3 d 4 e 5 ; flushall
mset a 1 b 2 c 3 d 4 e 5 ; flushdb
geoadd k 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
geoadd k NX CH 13.361389 38.115556 Palermo ; geoadd k XX CH 13.5 38.2 Palermo
geoadd k 13.361389 38.115556 Palermo 15.087269 37.502669 Catania ; geodist k Palermo Catania km
geoadd k 13.361389 38.115556 Palermo ; geohash k Palermo
geoadd k 13.361389 38.115556 Palermo ; geopos k Palermo nobody
geoadd {t}k 13.361389 38.115556 Palermo ; georadius {t}k 15 37 200 km STORE {t}d
geoadd {t}k 13.361389 38.115556 Palermo ; georadius {t}k 15 37 200 km WITHCOORD WITHDIST WITHHASH
geoadd k 13.361389 38.115556 Palermo ; georadius_ro k 15 37 200 km WITHDIST
geoadd k 13.361389 38.115556 Palermo ; georadiusbymember k Palermo 200 km
geoadd {t}k 13.361389 38.115556 Palermo ; georadiusbymember {t}k Palermo 200 km STOREDIST {t}d
geoadd k 13.361389 38.115556 Palermo ; georadiusbymember_ro k Palermo 200 km
geoadd k 13.361389 38.115556 Palermo ; geosearch k FROMLONLAT 15 37 BYRADIUS 200 km
geoadd k 1 1 a 1.1 1.1 b ; geosearch k FROMMEMBER a BYBOX 99 99 km DESC COUNT 1 ANY WITHCOORD WITHDIST WITHHASH
geoadd {t}k 13.361389 38.115556 Palermo ; geosearchstore {t}d {t}k FROMLONLAT 15 37 BYRADIUS 200 km
geoadd {t}k 1 1 a 1.1 1.1 b ; geosearchstore {t}d {t}k FROMMEMBER a BYBOX 99 99 km STOREDIST
set k v ; get k
setbit k 7 1 ; getbit k 7
set k v ; getdel k
set k v ; getex k EX 100
set k foobar ; getrange k 1 3
set k v ; getset k w
hset k f v g w ; hdel k f nosuch
hset k f v ; hexists k f
hset k f v ; hexpire k 100 FIELDS 1 f
hset k f v ; hexpireat k 4102444800 FIELDS 1 f
hset k f v ; hexpireat k 4102444800 FIELDS 1 f ; hexpiretime k FIELDS 1 f
hset k f v ; hget k f
hset k f v g w ; hgetall k
hset k f v ; hgetdel k FIELDS 1 f
hset k f v ; hgetex k EX 100 FIELDS 1 f
hincrby k f 5
hincrbyfloat k f 1.5
hset k f v g w ; hkeys k
hset k f v g w ; hlen k
hset k f v ; hmget k f nosuch
hmset k f v g w
hset k f v ; hexpire k 100 FIELDS 1 f ; hpersist k FIELDS 1 f
hset k f v ; hpexpire k 100000 FIELDS 1 f
hset k f v ; hpexpireat k 4102444800000 FIELDS 1 f
hset k f v ; hpexpireat k 4102444800000 FIELDS 1 f ; hpexpiretime k FIELDS 1 f
hset k f v ; hpexpire k 100000 FIELDS 1 f ; hpttl k FIELDS 1 f
hset k f v ; hrandfield k 1 WITHVALUES
hset k f v ; hscan k 0
hset k f v
hsetex k EX 100 FIELDS 1 f v
hsetnx k f v
hset k f foobar ; hstrlen k f
hset k f v ; hexpire k 100 FIELDS 1 f ; httl k FIELDS 1 f
hset k f v g w ; hvals k
incr k
incrby k 3
incrbyfloat k 1.5
mset a 1 b 2 c 3 d 4 e 5 ; keys *
mset {t}a ohmytext {t}b mynewtext ; lcs {t}a {t}b IDX
rpush k a b ; lindex k 1
rpush k a c ; linsert k BEFORE c b
rpush k a b ; llen k
rpush {t}a x y ; lmove {t}a {t}b LEFT RIGHT
rpush {t}b x y ; lmpop 2 {t}a {t}b LEFT COUNT 2
rpush k a b ; lpop k
rpush k a b a ; lpos k a RANK 2
lpush k a b
rpush k a ; lpushx k b
rpush k a b c ; lrange k 0 -1
rpush k a b a ; lrem k 0 a
rpush k a b ; lset k 0 c
rpush k a b c ; ltrim k 1 -1
set k v ; memory USAGE k
rpush k a b c ; memory USAGE k SAMPLES 0
mset a 1 b 2 c 3 d 4 e 5 ; mget a b c a nosuch d e
set k v ; move k 1
select 3 ; set k v EX 100 ; move k 5
select 15 ; rpush k a b ; move k 0
mset a 1 b 2 c 3 d 4 e 5 a 6
msetex 2 {t}a 1 {t}b 2 EX 100
msetnx {t}a 1 {t}b 2
set k v ; object ENCODING k
set k 12345 ; object ENCODING k
hset k f v ; object ENCODING k
set k v ; object FREQ k
set k v ; object IDLETIME k
set k v ; object REFCOUNT k
set k v EX 100 ; persist k
set k v ; pexpire k 100000
set k v ; pexpireat k 4102444800000
set k v ; pexpireat k 4102444800000 ; pexpiretime k
pfadd k a b c
pfadd k a b ; pfadd k a b
pfadd {t}a x y ; pfadd {t}b y z ; pfcount {t}a {t}b
pfadd k a b c ; pfcount k
pfadd {t}a x y ; pfadd {t}b y z ; pfmerge {t}d {t}a {t}b
pfadd {t}a x y ; pfmerge {t}a
psetex k 100000 v
set k v PX 100000 ; pttl k
set {t}a v ; rename {t}a {t}b
set {t}a v ; renamenx {t}a {t}b
restore k 0 <dump>
restore k 100000 <dump>
set k v ; restore k 4102444800000 <dump> REPLACE ABSTTL
restore k 0 <dump> IDLETIME 100
rpush k a b ; rpop k
rpush {t}a x y ; rpoplpush {t}a {t}b
rpush k a b
rpush k a ; rpushx k b
sadd k a b c
sadd k a b ; scard k
sadd {t}a x y ; sadd {t}b y ; sdiff {t}a {t}b
sadd {t}a x y ; sadd {t}b y ; sdiffstore {t}d {t}a {t}b
set k v
setbit k 7 1
setex k 100 v
setnx k v
set k foobar ; setrange k 3 v
sadd {t}a x y ; sadd {t}b y ; sinter {t}a {t}b
sadd {t}a x y ; sadd {t}b y ; sintercard 2 {t}a {t}b
sadd {t}a x y ; sadd {t}b y ; sinterstore {t}d {t}a {t}b
sadd k a ; sismember k a
sadd k a b c ; smembers k
sadd k a ; smismember k a b
sadd {t}a x ; smove {t}a {t}b x
rpush {t}k 3 1 2 ; sort {t}k DESC STORE {t}d
rpush {t}k 3 1 2 ; sort {t}k LIMIT 1 2 ASC
mset {t}w1 2 {t}w2 1 {t}v1 one {t}v2 two ; rpush {t}k 1 2 ; sort {t}k BY {t}w* GET {t}v* GET # STORE {t}d
rpush k 3 1 2 ; sort_ro k
sadd k c a b ; sort_ro k ALPHA DESC LIMIT 0 2
mset {t}w1 2 {t}w2 1 {t}v1 one {t}v2 two ; rpush {t}k 1 2 ; sort_ro {t}k BY {t}w* GET {t}v*
sadd k a ; spop k
sadd k a ; srandmember k
sadd k a b ; srem k a
sadd k a b ; sscan k 0
set k foobar ; strlen k
set k foobar ; substr k 1 3
sadd {t}a x y ; sadd {t}b z ; sunion {t}a {t}b
sadd {t}a x y ; sadd {t}b z ; sunionstore {t}d {t}a {t}b
mset a 1 b 2 c 3 d 4 e 5 ; touch a b c a nosuch
set k v EX 100 ; ttl k
set k v ; type k
mset a 1 b 2 c 3 d 4 e 5 ; unlink a b c nosuch d e a
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xack k g 1-1
xadd k 1-1 f v
xadd k 1-1 f v ; xadd k MAXLEN = 1 2-1 f w
xadd k 1-1 f v ; xadd k MINID 2 2-* f w g x
xadd k 1-1 f v ; xadd k NOMKSTREAM MAXLEN ~ 5 LIMIT 1 2-1 f v
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xautoclaim k g d 0 0
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xautoclaim k g d 0 0 COUNT 1 JUSTID
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xclaim k g d 0 1-1
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xclaim k g d 0 1-1 IDLE 5 RETRYCOUNT 3 FORCE JUSTID
xadd k 1-1 f v ; xdel k 1-1
xadd k 1-1 f v ; xgroup CREATE k g 0
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c ; xgroup DELCONSUMER k g c
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xgroup DELCONSUMER k g c
xgroup CREATE k g 0 MKSTREAM ; xgroup DESTROY k g
xgroup CREATE k g 0 MKSTREAM ; xgroup SETID k g 5-0
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c ; xinfo CONSUMERS k g
xgroup CREATE k g 0 MKSTREAM ; xinfo GROUPS k
xadd k 1-1 f v ; xadd k 1-2 f w ; xgroup CREATE k g 0 ENTRIESREAD 1 ; xinfo GROUPS k
xgroup CREATE k g $ MKSTREAM ; xgroup SETID k g 3-0 ENTRIESREAD 2 ; xinfo GROUPS k
xadd k 1-1 f v ; xinfo STREAM k
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xinfo STREAM k FULL COUNT 5
xadd k 1-1 f v ; xlen k
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xpending k g - + 10
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xpending k g
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xpending k g IDLE 0 - + 10 c
xadd k 1-1 f v ; xrange k - +
xadd {t}a 1-1 f v ; xadd {t}b 1-1 g w ; xread STREAMS {t}a {t}b 0 0
xadd {t}a 1-1 f v ; xadd {t}b 1-1 g w ; xread COUNT 1 BLOCK 1000 STREAMS {t}a {t}b 0 0
xgroup CREATE {t}a g 0 MKSTREAM ; xgroup CREATE {t}b g 0 MKSTREAM ; xreadgroup GROUP g c STREAMS {t}a {t}b 0 0
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c COUNT 1 NOACK STREAMS k >
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c BLOCK 1000 STREAMS k >
xadd k 1-1 f v ; xrevrange k + -
xadd k 1-1 f v ; xsetid k 5-0
xadd k 1-1 f v ; xsetid k 5-0 ENTRIESADDED 7 MAXDELETEDID 2-0
xadd k 1-1 f v ; xadd k 1-2 f v ; xtrim k MAXLEN 1
xadd k 1-1 f v ; xadd k 2-1 f v ; xtrim k MINID = 2
zadd k 1 a 2 b
zadd k 1 a 2 b ; zcard k
zadd k 1 a 2 b ; zcount k 2 +inf
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zdiff 2 {t}a {t}b WITHSCORES
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zdiffstore {t}d 2 {t}a {t}b
zincrby k 1.5 a
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zinter 2 {t}a {t}b WITHSCORES
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zintercard 2 {t}a {t}b
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zinterstore {t}d 2 {t}a {t}b WEIGHTS 2 3
zadd k 0 a 0 b 0 c ; zlexcount k [b +
zadd {t}b 1 x 2 y ; zmpop 2 {t}a {t}b MIN
zadd k 1.5 a ; zmscore k a nosuch
zadd k 1 a 2 b ; zpopmax k
zadd k 1 a 2 b ; zpopmin k 2
zadd k 1 a ; zrandmember k 1 WITHSCORES
zadd k 1 a 2 b ; zrange k 0 -1 WITHSCORES
zadd k 0 a 0 b 0 c ; zrangebylex k [b +
zadd k 1 a 2 b ; zrangebyscore k 2 +inf
zadd {t}a 1 x 2 y ; zrangestore {t}d {t}a 0 -1
zadd k 1 a 2 b ; zrank k b
zadd k 1 a 2 b ; zrem k b nosuch
zadd k 0 a 0 b 0 c ; zremrangebylex k [b +
zadd k 1 a 2 b ; zremrangebyrank k 0 0
zadd k 1 a 2 b ; zremrangebyscore k 2 +inf
zadd k 1 a 2 b ; zrevrange k 0 -1
zadd k 0 a 0 b 0 c ; zrevrangebylex k + [b
zadd k 1 a 2 b ; zrevrangebyscore k +inf 2
zadd k 1 a 2 b ; zrevrank k b
zadd k 1 a ; zscan k 0
zadd k 1.5 a ; zscore k a
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zunion 2 {t}a {t}b WITHSCORES
zadd {t}a 1 x 2 y ; zadd {t}b 3 y ; zunionstore {t}d 2 {t}a {t}b AGGREGATE MAX
"""

_SERVER = """
acl CAT
acl SETUSER someone ; acl DELUSER someone
acl DRYRUN default get k
acl GENPASS
acl GETUSER default
acl HELP
acl LIST
acl LOG
acl SETUSER someone
acl USERS
acl WHOAMI
auth default anything
rpush {t}a x y ; blmove {t}a {t}b LEFT RIGHT 1
rpush {t}b x y ; blmpop 1 2 {t}a {t}b LEFT COUNT 2
rpush {t}b x y ; blpop {t}a {t}b 1
rpush {t}b x y ; brpop {t}a {t}b 1
rpush {t}a x y ; brpoplpush {t}a {t}b 1
zadd {t}b 1 x 2 y ; bzmpop 1 2 {t}a {t}b MIN COUNT 2
zadd {t}b 1 x 2 y ; bzpopmax {t}a {t}b 1
zadd {t}b 1 x 2 y ; bzpopmin {t}a {t}b 1
client TRACKING ON OPTIN ; client CACHING YES
client CAPA redirect
client SETNAME me ; client GETNAME
client GETREDIR
client HELP
client ID
client IMPORT-SOURCE OFF
client INFO
client KILL ID 999999999
client LIST
client NO-EVICT ON
client NO-TOUCH ON
client PAUSE 1
client REPLY ON
client SETINFO LIB-NAME mine
client SETNAME me
client TRACKING ON
client TRACKINGINFO
client UNBLOCK 999999999
client UNPAUSE
command
command COUNT
command DOCS get
command GETKEYS mset a 1 b 2
command GETKEYSANDFLAGS mset a 1 b 2
command HELP
command INFO get
command LIST FILTERBY ACLCAT geo
commandlog GET 1 slow
commandlog HELP
commandlog LEN slow
commandlog RESET slow
config GET databases
config HELP
config RESETSTAT
config SET notify-keyspace-events Ex
config SET notify-keyspace-events Ex ; config SET notify-keyspace-events ''
multi ; set k v ; discard
echo hello
eval <script> 1 k v
eval return{KEYS[1],KEYS[2],ARGV[1]} 2 {t}a {t}b v
set k v ; eval_ro <reader> 1 k
script LOAD <script> ; evalsha <sha> 1 k v
script LOAD <reader> ; set k v ; evalsha_ro <reader-sha> 1 k
multi ; set k v ; get k ; exec
multi ; exec
function FLUSH ; function LOAD <library> ; fcall put 1 k v
function FLUSH ; function LOAD <library> ; set k v ; fcall_ro see 1 k
function FLUSH ; function LOAD <library> ; function DELETE mylib
function FLUSH ; function LOAD <library> ; function DUMP
function FLUSH
function HELP
function FLUSH ; function LOAD <library> ; function LIST WITHCODE
function FLUSH ; function LOAD <library>
function LOAD REPLACE <library>
function FLUSH ; function RESTORE <functions>
function FLUSH ; function LOAD <library> ; function STATS
hello 3
info
lastsave
latency DOCTOR
latency HELP
latency HISTOGRAM
latency HISTORY command
latency LATEST
latency RESET
lolwut
memory DOCTOR
memory HELP
memory MALLOC-STATS
memory PURGE
memory STATS
migrate 127.0.0.1 1 nosuch 0 100
module HELP
module LIST
monitor
multi
object HELP
pfadd k a ; pfdebug ENCODING k
pfselftest
ping
ping hello
psubscribe c*
publish c hello
pubsub CHANNELS
pubsub HELP
pubsub NUMPAT
pubsub NUMSUB c
pubsub SHARDCHANNELS
pubsub SHARDNUMSUB c
punsubscribe c*
quit
set k v ; randomkey
readonly
readwrite
replconf listening-port 1
replicaof NO ONE
reset
restore-asking k 0 <dump>
role
mset a 1 b 2 c 3 d 4 e 5 ; scan 0 COUNT 1000
script DEBUG NO
script LOAD <script> ; script EXISTS <sha> nosuch
script FLUSH
script HELP
script LOAD <script>
script LOAD <script> ; script SHOW <sha>
select 5
slaveof NO ONE
slowlog GET 0
slowlog HELP
slowlog LEN
slowlog RESET
spublish c hello
ssubscribe c
subscribe c
sunsubscribe c
set k v ; swapdb 0 1
time
unsubscribe c
unwatch
set k v ; wait 0 100
set k v ; waitaof 0 0 100
watch k
set {t}a v ; watch {t}a {t}b ; multi ; set {t}a w ; exec
xgroup HELP
xinfo HELP
"""

# Succeeds never on an idle server that was started without files: the error must be the same. Why -> what.
_FAILING = {
    "no script runs": """
        function KILL
        script KILL""",
    "nothing was slow": "latency GRAPH command",
    "the server has no such file": """
        acl LOAD
        acl SAVE
        config REWRITE""",
    "the server was not told to allow it": """
        module LOAD nosuch.so
        module LOADEX nosuch.so
        module UNLOAD nosuch""",
}

# Asked of the proxy alone, which must refuse it. Why -> what.
_ALONE = {
    "it would end the server, stop it, or hand it over": """
        debug SLEEP 0
        failover ABORT
        shutdown NOSAVE""",
    "a child of the server would write files": """
        bgrewriteaof
        bgsave
        save""",
    "the connection would become that of a replica": """
        psync ? -1
        sync""",
    "servers know it in cluster mode only": """
        asking
        cluster ADDSLOTS 1
        cluster ADDSLOTSRANGE 1 2
        cluster BUMPEPOCH
        cluster CANCELSLOTMIGRATIONS
        cluster COUNT-FAILURE-REPORTS node
        cluster COUNTKEYSINSLOT 1
        cluster DELSLOTS 1
        cluster DELSLOTSRANGE 1 2
        cluster FAILOVER
        cluster FLUSHSLOT 1
        cluster FLUSHSLOTS
        cluster FORGET node
        cluster GETKEYSINSLOT 1 1
        cluster GETSLOTMIGRATIONS
        cluster HELP
        cluster INFO
        cluster KEYSLOT k
        cluster LINKS
        cluster MEET 127.0.0.1 1
        cluster MIGRATESLOTS SLOTSRANGE 1 2 NODE node
        cluster MYID
        cluster MYSHARDID
        cluster NODES
        cluster REPLICAS node
        cluster REPLICATE node
        cluster RESET
        cluster SAVECONFIG
        cluster SET-CONFIG-EPOCH 1
        cluster SETSLOT 1 STABLE
        cluster SHARDS
        cluster SLAVES node
        cluster SLOT-STATS SLOTSRANGE 1 2
        cluster SLOTS
        cluster SYNCSLOTS ESTABLISH
        clusterscan 0""",
}


def _examples(text: str) -> list[Example]:
    return [_example(line.strip()) for line in text.splitlines() if line.strip()]


def _example(line: str) -> Example:
    steps = [[WORDS.get(word, word) for word in step.encode().split()] for step in line.split(" ; ")]
    command = lookup(steps[-1])
    assert command is not None, f"no such command: {line}"
    return Example(command.name.decode(), steps)


EXAMPLES = _examples(_DATA) + _examples(_SERVER)
FAILING = {reason: _examples(text) for reason, text in _FAILING.items()}
ALONE = {reason: _examples(text) for reason, text in _ALONE.items()}
