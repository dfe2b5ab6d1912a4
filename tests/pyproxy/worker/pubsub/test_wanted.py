"""A walk along the list of wanted names has each name that is wanted, in order."""

import random

from protocol import request
from pyproxy.worker.pubsub.registry import ChannelKind
from pyproxy.worker.pubsub.wanted import WantedName, WantedNames


def walked(wanted: WantedNames, most: int = 10) -> list[bytes]:
    """All names, by a walk along the whole list."""
    position, seen = wanted.start, list[bytes]()
    while position is not wanted.last:
        frames, names, _ = wanted.after(position, most)
        assert 0 < len(names) <= most
        assert frames == b"".join(request.encode([each.kind.prefix + b"subscribe", each.text]) for each in names)
        seen += [each.text for each in names]
        position = names[-1]
    return seen


def test_names_come_in_the_order_in_which_they_were_added_each_by_a_command_of_its_kind() -> None:
    wanted = WantedNames()
    for kind, text in zip([*ChannelKind, ChannelKind.CHANNEL], [b"a", b"b*", b"c", b""], strict=True):
        wanted.add(kind, text)
    frames, names, _ = wanted.after(wanted.start, 10)
    assert frames == b"".join(
        request.encode(argv) for argv in ([b"subscribe", b"a"], [b"psubscribe", b"b*"], [b"ssubscribe", b"c"],
                                          [b"subscribe", b""])
    )  # fmt: skip
    assert [each.number for each in names] == [1, 2, 3, 4]
    assert walked(wanted, 2) == [b"a", b"b*", b"c", b""]


def test_what_is_asked_of_many_servers_is_made_once() -> None:
    wanted = WantedNames()
    for number in range(20):
        wanted.add(ChannelKind.CHANNEL, b"%d" % number)
    first, second = wanted.after(wanted.start, 10), wanted.after(wanted.start, 10)
    assert (first[2], second[2]) == (False, True)
    assert first[0] is second[0]


def test_whatever_comes_and_goes_the_walk_has_what_is_there_and_the_numbers_grow() -> None:
    chance, wanted, there = random.Random(3), WantedNames(), dict[bytes, WantedName]()
    for number in range(3000):
        if there and chance.randrange(2):
            wanted.remove(there.pop(chance.choice(list(there))))
        else:
            name = b"%d" % number
            there[name] = wanted.add(ChannelKind.CHANNEL, name)
        if not chance.randrange(20):
            assert walked(wanted) == list(there)
            assert wanted.size == len(there)
            numbers = [each.number for each in there.values()]
            assert numbers == sorted(numbers)
    for each in there.values():
        wanted.remove(each)
    assert wanted.last is wanted.start


def test_a_pending_subscriber_is_there_once_until_it_is_removed_however_many_there_are() -> None:
    wanted, chance = WantedNames().add(ChannelKind.CHANNEL, b"a"), random.Random(5)
    everybody, there = [object() for _ in range(4)], list[object]()
    assert wanted.all_pending == []
    for _ in range(300):
        who = chance.choice(everybody)
        assert wanted.is_pending(who) == (who in there)
        if who in there:
            assert wanted.remove_pending(who)
            there.remove(who)
        else:
            assert not wanted.remove_pending(who)
            wanted.add_pending(who)
            there.append(who)
        assert wanted.all_pending == there
