"""What a mount believes of names, in whatever order questions and answers cross."""

from __future__ import annotations

import pytest

from fusefs.vfs import attribute_cache
from fusefs.vfs.attribute_cache import AttributeCache
from servers.protocol.ids import InodeNumber

PARENT, CHILD = InodeNumber(1), InodeNumber(7)


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
    cache.changed(PARENT, b"new", CHILD, b"", 10.0)
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
    cache.changed(PARENT, b"a", None, b"", 10.1)
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
