"""Names to be subscribed: a server that walks along the roll is asked for each that is wanted, and in order."""

import random

from protocol import request
from pyproxy.worker.pubsub.registry import Sort
from pyproxy.worker.pubsub.wanted import Roll, Wanted


def walked(roll: Roll, most: int = 10) -> list[bytes]:
    """All names, by a walk along the whole roll."""
    place, seen = roll.start, list[bytes]()
    while place is not roll.last:
        frames, names, _ = roll.after(place, most)
        assert 0 < len(names) <= most
        assert frames == b"".join(request.encode([each.sort.prefix + b"subscribe", each.text]) for each in names)
        seen += [each.text for each in names]
        place = names[-1]
    return seen


def test_names_come_in_the_order_in_which_they_were_added_each_by_a_command_of_its_sort() -> None:
    roll = Roll()
    for sort, text in zip([*Sort, Sort.CHANNEL], [b"a", b"b*", b"c", b""], strict=True):
        roll.add(sort, text)
    frames, names, _ = roll.after(roll.start, 10)
    assert frames == b"".join(
        request.encode(argv) for argv in ([b"subscribe", b"a"], [b"psubscribe", b"b*"], [b"ssubscribe", b"c"],
                                          [b"subscribe", b""])
    )  # fmt: skip
    assert [each.number for each in names] == [1, 2, 3, 4]
    assert walked(roll, 2) == [b"a", b"b*", b"c", b""]


def test_what_is_asked_of_many_servers_is_made_once() -> None:
    roll = Roll()
    for number in range(20):
        roll.add(Sort.CHANNEL, b"%d" % number)
    first, second = roll.after(roll.start, 10), roll.after(roll.start, 10)
    assert (first[2], second[2]) == (False, True)
    assert first[0] is second[0]


def test_whatever_comes_and_goes_the_walk_has_what_is_there_and_the_numbers_grow() -> None:
    chance, roll, there = random.Random(3), Roll(), dict[bytes, Wanted]()
    for number in range(3000):
        if there and chance.randrange(2):
            roll.remove(there.pop(chance.choice(list(there))))
        else:
            name = b"%d" % number
            there[name] = roll.add(Sort.CHANNEL, name)
        if not chance.randrange(20):
            assert walked(roll) == list(there)
            assert roll.size == len(there)
            numbers = [wanted.number for wanted in there.values()]
            assert numbers == sorted(numbers)
    for wanted in there.values():
        roll.remove(wanted)
    assert roll.last is roll.start


def test_who_is_early_is_there_once_until_removed_however_many_there_are() -> None:
    wanted, chance = Roll().add(Sort.CHANNEL, b"a"), random.Random(5)
    everybody, there = [object() for _ in range(4)], list[object]()
    assert wanted.all_early == []
    for _ in range(300):
        who = chance.choice(everybody)
        assert wanted.is_early(who) == (who in there)
        if who in there:
            assert wanted.remove_early(who)
            there.remove(who)
        else:
            assert not wanted.remove_early(who)
            wanted.add_early(who)
            there.append(who)
        assert wanted.all_early == there
