"""Every command the proxy sends to shards, in the forms whose effect and reply are the same on any two servers.

The lines are in the language of `grammar`; `stream.Words` fills their placeholders in. Left out are forms that choose
by chance and change something (SPOP of one among several, XADD with a time for an id), and deadlines so near that a key
might be gone on one side only. GT and LT are used with absolute times only: two EXPIRE of the same length are one
millisecond apart or not. Ranges by words ask keys of their own (`<lex>`), where all scores are the same: else they
depend on the heights that a skip list draws.
"""

STRINGS = """
4* set <str> <value> [ NX | XX | GET ] [ EX <seconds> | PX <milliseconds> | EXAT <at> | PXAT <at_ms> | KEEPTTL ]
3* set <str> <int>
2* set <big> <big_value>
append <big> <big_value>
getrange <big> <index> <index>
2* get <big>
append <str> <value>
decr <str>
decrby <str> <int>
delifeq <str> <value>
3* get <str>
getdel <str>
getex <str> [ EX <seconds> | PX <milliseconds> | EXAT <at> | PXAT <at_ms> | PERSIST ]
getrange <str> <index> <index>
getset <any> <value>
incr <str>
incrby <str> <int>
incrbyfloat <str> <float>
lcs <@str> <@str> [ LEN | IDX [ MINMATCHLEN 2 ] [ WITHMATCHLEN ] ]
3* mget <str> ...
2* mget <any> ... <any> ... <str> ...
3* mset ( <str> <value> ) ...
mset <any> <value> ( <str> <value> ) ...
msetex 2 <@str> <value> <@str> <value> [ NX | XX ] [ EX <seconds> | PXAT <at_ms> | KEEPTTL ]
msetnx ( <@str> <value> ) ...
psetex <str> <milliseconds> <value>
set <str> <value> IFEQ <value>
setex <str> <seconds> <value>
setnx <str> <value>
setrange <str> <offset> <value>
strlen <str>
substr <str> <index> <index>
"""

BITS = """
bitcount <str> [ <index> <index> [ BYTE | BIT ] ]
bitfield <str> ( GET <bits> <offset> | SET <bits> <offset> <int> ) ...
bitfield <str> ( OVERFLOW ( SAT | FAIL | WRAP ) INCRBY <bits> <offset> <int> ) ...
bitfield_ro <str> ( GET <bits> <offset> ) ...
2* bitop ( AND | OR | XOR ) <@str> <@str> ...
bitop NOT <@str> <@str>
bitpos <str> <bit> [ <index> [ <index> [ BYTE | BIT ] ] ]
getbit <str> <offset>
3* setbit <str> <offset> <bit>
"""

HASHES = """
hdel <hash> <field> ...
hexists <hash> <field>
hexpire <hash> <seconds> [ NX | XX ] FIELDS 1 <field>
hexpireat <hash> ( <at> | 1 ) [ NX | XX | GT | LT ] FIELDS 2 <field> <field>
hexpiretime <hash> FIELDS 2 <field> <field>
hget <hash> <field>
3* hgetall <hash>
hgetdel <hash> FIELDS 1 <field>
hgetex <hash> [ EX <seconds> | PX <milliseconds> | EXAT <at> | PXAT <at_ms> | PERSIST ] FIELDS 2 <field> <field>
hincrby <hash> <field> <int>
hincrbyfloat <hash> <field> <float>
hkeys <hash>
hlen <hash>
hmget <hash> <field> ...
hmset <hash> ( <field> <value> ) ...
hpersist <hash> FIELDS 1 <field>
hpexpire <hash> <milliseconds> [ NX | XX ] FIELDS 1 <field>
hpexpireat <hash> <at_ms> [ NX | XX | GT | LT ] FIELDS 1 <field>
hpexpiretime <hash> FIELDS 1 <field>
hpttl <hash> FIELDS 1 <field>
hrandfield <hash> [ ( 1000 | -3 ) [ WITHVALUES ] ]
hscan <hash> 0 [ MATCH <pattern> ] COUNT 10000 [ NOVALUES ]
7* hset <hash> ( <field> <value> ) ...
2* hset <hash> ( <field> <int> ) ...
hsetex <hash> [ FNX | FXX ] [ EX <seconds> | PX <milliseconds> | PXAT <at_ms> | KEEPTTL ] FIELDS 1 <field> <value>
hsetnx <hash> <field> <value>
hstrlen <hash> <field>
httl <hash> FIELDS 2 <field> <field>
hvals <hash>
"""

LISTS = """
lindex <list> <index>
linsert <list> ( BEFORE | AFTER ) <item> <item>
llen <list>
blmove <@list> <@list> ( LEFT | RIGHT ) ( LEFT | RIGHT ) 0.001
blmpop 0.001 2 <@list> <@list> ( LEFT | RIGHT ) [ COUNT <count> ]
blpop <@list> <@list> 0.001
brpop <@list> <@list> 0.001
brpoplpush <@list> <@list> 0.001
2* lmove <@list> <@list> ( LEFT | RIGHT ) ( LEFT | RIGHT )
2* lmpop 2 <@list> <@list> ( LEFT | RIGHT ) [ COUNT <count> ]
lpop <list> [ <count> ]
lpos <list> <item> [ RANK ( 1 | -1 | 2 ) ] [ COUNT ( 0 | 2 ) ] [ MAXLEN ( 0 | 10 ) ]
4* lpush <list> <item> ...
lpushx <list> <item> ...
3* lrange <list> <index> <index>
lrem <list> <index> <item>
lset <list> <index> <item>
ltrim <list> <index> <index>
rpop <list> [ <count> ]
2* rpoplpush <@list> <@list>
4* rpush <list> <value> ...
rpushx <list> <item> ...
"""

SETS = """
14* sadd <set> <member> ...
2* sadd <set> <int> ...
scard <set>
2* sdiff <@set> ...
2* sdiffstore <@set> <@set> ...
2* sinter <@set> ...
sintercard 2 <@set> <@set> [ LIMIT <count> ]
2* sinterstore <@set> <@set> ...
sismember <set> <member>
3* smembers <set>
smismember <set> <member> ...
2* smove <@set> <@set> <member>
spop <set> 1000
srandmember <set> [ 1000 | -3 ]
srem <set> <member> ...
sscan <set> 0 [ MATCH <pattern> ] COUNT 10000
2* sunion <@set> ...
2* sunionstore <@set> <@set> ...
"""

SORTED_SETS = """
20* zadd <zset> [ NX | XX | GT | LT | XX GT ] [ CH ] ( <score> <member> ) ...
zadd <zset> INCR <score> <member>
6* zadd <lex> ( 0 <member> ) ...
zcard <zset>
zcount <zset> <low> <high>
zdiff 2 <@zset> <@zset> [ WITHSCORES ]
zdiffstore <@zset> 2 <@zset> <@zset>
zincrby <zset> <score> <member>
zinter 2 <@zset> <@zset> [ WEIGHTS 2 3 ] [ AGGREGATE ( SUM | MIN | MAX ) ] [ WITHSCORES ]
zintercard 2 <@zset> <@zset> [ LIMIT <count> ]
zinterstore <@zset> 2 <@zset> <@set> [ WEIGHTS 2 3 ] [ AGGREGATE ( SUM | MIN | MAX ) ]
zlexcount <lex> <low_word> <high_word>
bzmpop 0.001 2 <@zset> <@zset> ( MIN | MAX ) [ COUNT <count> ]
bzpopmin <@zset> <@zset> 0.001
bzpopmax <@zset> <@zset> 0.001
zmpop 2 <@zset> <@zset> ( MIN | MAX ) [ COUNT <count> ]
zmscore <zset> <member> ...
zpopmax <zset> [ <count> ]
zpopmin <zset> [ <count> ]
zrandmember <zset> [ ( 1000 | -3 ) [ WITHSCORES ] ]
3* zrange <zset> <index> <index> [ REV ] [ WITHSCORES ]
zrange <zset> <low> <high> BYSCORE [ LIMIT 1 <count> ] [ WITHSCORES ]
zrange <lex> <low_word> <high_word> BYLEX [ LIMIT 0 <count> ]
zrangebylex <lex> <low_word> <high_word> [ LIMIT 1 <count> ]
zrangebyscore <zset> <low> <high> [ WITHSCORES ] [ LIMIT 1 <count> ]
2* zrangestore <@zset> <@zset> <index> <index> [ REV ]
zrank <zset> <member> [ WITHSCORE ]
zrem <zset> <member> ...
zremrangebylex <lex> <low_word> <high_word>
zremrangebyrank <zset> <index> <index>
zremrangebyscore <zset> <low> <high>
zrevrange <zset> <index> <index> [ WITHSCORES ]
zrevrangebylex <lex> <high_word> <low_word>
zrevrangebyscore <zset> <high> <low> [ WITHSCORES ]
zrevrank <zset> <member> [ WITHSCORE ]
zscan <zset> 0 [ MATCH <pattern> ] COUNT 10000
zscore <zset> <member>
zunion 2 <@zset> <@set> [ WEIGHTS 2 3 ] [ AGGREGATE ( SUM | MIN | MAX ) ] [ WITHSCORES ]
2* zunionstore <@zset> 2 <@zset> <@zset> [ WEIGHTS 2 3 ] [ AGGREGATE ( SUM | MIN | MAX ) ]
"""

STREAMS = """
3* xack <stream> <group> <old_id> ...
14* xadd <stream> [ NOMKSTREAM ] [ MAXLEN ( = | ~ ) 20 ] <new_id> ( <field> <value> ) ...
xadd <stream> <old_id> <field> <value>
xautoclaim <stream> <group> <consumer> 0 0 [ COUNT <count> ] [ JUSTID ]
3* xclaim <stream> <group> <consumer> 0 <old_id> <old_id> [ FORCE ] [ JUSTID ]
xdel <stream> <old_id> ...
6* xgroup CREATE <stream> <group> ( $ | 0 ) MKSTREAM
xgroup CREATE <stream> <group> 0
2* xgroup CREATECONSUMER <stream> <group> <consumer>
xgroup DELCONSUMER <stream> <group> <consumer>
xgroup DESTROY <stream> <group>
xgroup SETID <stream> <group> ( $ | 0 )
xinfo CONSUMERS <stream> <group>
xinfo GROUPS <stream>
xinfo STREAM <stream> [ FULL [ COUNT <count> ] ]
xlen <stream>
xpending <stream> <group> [ - + 10 [ <consumer> ] ]
2* xrange <stream> ( - | <old_id> ) ( + | <old_id> ) [ COUNT <count> ]
xread [ COUNT <count> ] STREAMS <@stream> <@stream> 0 <old_id>
xread [ COUNT <count> ] STREAMS <stream> ( 0 | $ )
xread [ COUNT <count> ] BLOCK 1 STREAMS <@stream> <@stream> 0 ( 0 | $ )
2* xreadgroup GROUP <group> <consumer> [ COUNT <count> ] [ NOACK ] STREAMS <@stream> <@stream> > >
2* xreadgroup GROUP <group> <consumer> [ COUNT <count> ] STREAMS <stream> ( > | 0 )
xrevrange <stream> ( + | <old_id> ) ( - | <old_id> ) [ COUNT <count> ]
xsetid <stream> <new_id>
xtrim <stream> ( MAXLEN 5 | MINID <old_id> )
"""

GEO = """
7* geoadd <geo> [ NX | XX ] [ CH ] ( <longitude> <latitude> <member> ) ...
geodist <geo> <member> <member> [ km ]
geohash <geo> <member> ...
geopos <geo> <member> ...
georadius <geo> <longitude> <latitude> 2000 km [ WITHCOORD ] [ WITHDIST ] [ COUNT <count> ] [ ASC | DESC ]
georadius <@geo> <longitude> <latitude> 2000 km ( STORE | STOREDIST ) <@geo>
georadius_ro <geo> <longitude> <latitude> 3000 km [ WITHHASH ]
georadiusbymember <geo> <member> 2000 km [ WITHDIST ] [ ASC ]
georadiusbymember <@geo> <member> 2000 km STORE <@geo>
georadiusbymember_ro <geo> <member> 3000 km DESC
geosearch <geo> FROMLONLAT <longitude> <latitude> BYBOX 3000 3000 km [ ASC | DESC ] [ COUNT <count> ] [ WITHDIST ]
geosearch <geo> FROMMEMBER <member> BYRADIUS 3000 km [ ASC | DESC ] [ WITHCOORD ] [ WITHHASH ]
2* geosearchstore <@geo> <@geo> FROMLONLAT <longitude> <latitude> BYRADIUS 4000 km [ COUNT <count> ] [ STOREDIST ]
"""

HYPERLOGLOGS = """
4* pfadd <hll> <member> ...
2* pfcount <@hll> ...
pfcount <hll>
2* pfmerge <@hll> <@hll> ...
"""

KEYS = """
2* copy <@same> <@same> [ DB <db> ] [ REPLACE ]
copy <@any> <@any>
2* dbsize
2* del <any> ...
dump <any>
2* exists <any> ... <any> ...
expire <any> <seconds> [ NX | XX ]
expireat <any> ( <at> | 1 ) [ NX | XX | GT | LT ]
expiretime <any>
2* keys <pattern>
memory USAGE <any> [ SAMPLES 5 ]
move <any> <db>
object ENCODING <any>
object FREQ <any>
object IDLETIME <any>
object REFCOUNT <any>
persist <any>
pexpire <any> <milliseconds> [ NX | XX ]
pexpireat <any> ( <at_ms> | 1 ) [ NX | XX | GT | LT ]
pexpiretime <any>
pttl <any>

3* rename <@same> <@same>
renamenx <@any> <@any>
restore <any> ( 0 | <milliseconds> ) <dump> [ REPLACE ]
restore <any> <at_ms> <dump> REPLACE ABSTTL
sort <list> ALPHA [ LIMIT 1 <count> ] [ ASC | DESC ]
sort <set> [ ALPHA ] [ DESC ]
sort <@list> ALPHA STORE <@list>
sort <@list> BY <@weights> [ GET <@weights> ] [ GET # ]
sort_ro <zset> ALPHA [ DESC ]
2* touch <any> ... <any> ...
ttl <any>
type <any>
unlink <any> ...
"""

EMPTYING = """
4* flushdb [ ASYNC | SYNC ]
flushall [ ASYNC | SYNC ]
"""

CONNECTION = """
auth default <item>
auth <item>
client GETNAME
client NO-EVICT ( ON | OFF )
client SETNAME <item>
2* echo <value>
2* hello 2
3* hello 3 [ SETNAME <item> ]
hello
hello 4
2* ping [ <value> ]
reset
5* select <db>
select 16
select x
time
"""

# Commands that are wrong, or that meet a key of another type: the proxy must say what the server would have said.
MISTAKES = """
append <str>
bitcount <str> 0
bitop NOT <@str> <@str> <@str>
client NOSUCH
copy <@any> <@any> DB 16
copy <any>
decrby <str> x
del
exists
expire <any> never
expire <any> 100 SOMETIMES
get
flushdb NOW
get <str> <str>
get ( <hash> | <list> | <set> | <zset> | <stream> )
getrange <str> a b
hello x
hello 3 NAME <item>
hincrby <hash> <field> x
hset ( <str> | <list> | <set> ) <field> <value>
hset <hash> <field>
incr ( <hash> | <list> | <set> | <zset> )
incrby <str> 9223372036854775808
keys
lmpop 0 <@list> LEFT
lpush ( <str> | <hash> | <zset> ) <item>
lset <list> 1000 <item>
mget
mset
mset <str> <value> <str>
msetnx <@str> <value> <@str>
nosuch <value> <any>
"NO SUCH"
object NOSUCH <any>
object ENCODING
restore <any> 0 rubbish
restore <any> -1 <dump>
sadd ( <str> | <hash> | <stream> ) <member>
select
set <str> <value> EX 0
set <str> <value> NX XX
set <str> <value> NOW
setbit <str> <offset> 2
setex <str> 0 <value>
setrange <str> -1 <value>
sintercard 0 <@set>
sort <list> SIDEWAYS
touch
xadd <stream> <new_id> <field>
xgroup NOSUCH <stream> <group>
xread STREAMS <stream>
xreadgroup GROUP nogroup <consumer> STREAMS <stream> >
zadd ( <str> | <hash> | <set> ) 1 <member>
zadd <zset> much <member>
zadd <zset> NX XX 1 <member>
zrange <zset> 0 1 LIMIT 0 1
zunionstore <@zset> 0 <@zset>
zunionstore <@zset> 2 <@zset> <@str>
"""

# What a request is taken from, and how often of all.
DATA = {
    STRINGS: 20,
    BITS: 5,
    HASHES: 15,
    LISTS: 10,
    SETS: 11,
    SORTED_SETS: 14,
    STREAMS: 13,
    GEO: 5,
    HYPERLOGLOGS: 3,
    KEYS: 16,
}
REST = {EMPTYING: 0.06, CONNECTION: 7, MISTAKES: 5}
