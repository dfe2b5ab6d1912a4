from pyproxy.mover.dirty import Dirty, Mark


def test_the_oldest_come_first_and_a_name_that_changes_again_stays_where_it_is() -> None:
    dirty = Dirty()
    for at, name in enumerate([b"a", b"b", b"a", b"c"]):
        dirty.mark([name], at)
    assert dirty.oldest(2, 9.0, ()) == [b"a", b"b"]
    assert dirty.oldest(9, 9.0, ()) == [b"a", b"b", b"c"]
    assert len(dirty) == 3
    assert dirty.since() == 0


def test_one_that_is_too_young_or_busy_is_not_given() -> None:
    dirty = Dirty()
    dirty.mark([b"a", b"b"], 1.0)
    dirty.mark([b"c"], 2.0)
    assert dirty.oldest(9, 1.5, {b"a"}) == [b"b"]


def test_a_name_is_dirty_until_its_dump_is_sent_and_again_after_the_next_change() -> None:
    dirty = Dirty()
    dirty.mark([b"a"], 1.0)
    assert b"a" in dirty
    assert dirty.sent([b"a", b"never marked"]) == {b"a": Mark(1, 1.0)}
    assert b"a" not in dirty
    dirty.mark([b"a"], 2.0)
    assert dirty.oldest(9, 9.0, ()) == [b"a"]
    assert dirty.since() == 2.0


def test_one_that_could_not_be_copied_is_as_dirty_as_it_was() -> None:
    dirty = Dirty()
    dirty.mark([b"a"], 1.0)
    dirty.mark([b"b"], 2.0)
    mark = dirty.sent([b"a"])[b"a"]
    dirty.mark([b"a"], 3.0)
    dirty.put_back(b"a", mark)
    assert (len(dirty), dirty.returned, dirty.since()) == (2, 1, 1.0)
    assert dirty.oldest(9, 9.0, ()) == [b"a", b"b"]
    assert dirty.oldest(9, 9.0, (), returned=False) == [b"b"]


def test_it_is_clean_up_to_a_mark_when_all_before_it_are_sent() -> None:
    dirty = Dirty()
    dirty.mark([b"a", b"b"], 1.0)
    upto = dirty.marked
    dirty.mark([b"c"], 2.0)
    assert not dirty.clean_up_to(upto)
    taken = dirty.sent([b"a", b"b"])
    assert dirty.clean_up_to(upto)
    dirty.put_back(b"b", taken[b"b"])
    assert not dirty.clean_up_to(upto)


def test_its_memory_is_counted_back_to_nothing() -> None:
    dirty = Dirty()
    dirty.mark([b"a", b"bb"], 1.0)
    assert dirty.bytes > 3
    for name, mark in dirty.sent([b"a", b"bb"]).items():
        dirty.mark([name], 2.0)
        dirty.put_back(name, mark)
        dirty.put_back(name, mark)
    dirty.sent([b"a", b"bb"])
    assert (dirty.bytes, len(dirty), dirty.since()) == (0, 0, None)
