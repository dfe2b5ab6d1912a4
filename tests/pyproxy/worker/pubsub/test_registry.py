"""Who is subscribed to what, as one worker knows it: numbers, receivers, frames."""

import pytest

from protocol.reply import decode
from pyproxy.messages import Subscribers
from pyproxy.slices import BATCH
from pyproxy.worker.pubsub.registry import (
    BATCH_BYTES,
    BATCH_NAMES,
    NAME_BYTES,
    ChannelKind,
    Registry,
    Subscriber,
    confirmation_frame,
    message_frame,
)


def registry(**patterns: str) -> Registry[str]:
    """With these patterns, by client."""
    made: Registry[str] = Registry()
    for client, pattern in patterns.items():
        made.add(ChannelKind.PATTERN, pattern.encode(), client)
    return made


def hear(made: Registry[str], said: Subscribers) -> None:
    """To its end."""
    assert all(parts <= BATCH for parts in made.apply(said))


@pytest.mark.parametrize("words", [[b"message", b"c", b"a\r\nb"], [b"pmessage", b"c*", b"c", b""]])
def test_a_message_is_an_array_in_resp2_and_a_push_in_resp3(words: list[bytes]) -> None:
    old, new = message_frame(words, 2), message_frame(words, 3)
    assert decode(old) == words
    assert (old[:1], new[:1], old[1:]) == (b"*", b">", new[1:])


def test_a_confirmation_has_the_name_or_null_and_the_number() -> None:
    assert confirmation_frame(b"subscribe", b"a", 2, 2) == b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:2\r\n"
    assert confirmation_frame(b"unsubscribe", None, 0, 2) == b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"
    assert confirmation_frame(b"unsubscribe", None, 0, 3) == b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n"


def test_channels_and_patterns_are_counted_together_and_shard_channels_for_themselves() -> None:
    subscriber = Subscriber(lambda: None)
    for kind, names in zip(ChannelKind, ([b"a", b"b"], [b"a"], [b"s", b"t", b"u"]), strict=True):
        subscriber.names[kind].update(dict.fromkeys(names))
    assert [subscriber.count(kind) for kind in ChannelKind] == [3, 3, 3]
    del subscriber.names[ChannelKind.SHARD][b"s"]
    assert [subscriber.count(kind) for kind in ChannelKind] == [3, 3, 2]
    assert subscriber.counts == (2, 1, 2)


def test_a_message_is_due_to_all_clients_of_its_name_in_the_order_in_which_they_came() -> None:
    made = registry()
    for client in ("first", "second", "third", "second"):
        made.add(ChannelKind.CHANNEL, b"a", client)
    made.remove(ChannelKind.CHANNEL, b"a", "first")
    assert list(made.clients(ChannelKind.CHANNEL, b"a")) == ["second", "third"]
    assert list(made.clients(ChannelKind.SHARD, b"a")) == []
    for client in ("second", "third"):
        made.remove(ChannelKind.CHANNEL, b"a", client)
    assert made.names(ChannelKind.CHANNEL) == []


def test_receivers_are_the_clients_of_the_channel_and_those_of_each_pattern_that_matches_of_all_workers() -> None:
    made = registry(one="n*", two="n?ws", three="x*", four="n\\*")
    made.add(ChannelKind.CHANNEL, b"news", "one")
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 3
    hear(made, Subscribers({b"news": 2}, {b"n*": 5, b"*s": 1, b"a*": 9}, {b"news": 100}))
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 3 + 2 + 5 + 1
    assert made.receivers(ChannelKind.SHARD, b"news") == 100
    hear(made, Subscribers({b"news": 0}, {b"n*": 0}, {}))
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 4


def test_a_pattern_that_comes_or_goes_counts_from_then_on() -> None:
    made = registry()
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 0
    made.add(ChannelKind.PATTERN, b"n*", "one")
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 1
    made.add(ChannelKind.PATTERN, b"n*", "two")
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 2
    for client in ("one", "two"):
        made.remove(ChannelKind.PATTERN, b"n*", client)
    assert made.receivers(ChannelKind.CHANNEL, b"news") == 0


def test_names_are_those_of_all_workers_each_once_and_can_be_chosen_by_a_pattern() -> None:
    made = registry()
    made.add(ChannelKind.CHANNEL, b"aa", "one")
    hear(made, Subscribers({b"aa": 1, b"ab": 2, b"b": 1}, {}, {}))
    assert sorted(made.names(ChannelKind.CHANNEL)) == [b"aa", b"ab", b"b"]
    assert sorted(made.names(ChannelKind.CHANNEL, b"a?")) == [b"aa", b"ab"]
    assert made.total(ChannelKind.CHANNEL) == 3
    assert made.count(ChannelKind.CHANNEL, b"aa") == 2


def test_what_changed_is_told_once_as_it_is_now() -> None:
    made = registry(one="p*")
    made.add(ChannelKind.CHANNEL, b"a", "one")
    made.add(ChannelKind.CHANNEL, b"a", "two")
    made.add(ChannelKind.SHARD, b"s", "one")
    made.remove(ChannelKind.SHARD, b"s", "one")
    assert made.last_change == 3
    assert made.next_update() == Subscribers({b"a": 2}, {b"p*": 1}, {b"s": 0}, 3)
    assert not made.has_changes
    made.remove(ChannelKind.CHANNEL, b"a", "one")
    assert made.next_update() == Subscribers({b"a": 1}, {}, {}, 4)
    assert made.last_change == made.last_sent == 4


def test_a_change_is_told_by_the_message_of_its_number_at_the_latest() -> None:
    made = registry()
    for number in range(2 * BATCH_NAMES):
        made.add(ChannelKind.CHANNEL, b"%d" % number, "one")
    made.add(ChannelKind.CHANNEL, b"0", "two")  # is still to be told
    by = made.last_change
    made.add(ChannelKind.CHANNEL, b"later", "one")
    told: dict[bytes, int] = {}
    while made.last_sent < by:
        told |= made.next_update().channels
    assert told[b"0"] == 2
    assert len(told) >= 2 * BATCH_NAMES


def test_who_takes_the_place_of_another_gets_what_is_due_and_changes_no_number() -> None:
    made = registry()
    made.add(ChannelKind.CHANNEL, b"a", "one")
    made.next_update()
    made.replace(ChannelKind.CHANNEL, b"a", "one", "other")
    assert list(made.clients(ChannelKind.CHANNEL, b"a")) == ["other"]
    assert not made.has_changes
    assert not made.remove(ChannelKind.CHANNEL, b"a", "one")


def test_a_message_to_the_parent_is_bounded_and_very_long_names_are_not_told() -> None:
    made = registry()
    for number in range(1000):
        made.add(ChannelKind.CHANNEL, b"%01000d" % number, "one")
    made.add(ChannelKind.CHANNEL, b"x" * (NAME_BYTES + 1), "one")
    told: dict[bytes, int] = {}
    while made.has_changes:
        part = made.next_update().channels
        assert sum(map(len, part)) <= BATCH_BYTES + 1000
        told |= part
    assert len(told) == 1000


def test_a_pattern_and_a_name_that_would_take_too_long_to_compare_do_not_match() -> None:
    made = registry(one="*a" * 2000)
    assert made.receivers(ChannelKind.CHANNEL, b"a" * 2001) == 0
    assert made.names(ChannelKind.CHANNEL, b"*a" * 2000) == []
