"""The twenty faults of bench/failover, with real servers and clients, all times divided by ten.

Each is made under load, and then everything is held against the history of what clients were told: see the checker
(bench/failover/history.py), and `Expect` for what each fault may show. Times are no promise here; `./run faults`
measures them at full length. The others, with several proxies or with none, are test_scenarios_beside.py's.
"""

import pytest

from bench.failover.catalogue import FAULTS, TWENTIETH
from bench.failover.trial import Fault, run

SCALE = 0.1
SHARDS = 3


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", [*FAULTS, *TWENTIETH], ids=lambda fault: fault.name)
def test_clients_see_no_more_of_it_than_they_may(fault: Fault) -> None:
    assert run(fault, SCALE, shards=SHARDS).problems == []
