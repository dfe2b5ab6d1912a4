import msgspec
import pytest

from pyproxy.config import Config, ShardTable
from pyproxy.messages import (
    Applied,
    Awake,
    Complaint,
    Configured,
    Confirmed,
    Drain,
    FixedSetting,
    FleetHealth,
    Held,
    Holding,
    Message,
    NodeHealth,
    Ready,
    Script,
    ScriptKnown,
    Scripts,
    ScriptsFlushed,
    Settings,
    Settled,
    Setup,
    ShardHealth,
    Topology,
)
from pyproxy.shard_map import Node, Shard

SHARD = Shard("s0", Node("127.0.0.1", 7000), (Node("::1", 7100),), ((0, 5), (6, 16383)))
NODE = NodeHealth("127.0.0.1:7000", True, "", at=1.5, role="master", offset=2**40, lost_keys=3)
TABLE = ShardTable(name="s0", primary=SHARD.primary, slots=SHARD.slots, promoter="elasticache", replication_group="g")
LOOK = ShardHealth("s0", "127.0.0.1:7000", True, "", {"used_memory": "1"}, {0: {"keys": 3}}, "", 1.0, 0.5, (NODE,))


@pytest.mark.parametrize(
    "message",
    [
        Setup(1, 2, Config(shards=(TABLE,)), "127.0.0.1:6380", "0.1.0", 1.5),
        Topology(3, [SHARD], [["get", 2, ["readonly"]]]),
        Settings(2, {"a": "b"}, [FixedSetting("s0", "a", None)]),
        FleetHealth(4, 12.25, [LOOK]),
        Drain(10.0),
        Ready(4711),
        Applied(3, ["s0"]),
        Awake(1.5),
        Confirmed(1.5),
        Holding({"s0": Held(3, 100)}),
        Configured("a", "b", 1),
        Settled(1),
        Script(1, b"return 1"),
        ScriptKnown(b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        Scripts(1, [b"return 1"]),
        ScriptsFlushed(),
        Complaint("s0", "127.0.0.1:7000", "connection refused"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message
