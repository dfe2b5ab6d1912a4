"""What calls of scripts without keys are, by the configuration, and how the answers of all shards become one."""

import pytest

from pyproxy.config import ScriptRule, ScriptRules
from pyproxy.scripts import Scripts, digest_of
from pyproxy.worker.commands.keyless import KEPT, LONGEST, Keyless, merged

COUNT = b"return #redis.pcall('keys', 'userid.*')"
HARMLESS = b"return redis.call('time')"
SHA = digest_of(COUNT)


def keyless(rules: ScriptRules, *known: bytes) -> Keyless:
    scripts = Scripts(1 << 20)
    for text in known:
        scripts.learn(text)
    return Keyless(rules, scripts)


def calls(*rules: ScriptRule) -> ScriptRules:
    return ScriptRules(calls=rules)


def way(rules: ScriptRules, *argv: bytes, shards: int = 3) -> str:
    return keyless(rules).way([*argv, b"0"], shards)


def test_by_itself_a_text_runs_on_one_shard_only_if_it_is_seen_to_use_no_keys() -> None:
    for name in (b"EVAL", b"eval_ro"):
        assert way(ScriptRules(), name, HARMLESS) == "one"
        assert way(ScriptRules(), name, COUNT) == "refuse"


def test_before_one_shard_everything_is_right_as_it_is() -> None:
    assert way(ScriptRules(without_keys="refuse"), b"EVAL", COUNT, shards=1) == "one"


def test_a_text_that_is_only_named_is_needed_first_unless_nothing_depends_on_it() -> None:
    assert way(ScriptRules(), b"EVALSHA", SHA) == "unknown"
    assert way(ScriptRules(without_keys="one"), b"EVALSHA", SHA) == "one"
    by_text = ScriptRule(text="return*", without_keys="all-sum")
    assert way(ScriptRules(without_keys="one", calls=(by_text,)), b"EVALSHA", SHA) == "unknown"
    by_sha1 = ScriptRule(sha1=SHA.decode(), without_keys="all-first")
    assert way(calls(by_sha1), b"EVALSHA", SHA.upper()) == "all-first"
    assert way(calls(by_sha1, by_text), b"EVALSHA", SHA) == "all-first"
    assert way(calls(by_text, by_sha1), b"EVALSHA", SHA) == "unknown", "the rule before it may fit"


def test_a_text_that_is_known_is_as_good_as_one_that_is_sent() -> None:
    known = keyless(ScriptRules(), COUNT, HARMLESS)
    assert known.way([b"EVALSHA", SHA, b"0"], 3) == "refuse"
    assert known.way([b"EVALSHA_RO", digest_of(HARMLESS), b"0"], 3) == "one"


def test_the_first_rule_that_fits_counts() -> None:
    rules = calls(
        ScriptRule(text="return #redis.pcall('keys', '*')", without_keys="all-sum"),
        ScriptRule(text="*keys*", without_keys="one"),
        ScriptRule(sha1=digest_of(b"redis.call('flushall')").decode().upper(), without_keys="all-equal"),
    )
    assert way(rules, b"EVAL", COUNT) == "all-sum"
    assert way(rules, b"EVAL", b"local a\nreturn redis.call('keys', 'a')") == "one"
    assert way(rules, b"EVAL", b"redis.call('flushall')") == "all-equal"
    assert way(rules, b"EVAL", b"redis.call('flushdb')") == "refuse"


def test_a_text_that_is_longer_than_what_is_compared_fits_no_pattern() -> None:
    rules = calls(ScriptRule(text="*", without_keys="one"))
    assert way(rules, b"EVAL", b"--" + b"x" * (LONGEST - 2)) == "one"
    assert way(rules, b"EVAL", b"--" + b"x" * (LONGEST - 1)) == "refuse"


def test_a_function_is_known_by_its_name() -> None:
    rules = calls(ScriptRule(function="count*", without_keys="all-sum"), ScriptRule(text="*", without_keys="one"))
    assert way(rules, b"FCALL", b"count_users") == "all-sum"
    assert way(rules, b"FCALL_RO", b"users") == "auto"


def test_what_is_remembered_of_texts_is_bounded_and_right() -> None:
    rules = keyless(ScriptRules())
    for number in range(2 * KEPT):
        assert rules.way([b"EVAL", b"return %d" % number, b"0"], 3) == "one"
    assert rules.way([b"EVAL", COUNT, b"0"], 3) == rules.way([b"EVAL", COUNT, b"0"], 3) == "refuse"


@pytest.mark.parametrize(
    ("how", "frames", "answer"),
    [
        ("all-sum", [b":1\r\n", b":-3\r\n", b":40\r\n"], b":38\r\n"),
        ("all-concat", [b"*1\r\n+a\r\n", b"*0\r\n", b"$-1\r\n", b"*2\r\n:1\r\n_\r\n"], b"*3\r\n+a\r\n:1\r\n_\r\n"),
        ("all-first", [b"$-1\r\n", b"_\r\n", b":0\r\n", b":1\r\n"], b":0\r\n"),
        ("all-first", [b"$-1\r\n", b"$-1\r\n"], b"$-1\r\n"),
        ("all-equal", [b"+OK\r\n", b"+OK\r\n"], b"+OK\r\n"),
        ("all-sum", [b"-ERR x\r\n", b"-ERR x\r\n"], b"-ERR x\r\n"),
    ],
)
def test_the_answers_of_all_become_one(how: str, frames: list[bytes], answer: bytes) -> None:
    assert merged(b"eval", how, {f"s{index}": frame for index, frame in enumerate(frames)}, True) == answer


@pytest.mark.parametrize(
    ("how", "frames"),
    [
        ("all-sum", [b":1\r\n", b"$1\r\n1\r\n"]),
        ("all-sum", [b":1\r\n", b"$-1\r\n"]),
        ("all-sum", [b":9223372036854775807\r\n", b":1\r\n"]),
        ("all-concat", [b"*0\r\n", b":1\r\n"]),
        ("all-equal", [b":1\r\n", b":2\r\n"]),
    ],
)
def test_answers_that_do_not_fit_together_are_an_error_and_no_value(how: str, frames: list[bytes]) -> None:
    reply = merged(b"eval", how, {f"s{index}": frame for index, frame in enumerate(frames)}, True)
    assert reply.startswith(b"-ERR the shards' answers to 'eval' cannot be merged by %b" % how.encode())


def test_the_error_of_one_is_that_of_all_and_says_who_may_have_written() -> None:
    frames = {"s0": b":1\r\n", "s1": b"-OOM no\r\n", "s2": b":1\r\n"}
    assert merged(b"eval", "all-sum", frames, True) == (
        b"-UNCERTAIN shard s1: OOM no; other shards may have applied their part: s0, s2\r\n"
    )
    assert merged(b"eval_ro", "all-sum", frames, False) == b"-OOM shard s1: no\r\n"
