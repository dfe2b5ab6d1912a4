"""Whether a script may use keys that its call does not name: no silence where it may."""

import pytest

from protocol.lua import LONGEST, may_use_keys

WITHOUT = [
    "",
    "return 1",
    "return {1, 'two', 3.7, false, true, {ok='fine'}, {err='NO no'}}",
    "return ARGV[1] .. KEYS[1]",
    "return redis.call('time')",
    'return redis.pcall ( "TIME" )[1]',
    "redis.call('publish', ARGV[1], 'x') return redis.call('SPUBLISH', 'c', ARGV[2])",
    "return server.call('ping')",
    "-- redis.call('keys', '*')\nreturn 1",
    "--[[ redis.call('get', 'k')\n ]] return 1",
    "--[==[ ]] redis.call('get', 'k') ]==] return 1",
    'return \'redis.call("keys", "*")\'',
    "return [[redis.call('keys', '*')]]",
    "return 'a\\'redis.call(1)\\''",
    "redis.log(redis.LOG_WARNING, 'x') return redis.sha1hex('x') .. redis.REDIS_VERSION",
    "return redis.error_reply('MY error')",
    "redis.setresp(3); return {double=3.5}",
    "return cjson.encode({a=string.rep('x', 3), b=math.floor(1.5)})",
    "local t = {} for i = 1, 10 do t[#t + 1] = tostring(i) end return t",
    "#!lua flags=no-writes\nreturn redis.call('time')",
    "#!lua name=lib\nredis.register_function('now', function() return redis.call('time') end)",
    "return x x",
    "return redistribute",
]

WITH = [
    "return #redis.pcall('keys', 'userid.*')",
    "return redis.call('get', KEYS[1])",
    "return redis.call(ARGV[1])",
    "return redis.call('ti' .. 'me')",
    "return redis.call 'time'",
    "return redis['call']('keys', '*')",
    "return redis . call('keys', '*')",
    "local r = redis return r.call('keys', '*')",
    "local call = redis.call return call('keys', '*')",
    "return pcall(redis.call, 'keys', '*')",
    "return _G['red' .. 'is'].call('keys', '*')",
    "return loadstring('return redis.call(\"dbsize\")')()",
    "return getfenv(0)['redis'].call('dbsize')",
    "return server.call('dbsize')",
    "-- \rreturn redis.call('dbsize')",
    "-- \nreturn redis.call('dbsize')",
    "--[[ ]] return redis.call('dbsize')",
    "--[==[ ]] ]==] return redis.call('dbsize')",
    "return '\\\\' .. redis.call('dbsize') .. ''",
    "return \"'\" .. redis.call('dbsize') .. '\"'",
    "return [[]] .. redis.call('dbsize')",
    "return 1 --[[ it does not end\nredis.call('dbsize')",
    "return 'it does not end\nredis.call('dbsize')",
    "redis.call('publish', 'c', redis.call('get', 'k'))",
    "redis.call('nosuch')",
    "#!js name=lib\nreturn 1",
    "#!luajit\nreturn 1",
    "#!lua name=lib\nredis.register_function('f', function(k) return redis.call('incr', k[1]) end)",
    "return 1 --" + "x" * LONGEST,
]


@pytest.mark.parametrize("text", WITHOUT)
def test_a_text_that_calls_nothing_that_has_to_do_with_keys_uses_none(text: str) -> None:
    assert not may_use_keys(text.encode())


@pytest.mark.parametrize("text", WITH)
def test_a_text_that_may_use_keys_or_cannot_be_followed_is_said_to(text: str) -> None:
    assert may_use_keys(text.encode())
