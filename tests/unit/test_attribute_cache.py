"""What a mount believes of names, in whatever order questions and answers cross."""

from __future__ import annotations

import msgpack
import pytest

from fusefs.vfs import attribute_cache
from fusefs.vfs.attribute_cache import AttributeCache
from servers.protocol.ids import InodeNumber
from servers.protocol.naming_api import NS, Attributes, unpack_attributes

PARENT, CHILD = InodeNumber(1), InodeNumber(7)
NEVER = (0, 0)


def directory(ctime_s: int) -> bytes:
    """As Redis has it."""
    values = dict.fromkeys(Attributes._fields, 0)
    names = [name for name in values if name not in ("ino", "atime_ns", "mtime_ns", "ctime_ns")]
    flat: list[object] = [values[name] for name in names]
    flat[5:5] = [0, 0, 0, 0, ctime_s, 5]
    flat[-3] = b""
    packed: bytes = msgpack.packb(flat)
    assert unpack_attributes(1, packed).ctime_ns == ctime_s * NS + 5
    return packed


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> AttributeCache:
    """Names only: what attributes look like does not matter here."""
    made = AttributeCache(1.0)
    monkeypatch.setattr(made, "put", lambda *_: None)
    return made


def test_a_name_that_a_listing_did_not_show_is_not_there(cache: AttributeCache) -> None:
    cache.complete(PARENT, 10.0, cache.tick())
    found = cache.entry(PARENT, b"a", 10.5)
    assert found is not None
    assert found[0] is None
    assert cache.entry(PARENT, b"a", 11.1) is None


def _seconds_left(entry: tuple[InodeNumber | None, float] | None, ino: InodeNumber) -> float:
    assert entry is not None
    assert entry[0] == ino
    return entry[1]


def test_a_name_just_made_is_not_denied_by_a_listing_that_is_older(cache: AttributeCache) -> None:
    """Asked for after the name was, executed before it: the listing lacks the name and is believed for longer."""
    assert not cache.wants_listing(PARENT, 10.0)
    tick = cache.tick()
    cache.changed(PARENT, {b"new": CHILD}, b"", NEVER, 10.0)
    cache.complete(PARENT, 10.2, tick)
    assert _seconds_left(cache.entry(PARENT, b"new", 10.5), CHILD) == pytest.approx(0.5)
    assert cache.entry(PARENT, b"new", 11.1) is None


def test_an_answer_that_arrives_late_does_not_replace_one_that_was_asked_for_later(cache: AttributeCache) -> None:
    """Else a name would end sooner than the listing that shows it, and seem to be gone."""
    tick = cache.tick()
    cache.put_entry(PARENT, b"a", CHILD, 10.5, tick)
    cache.complete(PARENT, 10.5, tick)
    cache.put_entry(PARENT, b"a", CHILD, 10.0, tick)
    assert _seconds_left(cache.entry(PARENT, b"a", 11.2), CHILD) == pytest.approx(0.3)
    cache.put_entry(PARENT, b"a", None, 10.1, tick)
    assert _seconds_left(cache.entry(PARENT, b"a", 11.2), CHILD) == pytest.approx(0.3)


def test_a_name_that_was_removed_is_gone_at_once(cache: AttributeCache) -> None:
    cache.put_entry(PARENT, b"a", CHILD, 10.0, cache.tick())
    cache.changed(PARENT, {b"a": None}, b"", NEVER, 10.1)
    found = cache.entry(PARENT, b"a", 10.2)
    assert found is not None
    assert found[0] is None


def test_a_listing_that_had_no_room_proves_nothing(cache: AttributeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of its names are forgotten by the time that it is taken in."""
    monkeypatch.setattr(attribute_cache, "ENTRIES_MAX", 20)
    tick = cache.tick()
    for number in range(30):
        cache.put_entry(PARENT, b"%d" % number, InodeNumber(100 + number), 10.0, tick)
    cache.complete(PARENT, 10.0, tick)
    assert cache.entry(PARENT, b"0", 10.5) is None


@pytest.fixture
def listed(cache: AttributeCache) -> AttributeCache:
    """At 10.0 the directory had the names a and b, and ctime 100."""
    tick, listing = cache.tick(), cache.new_listing()
    for number, name in enumerate((b"a", b"b")):
        cache.put_entry(PARENT, name, InodeNumber(20 + number), 10.0, tick, listing)
    cache.complete(PARENT, 10.0, tick, listing, 100 * NS + 5)
    return cache


def test_changes_of_ours_in_a_row_keep_all_names_known(listed: AttributeCache) -> None:
    listed.changed(PARENT, {b"c": CHILD}, directory(101), (100, 5), 10.9)
    listed.changed(PARENT, {b"a": None}, directory(102), (101, 5), 11.8)
    listed.changed(PARENT, {b"b": None, b"d": InodeNumber(21)}, directory(103), (102, 5), 12.7)
    assert _seconds_left(listed.entry(PARENT, b"c", 13.5), CHILD) == pytest.approx(0.2)
    assert _seconds_left(listed.entry(PARENT, b"d", 13.5), InodeNumber(21)) == pytest.approx(0.2)
    for gone in (b"a", b"b", b"never"):
        found = listed.entry(PARENT, gone, 13.5)
        assert found is not None
        assert found[0] is None
    assert listed.entry(PARENT, b"c", 13.8) is None


def test_after_a_change_of_somebody_else_no_name_is_known_for_longer(listed: AttributeCache) -> None:
    """Not by changes of ours that follow it, either."""
    listed.changed(PARENT, {b"c": CHILD}, directory(103), (102, 5), 10.9)
    listed.changed(PARENT, {b"d": CHILD}, directory(104), (103, 5), 11.8)
    assert listed.entry(PARENT, b"b", 12.0) is None
    assert listed.entry(PARENT, b"never", 12.0) is None
    assert _seconds_left(listed.entry(PARENT, b"d", 12.0), CHILD) == pytest.approx(0.8)


def test_a_name_that_no_listing_showed_is_not_believed_with_the_others(listed: AttributeCache) -> None:
    """Somebody else made it, and our change was before."""
    listed.put_entry(PARENT, b"x", CHILD, 10.5, listed.tick())
    listed.changed(PARENT, {b"c": CHILD}, directory(101), (100, 5), 10.9)
    assert _seconds_left(listed.entry(PARENT, b"x", 11.4), CHILD) == pytest.approx(0.1)
    assert listed.entry(PARENT, b"x", 11.6) is None


def test_a_change_that_failed_leaves_nothing_known(listed: AttributeCache) -> None:
    listed.forget_entry(PARENT, b"c")
    listed.changed(PARENT, {b"d": CHILD}, directory(101), (100, 5), 10.5)
    assert listed.entry(PARENT, b"never", 10.6) is None
    assert listed.entry(PARENT, b"a", 11.2) is None


@pytest.mark.parametrize("order", ["asked after, done before", "answered last", "our own change answered late"])
def test_a_name_that_a_listing_showed_and_another_question_denied_is_asked_for(
    cache: AttributeCache, order: str
) -> None:
    """Somebody else made it between the two. Changes of ours that follow do not hide it."""
    tick, listing = cache.tick(), cache.new_listing()
    if order == "asked after, done before":
        cache.put_entry(PARENT, b"x", None, 10.3, tick)
    elif order == "our own change answered late":
        cache.changed(PARENT, {b"x": None}, directory(99), (98, 5), 9.8)
    cache.put_entry(PARENT, b"x", CHILD, 10.2, tick, listing)
    cache.complete(PARENT, 10.2, tick, listing, 100 * NS + 5)
    if order == "answered last":
        cache.put_entry(PARENT, b"x", None, 10.3, tick)
    cache.changed(PARENT, {b"c": InodeNumber(8)}, directory(101), (100, 5), 11.1)
    assert cache.entry(PARENT, b"x", 11.5) is None
