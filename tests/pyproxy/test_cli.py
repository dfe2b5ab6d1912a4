import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyproxy
from pyproxy.cli import main
from pyproxy.config import Config
from pyproxy.control.failover.promoters import replication_groups
from pyproxy.control.growth.file_store import FileStore
from pyproxy.control.growth.store import seeded
from pyproxy.control.growth.transitions import Entry, Phase
from pyproxy.moves import Move
from pyproxy.shard_map import Node, Shard
from pyproxy.worker.lane.lane import BUILD

EXAMPLE = Path(__file__).parents[2] / "examples" / "pyproxy.toml"

FIVE_ERRORS = """
listen = "nowhere"
workers = "two"
[timeouts]
replys = 1
[[shards]]
name = "s0"
primary = "redis"
slots = ["0-16384"]
"""

TWO_SHARDS = """
store = "file:{store}"
[[shards]]
name = "s0"
primary = "127.0.0.1:7000"
slots = ["0-8191"]
[[shards]]
name = "s1"
primary = "127.0.0.1:7001"
slots = ["8192-16383"]
"""

Output = pytest.CaptureFixture[str]


@pytest.fixture
def five_errors(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.toml"
    path.write_text(FIVE_ERRORS)
    return path


def test_check_says_in_one_line_what_is_right(capsys: Output) -> None:
    assert main(["check", str(EXAMPLE)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == (
        f"{EXAMPLE}: ok: 10 shards, 10 replicas, promoter none, a worker per core, listens on 127.0.0.1:6380\n"
    )


def test_the_profile_of_loop_server_is_right(capsys: Output) -> None:
    profile = EXAMPLE.parent / "loop-server.toml"
    assert main(["check", str(profile)]) == 0
    assert capsys.readouterr().out == (
        f"{profile}: ok: 10 shards, 10 replicas, promoter replicaof, a worker per core, listens on 127.0.0.1:6380\n"
    )


@pytest.fixture
def undiscovered(tmp_path: Path) -> Path:
    path = tmp_path / "aws.toml"
    path.write_text('[promotion]\npromoter = "elasticache"\n[[shards]]\nname = "s0"\nreplication_group = "loop-0"\n'
        'slots = ["0-9"]\n[[shards]]\nname = "s1"\nprimary = "127.0.0.1:1"\nslots = ["10-16383"]\n'
        'promoter = "none"\n')  # fmt: skip
    return path


def test_check_names_every_promoter(undiscovered: Path, capsys: Output) -> None:
    assert main(["check", str(undiscovered)]) == 0
    assert ": ok: 2 shards, 0 replicas, promoters elasticache and none, " in capsys.readouterr().out


def test_the_example_of_elasticache_is_right_once_its_token_is_there(tmp_path: Path, capsys: Output) -> None:
    token = tmp_path / "auth-token"
    token.touch(mode=0o600)
    token.write_text("the-token-of-an-example\n")
    path = tmp_path / "elasticache.toml"
    path.write_text((EXAMPLE.parent / "elasticache.toml").read_text().replace("/etc/pyproxy/auth-token", str(token)))
    assert main(["check", str(path)]) == 0
    assert ": ok: 2 shards, 0 replicas, promoter elasticache, " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_missing_boto3_is_a_problem_where_it_is_needed(
    command: str, undiscovered: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert main([command, str(undiscovered)]) == 78
    assert capsys.readouterr().err.splitlines()[1:] == [
        "promotion.promoter: expected boto3 for elasticache "
        "(`pip install boto3` into the environment of pyproxy; ./run and the image have it), got none"
    ]
    assert main(["check", str(EXAMPLE)]) == 0


def test_where_names_the_shard_also_while_its_nodes_are_not_known(undiscovered: Path, capsys: Output) -> None:
    assert main(["where", "", "foo", "--config", str(undiscovered)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        ": slot 0, shard s0, primary not asked for yet",
        "foo: slot 1056, shard s1, primary 127.0.0.1:1",
    ]


def test_check_shows_five_problems_of_a_file_that_has_five(five_errors: Path, capsys: Output) -> None:
    assert main(["check", str(five_errors)]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    head, *problems = said.err.splitlines()
    assert head == f"pyproxy: {five_errors}: 5 problems"
    assert [problem.split(": expected ")[0] for problem in problems] == [
        "listen", "workers", "timeouts.replys", "shards[0].primary", "shards[0].slots[0]"
    ]  # fmt: skip
    assert all(", got " in problem for problem in problems)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_files_that_cannot_be_used_are_a_problem_too(command: str, tmp_path: Path, capsys: Output) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    passwords.write_text("secret\n")
    passwords.chmod(0o644)
    path = tmp_path / "open.toml"
    table = f'[backend]\ntls = true\ntls_ca = "{tmp_path}/none.pem"\npassword_file = "{passwords}"\n'
    path.write_text(EXAMPLE.read_text().split("[backend]")[0] + table + '[[shards]]\nname = "s0"\n'
        'primary = "127.0.0.1:1"\nslots = ["0-16383"]\n')  # fmt: skip
    assert main([command, str(path)]) == 78
    assert capsys.readouterr().err.splitlines() == [
        f"pyproxy: {path}: 2 problems",
        "backend.tls_ca: expected a readable file, got no such file or directory",
        "backend.password_file: expected a file for its owner only (chmod 600), got mode 644",
    ]


@pytest.mark.parametrize("command", [["check"], ["serve"], ["where", "k", "--config"]])
def test_whoever_needs_a_configuration_says_what_is_wrong_with_it(
    command: list[str], five_errors: Path, capsys: Output
) -> None:
    assert main([*command, str(five_errors)]) == 78
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_a_missing_file_is_a_problem_of_the_configuration(tmp_path: Path, capsys: Output) -> None:
    assert main(["check", str(tmp_path / "none.toml")]) == 78
    assert "expected a readable file, got no such file or directory" in capsys.readouterr().err


def test_where_says_slot_shard_and_primary_of_each_key(capsys: Output) -> None:
    assert main(["where", "foo", "", "--config", str(EXAMPLE)]) == 0
    assert capsys.readouterr().out == (
        "foo: slot 1056, shard s0, primary 127.0.0.1:7000\n: slot 0, shard s0, primary 127.0.0.1:7000\n"
    )


def test_where_says_which_hash_tag_was_hashed(capsys: Output) -> None:
    main(["where", "{a}:1", "x{a}", "a", "--config", str(EXAMPLE)])
    assert capsys.readouterr().out.splitlines() == [
        "{a}:1: slot 10674 (of hash tag a), shard s6, primary 127.0.0.1:7006",
        "x{a}: slot 10674 (of hash tag a), shard s6, primary 127.0.0.1:7006",
        "a: slot 10674, shard s6, primary 127.0.0.1:7006",
    ]


def test_where_takes_keys_of_any_bytes_and_keeps_each_on_its_line(capsys: Output) -> None:
    main(["where", os.fsdecode(b"\xff\n"), "ü", "--config", str(EXAMPLE)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("\\xff\\n: slot ")
    assert second.startswith("ü: slot ")


@pytest.fixture
def with_store(tmp_path: Path) -> Path:
    """A configuration with a store, in which nothing is yet."""
    path = tmp_path / "store.toml"
    path.write_text(TWO_SHARDS.format(store=tmp_path / "map.json"))
    return path


def hand_over(path: Path, phase: Phase) -> None:
    """The store of this configuration, after a move of the slots 0 to 1999 from s0 to s1."""
    config = Config.load(path)
    store = FileStore(config.store.removeprefix("file:"))
    move = Move("m1", "s0", "s1", ((0, 1999),))
    document = seeded(config).with_moves([Entry(move=move)], 1.0).handed_over(Entry(move=move, phase=phase), 2.0)
    asyncio.run(store.save(document, 0))


def test_check_says_that_a_store_is_empty_yet(with_store: Path, capsys: Output) -> None:
    assert main(["check", str(with_store)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"store file:{with_store.parent}/map.json: ok: nothing yet; the first start writes the slots of the "
        "configuration into it"
    ]


def test_check_says_where_configuration_and_store_differ(with_store: Path, capsys: Output) -> None:
    hand_over(with_store, Phase.CLEARING)
    assert main(["check", str(with_store)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"store file:{with_store.parent}/map.json: ok: generation 3, moves under way: 1, and differs from the "
        "configuration:",
        "  shard s0: the store says slots 2000-8191; the configuration says slots 0-8191",
        "  shard s1: the store says slots 0-1999, 8192-16383; the configuration says slots 8192-16383",
    ]


@pytest.mark.parametrize(
    "command", [["check"], ["serve"], ["where", "k", "--config"], ["verify", "--misplaced", "--config"]]
)
def test_a_store_that_is_gone_is_said_and_the_configuration_does_not_stand_in_for_it(
    command: list[str], with_store: Path, capsys: Output
) -> None:
    hand_over(with_store, Phase.DONE)
    (with_store.parent / "map.json").unlink()
    assert main([*command, str(with_store)]) == 78
    assert "expected generation 3 or a later one, as it was seen, got no store" in capsys.readouterr().err


def test_where_says_the_shard_that_the_store_says(with_store: Path, capsys: Output) -> None:
    main(["where", "foo", "--config", str(with_store)])
    hand_over(with_store, Phase.DONE)
    main(["where", "foo", "--config", str(with_store)])
    assert capsys.readouterr().out.splitlines() == [
        "foo: slot 1056, shard s0, primary 127.0.0.1:7000", "foo: slot 1056, shard s1, primary 127.0.0.1:7001"
    ]  # fmt: skip


def test_keys_are_not_moved_to_their_owners_while_slots_are_on_the_move(with_store: Path, capsys: Output) -> None:
    hand_over(with_store, Phase.CLEARING)
    assert main(["verify", "--misplaced", "--move", "--config", str(with_store)]) == 69
    assert capsys.readouterr().err == "pyproxy: --move: expected no moves of slots under way, got m1\n"


def test_nothing_is_planned_while_moves_are_under_way(with_store: Path, capsys: Output) -> None:
    hand_over(with_store, Phase.CLEARING)
    assert main(["plan", "--config", str(with_store)]) == 69
    assert capsys.readouterr().err == "pyproxy: expected no moves of slots under way, got m1\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--add", "s1=127.0.0.1:9"], "expected a shard of a name that is new, got s1"),
        (["--remove", "s7"], "expected one of the shards s0, s1, got s7"),
        (
            ["--add", "s2=127.0.0.1:7001"],
            "with the shards that are added: shards[2].primary: expected a node of its own, "
            'got "127.0.0.1:7001" of shards[1].primary',
        ),
    ],
)
def test_what_cannot_be_planned_is_said_before_any_server_is_asked(
    options: list[str], said: str, with_store: Path, capsys: Output
) -> None:
    assert main(["plan", "--config", str(with_store), *options]) == 64
    assert capsys.readouterr().err == f"pyproxy: {said}\n"


@pytest.mark.parametrize("shard", ["s2", "s2=", "s2=nowhere", "s 2=127.0.0.1:1", "=127.0.0.1:1", "s2=127.0.0.1:1,"])
def test_a_new_shard_that_is_none_is_refused(shard: str, with_store: Path, capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--config", str(with_store), "--add", shard])
    assert caught.value.code == 2
    assert "--add: expected " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["plan"], ["verify", "--misplaced"]])
def test_the_servers_of_a_replication_group_are_asked_for(
    command: list[str], undiscovered: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Shard("s0", Node("127.0.0.1", 2), (), ())
    monkeypatch.setattr(replication_groups, "discover", lambda _config: [found])
    assert main([*command, "--config", str(undiscovered)]) == 69
    assert "shard s0: expected one primary, got none; 127.0.0.1:2: connection refused" in capsys.readouterr().err


@pytest.mark.parametrize("shards", [1, 3, 10, 1000])
def test_slots_can_be_pasted_into_a_configuration(shards: int, tmp_path: Path, capsys: Output) -> None:
    assert main(["slots", "--shards", str(shards)]) == 0
    (tmp_path / "pasted.toml").write_text(capsys.readouterr().out)
    assert len(Config.load(tmp_path / "pasted.toml").shards) == shards


def test_slots_of_ten_shards_begin_as_the_example_does(capsys: Output) -> None:
    main(["slots", "--shards", "10"])
    assert capsys.readouterr().out.startswith(
        '[[shards]]\nname = "s0"\nprimary = "127.0.0.1:7000"\nslots = ["0-1638"]\n\n[[shards]]\nname = "s1"\n'
    )


@pytest.mark.parametrize("shards", ["0", "16385", "x", "-1"])
def test_slots_of_an_impossible_number_of_shards_are_refused(shards: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["slots", "--shards", shards])
    assert caught.value.code == 2
    assert "--shards" in capsys.readouterr().err


def test_the_status_of_a_configuration_without_http_names_the_option(capsys: Output) -> None:
    assert main(["status", "--config", str(EXAMPLE)]) == 78
    assert capsys.readouterr().err.splitlines()[1:] == ['http.listen: expected the address of the status, got ""']


def test_version_is_the_packages_and_says_which_build_if_it_is_not_to_serve() -> None:
    said = subprocess.check_output([sys.executable, "-m", "pyproxy", "--version"], text=True)
    assert said == f"pyproxy {pyproxy.__version__}" + (f" ({BUILD} build)" if BUILD else "") + "\n"


def test_without_a_command_the_usage_is_shown(capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "usage: pyproxy" in capsys.readouterr().err
