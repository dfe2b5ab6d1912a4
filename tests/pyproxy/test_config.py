from pathlib import Path

import msgspec
import pytest

from pyproxy.config import MIB, BackendAccess, Config, ConfigErrors, Http, Limits, Timeouts
from pyproxy.shardmap import Node, Shard

EXAMPLE = Path(__file__).parents[2] / "examples" / "pyproxy.toml"

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
    assert config.shards == (Shard("s0", Node("127.0.0.1", 7000), (), ((0, 16383),)),)
    assert (config.workers, config.limits, config.timeouts) == (0, Limits(), Timeouts())
    assert config.http.listen is None


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
        """
    )
    assert config.listen == Node("::1", 0)
    assert config.workers == 3
    assert (config.limits.max_clients, config.limits.bulk_bytes) == (7, 64 * MIB)
    assert (config.timeouts.reply_s, config.timeouts.silence_s) == (2.0, 3.0)
    assert config.http.listen == Node("127.0.0.1", 6381)
    assert config.backend == BackendAccess(True, "/etc/ca.pem", "app", "/etc/password")
    replicas = (Node("127.0.0.1", 2), Node("127.0.0.1", 3))
    assert config.shards == (
        Shard("b.1_x-y", Node("redis.example.org", 1), replicas, ((5, 5), (0, 4), (6, 16383))),
    )


def test_the_example_is_right_and_names_every_option_with_its_default() -> None:
    config = Config.load(EXAMPLE)
    assert config == Config(shards=config.shards)
    written = msgspec.toml.decode(EXAMPLE.read_bytes())
    assert written.keys() == set(Config.__struct_fields__)
    assert written["limits"].keys() == set(Limits.__struct_fields__)
    assert written["http"].keys() == set(Http.__struct_fields__)
    assert written["timeouts"].keys() == set(Timeouts.__struct_fields__)
    assert written["backend"].keys() == set(BackendAccess.__struct_fields__)
    assert written["shards"][0].keys() == set(Shard.__struct_fields__)


def test_the_shard_map_has_the_shards_as_written() -> None:
    config = Config.load(EXAMPLE)
    assert config.shard_map(version=4).shards == config.shards
    assert config.shard_map(version=4).version == 4


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
                "shards[0].primary: expected host:port, got nothing",
                "shards[0].slots: expected an array, got nothing",
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


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        Config.load(tmp_path / "none.toml")
    assert caught.value.problems == [f"{tmp_path}/none.toml: expected a readable file, got no such file or directory"]
