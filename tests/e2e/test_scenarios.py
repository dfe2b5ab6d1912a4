"""The faults of bench/failover, with real servers and clients, all times divided by ten.

Each is made under load, and then everything is held against the history of what clients were told: see the checker
(bench/failover/history.py), and `Expect` for what each fault may show. Times are no promise here; `./run faults`
measures them at full length.
"""

import shutil

import pytest

from bench.failover.catalogue import ALL
from bench.failover.trial import Fault, run

SCALE = 0.1
SHARDS = 3


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_clients_see_no_more_of_it_than_they_may(fault: Fault) -> None:
    if shutil.which(fault.needs.peer) is None and fault.needs.peer != "pyproxy":
        pytest.skip(f"no {fault.needs.peer} on this machine")
    assert run(fault, SCALE, shards=SHARDS).problems == []
