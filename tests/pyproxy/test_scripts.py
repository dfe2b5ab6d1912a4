import hashlib

import pytest

from pyproxy.scripts import LARGEST, OVERHEAD, Scripts, digest_of

LIMIT = 8000
SIZE = 300 + OVERHEAD  # of one text of those below, in the store


def text(number: int) -> bytes:
    return b"return %d" % number + b" " * (300 - len(b"return %d" % number))


def filled(count: int) -> Scripts:
    scripts = Scripts(LIMIT)
    for number in range(count):
        assert scripts.learn(text(number))
    return scripts


def test_a_digest_is_the_one_that_servers_give() -> None:
    assert digest_of(b"return 1") == b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
    assert digest_of(b"\0\xff") == hashlib.sha1(b"\0\xff").hexdigest().encode()


def test_what_was_learned_is_found_by_its_digest_in_any_case() -> None:
    scripts = filled(1)
    assert scripts.text(digest_of(text(0))) == scripts.text(digest_of(text(0)).upper()) == text(0)
    assert digest_of(text(0)).upper() in scripts
    assert scripts.text(digest_of(text(1))) is None


def test_a_text_is_new_once() -> None:
    assert not filled(1).learn(text(0))


def test_beyond_the_limit_the_least_recently_used_goes() -> None:
    most = LIMIT // SIZE
    scripts = filled(most)
    assert scripts.text(digest_of(text(0))) == text(0)  # used
    scripts.learn(text(1))  # learned again
    scripts.learn(text(most))
    scripts.learn(text(most + 1))
    kept = [number for number in range(most + 2) if digest_of(text(number)) in scripts]
    assert kept == [0, 1, *range(4, most + 2)]


def test_a_text_that_was_forgotten_is_new_again() -> None:
    scripts = filled(LIMIT // SIZE + 1)
    assert scripts.learn(text(0))


def test_a_text_that_would_take_much_of_the_store_is_not_kept() -> None:
    scripts = filled(3)
    largest = b" " * (LIMIT // LARGEST - OVERHEAD)
    assert scripts.learn(largest)
    assert not scripts.learn(largest + b" ")
    assert scripts.texts == [text(0), text(1), text(2), largest]


def test_a_flush_forgets_all_and_is_counted() -> None:
    scripts = filled(3)
    scripts.flush()
    assert (scripts.texts, scripts.flushes) == ([], 1)
    assert scripts.learn(text(0))


@pytest.mark.parametrize(
    ("flushes", "known"),
    [(4, [text(0)]), (5, [text(0), text(1)]), (6, [text(1)])],
    ids=["before the flush", "the same", "after a later one"],
)
def test_what_another_store_knows_counts_unless_it_is_from_before_a_flush(flushes: int, known: list[bytes]) -> None:
    scripts = Scripts(LIMIT)
    scripts.take(5, [text(0)])
    scripts.take(flushes, [text(1)])
    assert (scripts.texts, scripts.flushes) == (known, max(5, flushes))
