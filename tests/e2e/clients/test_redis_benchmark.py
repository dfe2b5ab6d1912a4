import csv
import shutil
import subprocess

import pytest
import redis

from pyproxy.fleet import HOST, Proxy

pytestmark = pytest.mark.skipif(shutil.which("redis-benchmark") is None, reason="redis-benchmark is not installed")

REQUESTS, CLIENTS = 300, 10

# its name for a test -> the names of the lines that it reports
TESTS = {
    "ping": ["PING_INLINE", "PING_MBULK"],
    "set": ["SET"],
    "get": ["GET"],
    "incr": ["INCR"],
    "lpush": ["LPUSH"],
    "rpush": ["RPUSH"],
    "lpop": ["LPOP"],
    "rpop": ["RPOP"],
    "sadd": ["SADD"],
    "hset": ["HSET"],
    "spop": ["SPOP"],
    "zadd": ["ZADD"],
    "zpopmin": ["ZPOPMIN"],
    "lrange_100": ["LPUSH (needed to benchmark LRANGE)", "LRANGE_100 (first 100 elements)"],
    "mset": ["MSET (10 keys)"],
}


def benchmark(port: int, *options: str) -> list[str]:
    """The names of what was measured; AssertionError with its words if it complains of anything."""
    command = ["redis-benchmark", "-h", HOST, "-p", str(port), "-n", str(REQUESTS), "-c", str(CLIENTS), "--csv"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return [row[0] for row in csv.reader(ended.stdout.splitlines()[1:])]


@pytest.mark.parametrize("pipeline", ["1", "16"])
@pytest.mark.parametrize("test", TESTS)
def test_it_measures_without_an_error(proxy10: Proxy, test: str, pipeline: str) -> None:
    assert benchmark(proxy10.port, "-t", test, "-P", pipeline, "-r", "1000") == TESTS[test]


def test_it_measures_in_resp3(proxy10: Proxy) -> None:
    assert benchmark(proxy10.port, "-3", "-t", "set,get", "-P", "16", "-r", "1000") == ["SET", "GET"]


def test_its_random_keys_go_to_all_shards(proxy10: Proxy) -> None:
    with redis.Redis(host=HOST, port=proxy10.port) as client:
        client.flushall()
        benchmark(proxy10.port, "-t", "set", "-r", "1000000000")
        assert REQUESTS * 0.9 < client.dbsize() <= REQUESTS


def test_an_error_reply_would_be_seen(proxy10: Proxy) -> None:
    with pytest.raises(AssertionError, match="ERR unknown command"):
        benchmark(proxy10.port, "getx", "k")
