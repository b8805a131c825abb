"""Long lists of segments: noted when they grow, replaced only as they were seen."""

from __future__ import annotations

import errno
import hashlib

import pytest

from servers.protocol.geometry import Segment
from servers.protocol.naming_api import pack_nodes, pack_segments
from tests.support.volume import NODES, Session, Volume

CHUNK = 1024


@pytest.fixture
def long(make_volume) -> tuple[Volume, Session, int]:
    """A file whose first chunk has 8 segments with a hole after the fifth; 8 are long here."""
    volume = make_volume(LONG_SEGMENTS_MIN=8, VERY_LONG_SEGMENTS_MIN=12, LET_GO_AT_ONCE_MAX=3)
    session = volume.session()
    ino = session.create(1, b"f").ino
    for n in range(8):
        session.commit(ino, {0: [session.segment(n * 10 + (5 if n >= 5 else 0), 10)]})
    return volume, session, ino


def seen(volume: Volume, ino: int) -> bytes:
    return hashlib.sha1(volume.client.hget(f"{volume.key}:m:{ino}", "0")).hexdigest().encode()


def runs(session: Session) -> list[Segment]:
    return [Segment(0, session.new_extent(), 0, 50, NODES), Segment(55, session.new_extent(), 0, 30, NODES)]


def compact(session: Session, ino: int, digest: bytes, segments: list[Segment]) -> int:
    """The eight segments that the chunk had."""
    made = [part for s in segments for part in (s.extent, pack_nodes(s.nodes))]
    (done,) = session.call(
        "compact", ino=ino, index=0, seen=digest, count=8, segments=pack_segments(segments), made=made
    )
    return int(done)


def test_a_long_list_is_noted_and_replaced(long: tuple[Volume, Session, int]) -> None:
    """Size, times and stored bytes stay; the data version does not; the old extents are condemned."""
    volume, session, ino = long
    before, old = volume.attributes(ino), {s.extent for s in volume.chunks(ino)[0]}
    assert volume.call("long", before_ms=2**52, count=9) == [ino, 0]
    new = runs(session)
    assert compact(session, ino, seen(volume, ino), new) == 1
    after = volume.attributes(ino)
    assert volume.chunks(ino) == {0: new}
    assert (after.size, after.stored_bytes, after.mtime_ns, after.ctime_ns) == (
        before.size, before.stored_bytes, before.mtime_ns, before.ctime_ns
    )  # fmt: skip
    assert after.data_version > before.data_version
    assert volume.call("long", before_ms=2**52, count=9) == []
    volume.reclaim()
    assert volume.condemned() == old
    assert volume.status()["extents"] == 2


def test_a_node_that_is_to_have_what_was_compacted_is_not_taken_for_empty(long: tuple[Volume, Session, int]) -> None:
    """Not even by who has found nothing on it before."""
    volume, session, ino = long
    volume.client.hset(f"{volume.key}:draining", "1", 1)
    assert compact(session, ino, seen(volume, ino), runs(session)) == 1
    assert int(volume.client.hget(f"{volume.key}:draining", "1")) > 1


def test_what_was_written_meanwhile_wins(long: tuple[Volume, Session, int]) -> None:
    """Nothing changes, and the new extents are condemned."""
    volume, session, ino = long
    digest = seen(volume, ino)
    session.commit(ino, {0: [session.segment(0, 3)]})
    before, new = volume.chunks(ino), runs(session)
    volume.reclaim()
    condemned = volume.condemned()
    assert compact(session, ino, digest, new) == 0
    assert volume.chunks(ino) == before
    assert volume.condemned() == condemned | {s.extent for s in new}


def test_what_was_appended_meanwhile_follows(long: tuple[Volume, Session, int]) -> None:
    """A log that is written all the time is compacted, too."""
    volume, session, ino = long
    digest, appended = seen(volume, ino), [session.segment(85, 10), session.segment(95, 5)]
    for segment in appended:
        session.commit(ino, {0: [segment]})
    assert not volume.client.exists(f"{volume.key}:purge"), "what only goes on lets nothing go"
    new, stored = runs(session), volume.attributes(ino).stored_bytes
    assert compact(session, ino, digest, new) == 1
    assert volume.chunks(ino) == {0: new + appended}
    assert volume.attributes(ino).stored_bytes == stored
    volume.reclaim()
    assert len(volume.condemned()) == 8
    assert volume.status()["extents"] == 4


def test_a_file_that_is_gone_is_no_error(long: tuple[Volume, Session, int]) -> None:
    volume, session, ino = long
    digest, new = seen(volume, ino), runs(session)
    session.call("release", ino=ino)
    session.unlink(1, b"f")
    volume.reclaim()
    assert compact(session, ino, digest, new) == 0
    assert volume.errno("long_chunk", ino=ino, index=0) == errno.ENOENT
    volume.call("not_long", ino=ino, index=0)
    assert volume.call("long", before_ms=2**52, count=9) == []


@pytest.mark.parametrize("change", ["hole", "short", "beyond", "foreign"])
def test_other_bytes_are_refused(long: tuple[Volume, Session, int], change: str) -> None:
    volume, session, ino = long
    new, before = runs(session), volume.chunks(ino)
    if change == "hole":
        new = [Segment(0, session.new_extent(), 0, 85, NODES)]
    elif change == "short":
        new = new[:1]
    elif change == "beyond":
        new[1] = Segment(55, new[1].extent, 0, 31, NODES)
    else:
        other = session.create(1, b"other").ino
        segment = session.segment(0, 30)
        session.commit(other, {0: [segment]})
        new[1] = Segment(55, segment.extent, 0, 30, NODES)
    with pytest.raises(Exception, match="Invalid argument"):
        compact(session, ino, seen(volume, ino), new)
    assert volume.chunks(ino) == before


def test_a_very_long_list_is_due_at_once(long: tuple[Volume, Session, int]) -> None:
    volume, session, ino = long
    assert volume.call("long", before_ms=0, count=9) == []
    for n in range(8, 12):
        session.commit(ino, {0: [session.segment(n * 10 + 5, 10)]})
    assert volume.call("long", before_ms=0, count=9) == [ino, 0]


def test_what_is_put_off_comes_after_the_others_and_is_not_lost(long: tuple[Volume, Session, int]) -> None:
    """Not even a write, or a list that grows very long, brings it back sooner; short, it is forgotten."""
    volume, session, ino = long
    volume.call("put_off", ino=ino, index=0, ms=60_000)
    other = session.create(1, b"other").ino
    for made in (ino, other):
        for n in range(8, 17):
            session.commit(made, {0: [session.segment(n * 10 + 5, 10)]})
    now_ms = volume.call("deletions")[0]
    assert volume.call("long", before_ms=now_ms, count=9) == [other, 0]
    assert volume.call("long", before_ms=now_ms + 60_000, count=9) == [other, 0, ino, 0]
    volume.call("put_off", ino=ino, index=0, ms=0)
    session.commit(ino, {0: [session.segment(175, 10)]})
    assert volume.call("long", before_ms=0, count=9) == [ino, 0]
    volume.call("put_off", ino=ino, index=0, ms=60_000)
    session.commit(ino, {0: [session.segment(0, 185)]})
    volume.call("put_off", ino=ino, index=0, ms=60_000)
    assert volume.call("long", before_ms=2**52, count=9) == [other, 0]
