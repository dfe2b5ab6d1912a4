import pytest

from pyproxy.access import Access
from pyproxy.config import BackendAccess, Config
from pyproxy.control.failover.promoters import PromotionFailed, PromotionPlan, make
from pyproxy.messages import NodeHealth

CONFIG = Config.parse(b"""
[[shards]]
name = "s0"
primary = "127.0.0.1:1"
replicas = ["127.0.0.1:2"]
slots = ["0-16383"]
""")


async def test_by_default_nobody_promotes() -> None:
    promoter = make(CONFIG.shards[0], CONFIG, Access(BackendAccess()), lambda announcement: None)
    primary, candidate = NodeHealth("127.0.0.1:1", role="master"), NodeHealth("127.0.0.1:2", role="slave")
    plan = PromotionPlan("s0", 1, primary, candidate, ())
    assert not promoter.acts
    assert not promoter.is_authority
    for act in (promoter.promote, promoter.hand_over):
        with pytest.raises(PromotionFailed) as failed:
            await act(plan)
        assert not failed.value.again
    await promoter.run()
    await promoter.reconfigure(primary, [candidate])
