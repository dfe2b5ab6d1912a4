"""Nobody: the proxy follows whatever the servers say, and never acts."""

from pyproxy.access import Access
from pyproxy.config import Config
from pyproxy.control.failover.promoters import Announce, Promoter
from pyproxy.shard_map import Shard


def make(shard: Shard, config: Config, access: Access, announce: Announce) -> Promoter:
    return Promoter()
