"""django-redis, as the cache of a Django. It writes many keys in one MULTI, so the proxy has transactions = "split"."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from pyproxy.fleet import HOST, Fleet, Proxy

KEYS = [f"page:{number}" for number in range(50)]


@pytest.fixture(scope="module")
def proxy(fleet10: Fleet) -> Iterator[Proxy]:
    with Proxy(fleet10, transactions="split") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def django_cache(proxy: Proxy) -> Any:
    settings = importlib.import_module("django.conf").settings
    location = f"redis://{HOST}:{proxy.port}/1"
    settings.configure(CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}})
    return importlib.import_module("django.core.cache").cache


@pytest.fixture
def cache(django_cache: Any) -> Any:
    django_cache.clear()
    return django_cache


def test_a_value_is_kept_for_its_time(cache: Any) -> None:
    cache.set("page", {"title": "grüß dich"}, timeout=60)
    assert cache.get("page") == {"title": "grüß dich"}
    assert 0 < cache.ttl("page") <= 60
    assert cache.get("never-set") is None


def test_many_are_written_and_read_at_once(cache: Any) -> None:
    cache.set_many({key: f"of {key}" for key in KEYS})
    assert cache.get_many([*KEYS, "never-set"]) == {key: f"of {key}" for key in KEYS}
    cache.delete_many(KEYS[:10])
    assert set(cache.get_many(KEYS)) == set(KEYS[10:])


def test_a_counter_counts(cache: Any) -> None:
    cache.set("counter", 1)
    assert [cache.incr("counter"), cache.incr("counter", 5), cache.decr("counter")] == [2, 7, 6]
    with pytest.raises(ValueError, match="not found"):
        cache.incr("never-set")


def test_keys_are_found_and_deleted_by_a_pattern_on_all_shards(cache: Any) -> None:
    cache.set_many(dict.fromkeys([*KEYS, "other"], "x"))
    assert set(cache.iter_keys("page:*")) == set(KEYS)
    assert cache.delete_pattern("page:*") == len(KEYS)
    assert cache.keys("*") == ["other"]


def test_a_lock_is_held_by_one(cache: Any) -> None:
    with (
        cache.lock("lock", timeout=10),
        pytest.raises(Exception, match="acquire"),
        cache.lock("lock", blocking_timeout=0.01),
    ):
        pass
    with cache.lock("lock", blocking_timeout=1):
        pass


def test_clear_leaves_nothing(cache: Any) -> None:
    cache.set_many(dict.fromkeys(KEYS, "x"))
    cache.clear()
    assert cache.get_many(KEYS) == {}
