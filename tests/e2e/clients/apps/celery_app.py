"""An application of celery, as its worker and its callers have it: the proxy is broker and result backend."""

import os

import celery  # type: ignore[import-not-found, import-untyped, unused-ignore]

URL = os.environ["REDIS_URL"]
ONE_SHARD = {"global_keyprefix": "{celery}"}
"""It pops from four keys for each queue in one BRPOP, one for each priority, and its scripts take several keys."""

app = celery.Celery("apps", broker=URL, backend=URL)
app.conf.update(
    broker_transport_options=ONE_SHARD,
    result_backend_transport_options=ONE_SHARD,
    broker_connection_retry_on_startup=False,
)


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def add(a: int, b: int) -> int:
    return a + b


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def fail() -> None:
    raise ValueError("it fails")
