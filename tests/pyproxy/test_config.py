from pathlib import Path

import msgspec
import pytest

from pyproxy.config import (
    MIB,
    UNDISCOVERED,
    BackendAccess,
    Config,
    ConfigErrors,
    ElastiCache,
    Http,
    Limits,
    Promotion,
    ScriptRules,
    Sentinel,
    ShardTable,
    Timeouts,
)
from pyproxy.shard_map import Node, Shard

EXAMPLE = Path(__file__).parents[2] / "examples" / "pyproxy.toml"

WAYS = "all-concat, all-equal, all-first, all-sum, auto, one, refuse"

SHARD = '[[shards]]\nname = "s0"\nprimary = "127.0.0.1:7000"\nslots = ["0-16383"]\n'


def problems(toml: str | bytes) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        Config.parse(toml if isinstance(toml, bytes) else toml.encode())
    return caught.value.problems


def shards(*tables: str) -> str:
    return "".join(f"[[shards]]\n{table}\n" for table in tables)


def shard(index: int, slots: str, **options: str) -> str:
    fields = {"name": f'"s{index}"', "primary": f'"127.0.0.1:{7000 + index}"', "slots": slots} | options
    return "\n".join(f"{name} = {value}" for name, value in fields.items())


# --- what is right ----------------------------------------------------------------------------------------------------


def test_only_the_shards_must_be_there() -> None:
    config = Config.parse(SHARD.encode())
    assert config.listen == Node("127.0.0.1", 6380)
    assert config.shard_map().shards == (Shard("s0", Node("127.0.0.1", 7000), (), ((0, 16383),)),)
    assert (config.workers, config.limits, config.timeouts) == (0, Limits(), Timeouts())
    assert config.http == Http(None, "")
    assert (config.promotion, config.sentinel, config.elasticache) == (Promotion(), Sentinel(), ElastiCache())
    assert (config.reads, config.promoter_of(config.shards[0])) == ("primary", "none")


def test_what_is_written_is_what_is_read() -> None:
    config = Config.parse(
        b"""
        listen = "[::1]:0"
        workers = 3
        [limits]
        max_clients = 7
        [timeouts]
        reply_s = 2
        [http]
        listen = "127.0.0.1:6381"
        admin = "/run/pyproxy.sock"
        [backend]
        tls = true
        tls_ca = "/etc/ca.pem"
        username = "app"
        password_file = "/etc/password"
        [[shards]]
        name = "b.1_x-y"
        primary = "redis.example.org:1"
        replicas = ["127.0.0.1:2", "127.0.0.1:3"]
        slots = ["5", "0-4", "6-16383"]
        promoter = "replicaof"
        """
    )
    assert config.listen == Node("::1", 0)
    assert config.workers == 3
    assert (config.limits.max_clients, config.limits.bulk_bytes) == (7, 64 * MIB)
    assert (config.timeouts.reply_s, config.timeouts.silence_s) == (2.0, 3.0)
    assert config.http == Http(Node("127.0.0.1", 6381), "/run/pyproxy.sock")
    assert config.backend == BackendAccess(True, "/etc/ca.pem", "app", "/etc/password")
    replicas = (Node("127.0.0.1", 2), Node("127.0.0.1", 3))
    named, primary, slots = "b.1_x-y", Node("redis.example.org", 1), ((5, 5), (0, 4), (6, 16383))
    assert config.shards == (
        ShardTable(name=named, primary=primary, replicas=replicas, slots=slots, promoter="replicaof"),
    )
    assert config.shard_map().shards == (Shard(named, primary, replicas, slots),)


def test_the_example_is_right_and_names_every_option_with_its_default() -> None:
    config = Config.load(EXAMPLE)
    assert config == Config(shards=config.shards)
    written = msgspec.toml.decode(EXAMPLE.read_bytes())
    assert written.keys() == set(Config.__struct_fields__)
    assert written["limits"].keys() == set(Limits.__struct_fields__)
    assert written["scripts"].keys() == set(ScriptRules.__struct_fields__)
    assert written["http"].keys() == set(Http.__struct_fields__)
    assert written["timeouts"].keys() == set(Timeouts.__struct_fields__)
    assert written["backend"].keys() == set(BackendAccess.__struct_fields__)
    assert written["promotion"].keys() == set(Promotion.__struct_fields__)
    assert written["sentinel"].keys() == set(Sentinel.__struct_fields__)
    assert written["elasticache"].keys() == set(ElastiCache.__struct_fields__)
    assert written["shards"][0].keys() == set(ShardTable.__struct_fields__)
    assert config.shards[0].promoter == config.shards[0].replication_group == ""


def test_the_shard_map_has_plain_shards_as_written() -> None:
    config = Config.load(EXAMPLE)
    assert config.shard_map(version=4).version == 4
    for shard, table in zip(config.shard_map(version=4).shards, config.shards, strict=True):
        assert shard == Shard(table.name, table.primary, table.replicas, table.slots)


@pytest.fixture
def two_groups() -> Config:
    """A shard that says nothing but its group, and one that says its primary, and that nobody promotes in it."""
    return Config.parse(
        b"""
        promotion.promoter = "elasticache"
        [[shards]]
        name = "s0"
        slots = ["0-99"]
        replication_group = "loop-0"
        [[shards]]
        name = "s1"
        primary = "10.0.0.1:6379"
        slots = ["100-16383"]
        promoter = "none"
        """
    )


def test_the_promoter_of_a_shard_is_its_own_or_else_that_of_all(two_groups: Config) -> None:
    assert [two_groups.promoter_of(shard) for shard in two_groups.shards] == ["elasticache", "none"]
    assert [two_groups.replication_group_of(shard) for shard in two_groups.shards] == ["loop-0", ""]


def test_a_shard_with_a_replication_group_needs_no_nodes_until_it_is_served(two_groups: Config) -> None:
    assert [table.name for table in two_groups.undiscovered()] == ["s0"]
    assert two_groups.shards[0].primary == UNDISCOVERED
    with pytest.raises(ValueError, match="expected the primary of every shard, got none of s0"):
        two_groups.shard_map()


def test_what_was_found_takes_the_place_of_what_was_not_written(two_groups: Config) -> None:
    found = Shard("s0", Node("10.0.0.2", 6379), (Node("10.0.0.3", 6379),), ())
    discovered = two_groups.with_nodes([found])
    assert discovered.undiscovered() == ()
    first, second = discovered.shard_map().shards
    assert first == Shard("s0", Node("10.0.0.2", 6379), (Node("10.0.0.3", 6379),), ((0, 99),))
    assert second == Shard("s1", Node("10.0.0.1", 6379), (), ((100, 16383),))
    assert discovered.replication_group_of(first) == "loop-0"


def test_other_shards_are_checked_as_those_of_a_file_are() -> None:
    config = Config.load(EXAMPLE)
    first, *others = config.shards
    assert config.with_shards(config.shards) == config
    with pytest.raises(ConfigErrors) as caught:
        config.with_shards([msgspec.structs.replace(first, slots=((0, 9),)), *others])
    assert caught.value.problems == ["shards: expected an owner for every slot from 0 to 16383, got none for 10-1638"]


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ("map.json", 'store: expected file:/absolute/path, or "", got "map.json"'),
        ("file:map.json", 'store: expected file:/absolute/path, or "", got "file:map.json"'),
        ("file:/var/lib/", 'store: expected file:/absolute/path, or "", got "file:/var/lib/"'),
        ("etcd://a:1/x", 'store: expected file:/absolute/path, as etcd is not supported yet, got "etcd://a:1/x"'),
    ],
)
def test_a_store_that_cannot_be_is_refused(store: str, problem: str) -> None:
    assert problems(f'store = "{store}"\n{SHARD}') == [problem]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_all_problems_are_said_at_once_and_in_the_order_of_the_options() -> None:
    found = problems(
        """
        listen = "nowhere"
        worker = 2
        [limits]
        max_clients = "many"
        [timeouts]
        drain_s = nan
        silence_s = 0.5
        [[shards]]
        name = "s 0"
        primary = "redis"
        slots = ["0-16384"]
        """
    )
    assert found == [
        "worker: expected a known option (workers?), got an unknown one",
        'listen: expected host:port, got "nowhere"',
        'limits.max_clients: expected a whole number from 1 to 1000000, got "many"',
        "timeouts.drain_s: expected a number from 0.0 to 3600.0, got nan",
        'shards[0].name: expected a name of 1 to 64 letters, digits and _ . -, got "s 0"',
        'shards[0].primary: expected host:port, got "redis"',
        'shards[0].slots[0]: expected slots such as "0-1638" or "5", at most 16383, got "0-16384"',
        "timeouts.silence_s: expected at least timeouts.reply_s (1.0), got 0.5",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("workers = -1", "workers: expected a whole number from 0 to 256, got -1"),
        ("workers = 257", "workers: expected a whole number from 0 to 256, got 257"),
        ("workers = 1.0", "workers: expected a whole number from 0 to 256, got 1.0"),
        ("workers = true", "workers: expected a whole number from 0 to 256, got true"),
        ("workers = [1, 2]", "workers: expected a whole number from 0 to 256, got an array of 2"),
        ("workers = {}", "workers: expected a whole number from 0 to 256, got a table"),
        ("listen = 6380", "listen: expected host:port, got 6380"),
        (f'listen = "{"x" * 99}"', f'listen: expected host:port, got "{"x" * 60}..."'),
        (
            "timeouts.slow_reply_s = 0.5",
            "timeouts.slow_reply_s: expected at least timeouts.reply_s (1.0), got 0.5",
        ),
        ("limits = 5", "limits: expected a table, got 5"),
        ("limits.inflight = 0", "limits.inflight: expected a whole number from 1 to 1000000, got 0"),
        ("limits.args = 1048577", "limits.args: expected a whole number from 1 to 1048576, got 1048577"),
        ("timeouts.reply_s = 0", "timeouts.reply_s: expected a number from 0.001 to 3600.0, got 0"),
        ("timeouts.reply_s = inf", "timeouts.reply_s: expected a number from 0.001 to 3600.0, got inf"),
        (
            "limits.memory_bytes = 1_048_576",
            "limits.memory_bytes: expected at least limits.bulk_bytes (67108864), got 1048576",
        ),
        (
            "timeouts.reconnect_min_s = 9",
            "timeouts.reconnect_max_s: expected at least timeouts.reconnect_min_s (9.0), got 5.0",
        ),
        ("http.listen = 6381", 'http.listen: expected host:port, or "", got 6381'),
        (
            'http.listen = "127.0.0.1:6380"',
            'http.listen: expected an address of its own, got "127.0.0.1:6380" of listen',
        ),
        (
            'http.listen = "127.0.0.1:7000"',
            'shards[0].primary: expected a redis server, got "127.0.0.1:7000", where pyproxy itself listens',
        ),
        ('http.admin = "pyproxy.sock"', 'http.admin: expected an absolute path, got "pyproxy.sock"'),
        (
            f'http.admin = "/{"ü" * 53}x"',
            "http.admin: expected a path of at most 107 bytes, as of every socket, got 108",
        ),
        ('reads = "nearest"', 'reads: expected one of prefer-replica, primary, replica, got "nearest"'),
        ('transactions = "all"', 'transactions: expected one of shard, split, got "all"'),
        ('reads = "replica"', "reads: expected primary, as no shard has replicas, got replica"),
        (
            'promotion.promoter = "me"',
            'promotion.promoter: expected one of elasticache, none, replicaof, sentinel, got "me"',
        ),
        (
            "promotion.auto_hold_s = 16",
            "promotion.hold_incident_s: expected at least promotion.auto_hold_s (16.0), got 15.0",
        ),
        ("promotion.hold_s = 16", "promotion.hold_incident_s: expected at least promotion.hold_s (16.0), got 15.0"),
        (
            "promotion.hold_client_bytes = 9_000_000",
            "promotion.hold_bytes: expected at least promotion.hold_client_bytes (9000000), got 8388608",
        ),
        (
            "promotion.hold_bytes = 40_000_000",
            "promotion.hold_process_bytes: expected at least promotion.hold_bytes (40000000), got 33554432",
        ),
        (
            'sentinel.name = "mine"',
            'sentinel.name: expected nothing, as no shard has promoter sentinel, got "mine"',
        ),
        (
            'elasticache.region = "eu-west-1"',
            'elasticache.region: expected nothing, as no shard has promoter elasticache, got "eu-west-1"',
        ),
        (
            'scripts.without_keys = "all"',
            f'scripts.without_keys: expected one of {WAYS}, got "all"',
        ),
        ("scripts.calls = 1", "scripts.calls: expected tables, as [[scripts.calls]], got 1"),
        (
            'scripts.calls = [{text = "*"}]',
            f"scripts.calls[0].without_keys: expected one of {WAYS}, got nothing",
        ),
        (
            'scripts.calls = [{without_keys = "one"}]',
            "scripts.calls[0]: expected one of text, sha1, function, got none",
        ),
        (
            'scripts.calls = [{text = "*", function = "f", without_keys = "one"}]',
            "scripts.calls[0]: expected one of text, sha1, function, got text and function",
        ),
        (
            'scripts.calls = [{sha1 = "abc", without_keys = "one"}]',
            'scripts.calls[0].sha1: expected 40 hexadecimal digits, got "abc"',
        ),
        ("backend.tls = 1", "backend.tls: expected true or false, got 1"),
        ("backend.username = 5", "backend.username: expected a text on one line, got 5"),
        ('backend.tls_ca = "a\\nb"', 'backend.tls_ca: expected a text on one line, got "a\\nb"'),
        ('backend.tls_ca = "ca.pem"', "backend.tls: expected true, as backend.tls_ca is given, got false"),
        (
            'backend.username = "app"',
            "backend.password_file: expected a file, as backend.username is given, got nothing",
        ),
        (
            'backend.password = "secret"',
            "backend.password: expected a known option (password_file?), got an unknown one",
        ),
        ("timeouts.zzz = 1", f"timeouts.zzz: expected a known option (one of {', '.join(Timeouts.__struct_fields__)}), "
            "got an unknown one"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong_is_named_with_what_it_may_be(options: str, problem: str) -> None:
    assert problems(options + "\n" + SHARD) == [problem]


@pytest.mark.parametrize(
    ("toml", "found"),
    [
        ("", ["shards: expected tables, as [[shards]], got nothing"]),
        ("shards = []", ["shards: expected at least one, got none"]),
        ('shards = "s0"', ['shards: expected tables, as [[shards]], got "s0"']),
        ("shards = [1]", ["shards[0]: expected a table, got 1"]),
        (
            "[[shards]]",
            [
                "shards[0].name: expected a name of 1 to 64 letters, digits and _ . -, got nothing",
                "shards[0].slots: expected an array, got nothing",
                "shards[0].primary: expected host:port, got nothing",
            ],
        ),
        (shards(shard(0, '"0-16383"')), ['shards[0].slots: expected an array, got "0-16383"']),
        (
            shards(shard(0, '["0-5"]'), shard(1, '["6-16383"]', name='"s0"')),
            ['shards[1].name: expected a name of its own, got "s0" of shards[0]'],
        ),
        (
            shards(shard(0, '["0-5"]', replicas='["127.0.0.1:7001"]'), shard(1, '["6-16383"]')),
            ['shards[1].primary: expected a node of its own, got "127.0.0.1:7001" of shards[0].replicas[0]'],
        ),
        (
            shards(shard(0, '["0-16383"]', primary='"127.0.0.1:6380"')),
            ['shards[0].primary: expected a redis server, got "127.0.0.1:6380", where pyproxy itself listens'],
        ),
        (
            shards(shard(0, '["0-16383"]', primary='"127.0.0.1:0"')),
            ["shards[0].primary: expected a port from 1 to 65535, got 0"],
        ),
    ],
)
def test_shards_that_are_wrong_are_named(toml: str, found: list[str]) -> None:
    assert problems(toml) == found


GROUP = '[[shards]]\nname = "s0"\nslots = ["0-16383"]\nreplication_group = "g"\n'
COPIED = SHARD + 'replicas = ["127.0.0.1:7100"]\n'
TWO_COPIED = shards(
    shard(0, '["0-5"]', replicas='["127.0.0.1:7100"]'), shard(1, '["6-16383"]', replicas='["127.0.0.1:7101"]')
)
SENTINELS = '["127.0.0.1:26379", "127.0.0.1:26380", "127.0.0.1:26381"]'
LESS_MEMORY = "limits = { memory_bytes = 30_000_000, bulk_bytes = 1_000_000 }\n"


@pytest.mark.parametrize(
    "toml",
    [
        'promotion.promoter = "replicaof"\nreads = "replica"\n' + COPIED,
        LESS_MEMORY + COPIED,  # than hold_process_bytes, where nothing is held
        f'promotion.promoter = "sentinel"\nsentinel.nodes = {SENTINELS}\n' + TWO_COPIED,
        f'promotion.promoter = "sentinel"\nsentinel = {{ nodes = {SENTINELS}, name = "mymaster" }}\n' + COPIED,
        'promotion.promoter = "elasticache"\nelasticache.region = "eu-west-1"\nreads = "prefer-replica"\n' + GROUP,
        'promotion.promoter = "elasticache"\n' + SHARD + 'replication_group = "g"\n',
        GROUP + 'promoter = "elasticache"\n',
    ],
)
def test_promoters_that_have_what_they_need_are_right(toml: str) -> None:
    Config.parse(toml.encode())


@pytest.mark.parametrize(
    ("toml", "found"),
    [
        (
            COPIED + 'promoter = "me"\n',
            ['shards[0].promoter: expected one of "", elasticache, none, replicaof, sentinel, got "me"'],
        ),
        (
            'promotion.promoter = "replicaof"\n' + SHARD,
            ["shards[0].replicas: expected one or more, as the shard's promoter is replicaof, got none"],
        ),
        (
            'promotion.promoter = "replicaof"\n' + LESS_MEMORY + COPIED,
            ["limits.memory_bytes: expected at least promotion.hold_process_bytes (33554432), got 30000000"],
        ),
        (
            'promotion.promoter = "sentinel"\n' + COPIED,
            ["sentinel.nodes: expected 3 or more, as promoter is sentinel, got 0"],
        ),
        (
            'promotion.promoter = "sentinel"\n'
            'sentinel.nodes = ["127.0.0.1:7100", "127.0.0.1:2", "127.0.0.1:2", "127.0.0.1:6380", "127.0.0.1:0"]\n'
            + COPIED,
            [
                'sentinel.nodes[0]: expected a node of its own, got "127.0.0.1:7100" of shards[0].replicas[0]',
                'sentinel.nodes[2]: expected a node of its own, got "127.0.0.1:2" of sentinel.nodes[1]',
                'sentinel.nodes[3]: expected a redis server, got "127.0.0.1:6380", where pyproxy itself listens',
                "sentinel.nodes[4]: expected a port from 1 to 65535, got 0",
            ],
        ),
        (
            f'promotion.promoter = "sentinel"\nsentinel = {{ nodes = {SENTINELS}, name = "m" }}\n' + TWO_COPIED,
            ['sentinel.name: expected {shard} in it, as 2 shards have promoter sentinel, got "m"'],
        ),
        (
            f'promotion.promoter = "sentinel"\nsentinel = {{ nodes = {SENTINELS}, name = "{{name}}" }}\n' + COPIED,
            ['sentinel.name: expected a name, with no braces but of {shard}, got "{name}"'],
        ),
        (
            f'promotion.promoter = "sentinel"\nsentinel = {{ nodes = {SENTINELS}, username = "app" }}\n' + COPIED,
            ["sentinel.password_file: expected a file, as sentinel.username is given, got nothing"],
        ),
        (
            f"sentinel.nodes = {SENTINELS}\n" + COPIED,
            ["sentinel.nodes: expected nothing, as no shard has promoter sentinel, got an array of 3"],
        ),
        (
            'promotion.promoter = "elasticache"\n' + COPIED,
            ["shards[0].replication_group: expected an id, as the shard's promoter is elasticache, got nothing"],
        ),
        (
            COPIED + 'replication_group = "g"\n',
            ['shards[0].replication_group: expected nothing, as the shard\'s promoter is none, got "g"'],
        ),
        (
            'promotion.promoter = "elasticache"\n' + GROUP + 'replicas = ["127.0.0.1:7100"]\n',
            ["shards[0].primary: expected host:port, as replicas are given, got nothing"],
        ),
        (
            'promotion.promoter = "elasticache"\nelasticache.trouble_poll_s = 31\n' + GROUP,
            ["elasticache.poll_s: expected at least elasticache.trouble_poll_s (31.0), got 30.0"],
        ),
        (
            'promotion.promoter = "elasticache"\n'
            + GROUP.replace("16383", "5") + GROUP.replace("0-", "6-").replace("s0", "s1"),
            ['shards[1].replication_group: expected a group of its own, got "g" of shards[0]'],
        ),
        (
            'promotion.promoter = "sentinal"\nsentinel.nodes = ["h:1"]\n' + SHARD + 'replication_group = "g"\n',
            ['promotion.promoter: expected one of elasticache, none, replicaof, sentinel, got "sentinal"'],
        ),
    ],
)  # fmt: skip
def test_promoters_that_lack_what_they_need_are_named(toml: str, found: list[str]) -> None:
    assert problems(toml) == found


def test_slots_without_a_shard_are_named_as_ranges() -> None:
    assert problems(shards(shard(0, '["1-5"]'), shard(1, '["7-16382"]'))) == [
        "shards: expected an owner for every slot from 0 to 16383, got none for 0, 6, 16383"
    ]


def test_slots_of_two_shards_are_named_with_both() -> None:
    assert problems(shards(shard(0, '["0-9000"]'), shard(1, '["8000-16383"]'))) == [
        "shards[1].slots: expected slots that no other has, got 8000-9000 of shards[0] and shards[1]"
    ]


def test_slots_that_a_shard_names_twice_are_a_problem() -> None:
    assert problems(shards(shard(0, '["0-16383", "5"]'))) == [
        "shards[0].slots: expected slots that no other has, got 5 of shards[0] (2 times)"
    ]


def test_many_gaps_are_cut_short() -> None:
    even = ", ".join(f'"{number}"' for number in range(0, 40, 2))
    (problem,) = problems(shards(shard(0, f'[{even}, "40-16383"]')))
    assert problem.endswith("got none for 1, 3, 5, 7, 9, 11, 13, 15 and 12 more ranges")


def test_where_slots_cannot_be_read_nothing_is_said_of_gaps() -> None:
    assert problems(shards(shard(0, '["0-5"]'), shard(1, '["6 to 16383"]'))) == [
        'shards[1].slots[0]: expected slots such as "0-1638" or "5", at most 16383, got "6 to 16383"'
    ]


def test_a_syntax_error_has_its_line() -> None:
    assert problems('listen = "127.0.0.1:1"\nworkers =\n') == [
        "syntax: expected TOML, got: invalid value (at line 2, column 10)"
    ]


def test_bytes_that_are_no_text_have_their_line() -> None:
    assert problems(b'workers = 1\nlisten = "\xff"') == ["line 2: expected UTF-8, got byte 0xff"]


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        pytest.param(f"workers = {'[' * 100_000}", "arrays or tables too deep in each other", id="deep"),
        pytest.param(f"workers = {'1' * 5000}", "exceeds the limit (4300 digits) for integer", id="digits"),
    ],
)
def test_what_the_reader_itself_cannot_bear_is_a_problem(toml: str, problem: str) -> None:
    (said,) = problems(toml)
    assert said.startswith(f"syntax: expected TOML, got: {problem}")


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        Config.load(tmp_path / "none.toml")
    assert caught.value.problems == [f"{tmp_path}/none.toml: expected a readable file, got no such file or directory"]
