"""One call of every command that goes to shards, which must succeed: through the proxy as at one plain server.

Steps stand between semicolons, words between blanks; the last step is the example, the others make it possible.
`<dump>` is the payload of a small hash. Where keys lie is part of it: those of a command that asks one shard share the
hash tag {t}, those of a command that is split or asks all shards are spread.
"""

from protocol.table import lookup

Step = list[bytes]

_EXAMPLES = """
append k a
bitcount k
set k foobar ; bitcount k 1 1 BYTE
bitfield k SET u8 0 200 GET u4 0
set k foobar ; bitfield_ro k GET u8 0
set {t}a foo ; set {t}b bar ; bitop AND {t}d {t}a {t}b
set k foobar ; bitpos k 1
set {t}a v ; copy {t}a {t}b
mset a 1 b 2 c 3 d 4 e 5 ; dbsize
set k 5 ; decr k
decrby k 3
mset a 1 b 2 c 3 d 4 e 5 ; del a b c nosuch d e a
set k v ; delifeq k v
set k v ; dump k
mset a 1 b 2 c 3 d 4 e 5 ; exists a b c a nosuch e
set k v ; expire k 100
set k v ; expireat k 4102444800
set k v ; expireat k 4102444800 ; expiretime k
mset a 1 b 2 c 3 d 4 e 5 ; flushall
mset a 1 b 2 c 3 d 4 e 5 ; flushdb
geoadd k 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
geoadd k 13.361389 38.115556 Palermo 15.087269 37.502669 Catania ; geodist k Palermo Catania km
geoadd k 13.361389 38.115556 Palermo ; geohash k Palermo
geoadd k 13.361389 38.115556 Palermo ; geopos k Palermo nobody
geoadd {t}k 13.361389 38.115556 Palermo ; georadius {t}k 15 37 200 km STORE {t}d
geoadd k 13.361389 38.115556 Palermo ; georadius_ro k 15 37 200 km WITHDIST
geoadd k 13.361389 38.115556 Palermo ; georadiusbymember k Palermo 200 km
geoadd k 13.361389 38.115556 Palermo ; georadiusbymember_ro k Palermo 200 km
geoadd k 13.361389 38.115556 Palermo ; geosearch k FROMLONLAT 15 37 BYRADIUS 200 km
geoadd {t}k 13.361389 38.115556 Palermo ; geosearchstore {t}d {t}k FROMLONLAT 15 37 BYRADIUS 200 km
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
mset a 1 b 2 c 3 d 4 e 5 ; mget a b c a nosuch d e
set k v ; move k 1
mset a 1 b 2 c 3 d 4 e 5 a 6
msetex 2 {t}a 1 {t}b 2 EX 100
msetnx {t}a 1 {t}b 2
set k v ; object ENCODING k
set k v ; object FREQ k
set k v ; object IDLETIME k
set k v ; object REFCOUNT k
set k v EX 100 ; persist k
set k v ; pexpire k 100000
set k v ; pexpireat k 4102444800000
set k v ; pexpireat k 4102444800000 ; pexpiretime k
pfadd k a b c
pfadd {t}a x y ; pfadd {t}b y z ; pfcount {t}a {t}b
pfadd {t}a x y ; pfadd {t}b y z ; pfmerge {t}d {t}a {t}b
psetex k 100000 v
set k v PX 100000 ; pttl k
set {t}a v ; rename {t}a {t}b
set {t}a v ; renamenx {t}a {t}b
restore k 0 <dump>
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
rpush k 3 1 2 ; sort_ro k
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
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xautoclaim k g d 0 0
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xclaim k g d 0 1-1
xadd k 1-1 f v ; xdel k 1-1
xadd k 1-1 f v ; xgroup CREATE k g 0
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c ; xgroup DELCONSUMER k g c
xgroup CREATE k g 0 MKSTREAM ; xgroup DESTROY k g
xgroup CREATE k g 0 MKSTREAM ; xgroup SETID k g 5-0
xgroup CREATE k g 0 MKSTREAM ; xgroup CREATECONSUMER k g c ; xinfo CONSUMERS k g
xgroup CREATE k g 0 MKSTREAM ; xinfo GROUPS k
xadd k 1-1 f v ; xinfo STREAM k
xadd k 1-1 f v ; xlen k
xadd k 1-1 f v ; xgroup CREATE k g 0 ; xreadgroup GROUP g c STREAMS k > ; xpending k g - + 10
xadd k 1-1 f v ; xrange k - +
xadd {t}a 1-1 f v ; xadd {t}b 1-1 g w ; xread STREAMS {t}a {t}b 0 0
xgroup CREATE {t}a g 0 MKSTREAM ; xgroup CREATE {t}b g 0 MKSTREAM ; xreadgroup GROUP g c STREAMS {t}a {t}b 0 0
xadd k 1-1 f v ; xrevrange k + -
xadd k 1-1 f v ; xsetid k 5-0
xadd k 1-1 f v ; xadd k 1-2 f v ; xtrim k MAXLEN 1
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


def _steps(line: str) -> list[Step]:
    return [step.encode().split() for step in line.split(" ; ")]


def _name(steps: list[Step]) -> str:
    command = lookup(steps[-1])
    assert command is not None, f"no such command: {steps[-1]}"
    return command.name.decode()


EXAMPLES: dict[str, list[Step]] = {}
for _line in _EXAMPLES.split("\n")[1:-1]:
    EXAMPLES[_name(_steps(_line))] = _steps(_line)
