"""What files show: commits, appends, truncation, and how their extents are let go of."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.protocol.geometry import Segment, cut, overlay
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id
from servers.protocol.limits import FILE_BYTES_MAX
from servers.protocol.naming_api import pack_nodes, pack_segments, pack_time
from tests.support.check_volume import check_volume
from tests.support.volume import NODES, Session, Volume

CHUNK = 1024
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def commit_errno(session: Session, ino: int, chunks: Any, end: int = CHUNK, **more: object) -> int:
    return session.errno("commit", ino=ino, chunks=chunks, end=end, synced=True, **more)


def extents(volume: Volume, ino: int) -> set[ExtentId]:
    return {s.extent for segments in volume.chunks(ino).values() for s in segments}


def test_a_commit_is_one_step(volume: Volume, session: Session) -> None:
    """All its chunks, size, version, times and counters at once; the version before is told."""
    made = session.create(1, b"f")
    segments = {0: [session.segment(10, 5)], 3: [session.segment(0, 7), session.segment(9, 1)]}
    flat = [part for i, s in segments.items() for part in (i, pack_segments(s))]
    _, offset, before = session.call("commit", ino=made.ino, chunks=flat, end=3 * CHUNK + 10, synced=False)
    after = volume.attributes(made.ino)
    assert (offset, before) == (0, made.data_version)
    assert (after.size, after.stored_bytes) == (3 * CHUNK + 10, 13)
    assert after.data_version > made.data_version
    assert after.mtime_ns > made.mtime_ns
    assert after.unsynced_s > 0
    assert volume.chunks(made.ino) == segments
    assert volume.status()["extents"] == 3
    assert volume.status()["bytes"] == 13


def test_a_commit_over_a_version_is_refused_once_the_content_is_another(volume: Volume, session: Session) -> None:
    """The fence for what was written in a session that is over."""
    made = session.create(1, b"f")
    first = session.commit(made.ino, {0: [session.segment(0, 10)]}, version=made.data_version)
    again = [0, pack_segments([session.segment(0, 10)])]
    assert commit_errno(session, made.ino, again, version=made.data_version) == errno.ESTALE
    assert volume.attributes(made.ino).data_version == first.data_version
    session.setattr(made.ino, mode=0o600)
    session.commit(made.ino, {0: [session.segment(0, 10)]}, version=first.data_version)


def test_a_commit_never_makes_a_file_shorter(session: Session) -> None:
    made = session.create(1, b"f")
    session.commit(made.ino, {1: [session.segment(0, 100)]})
    assert session.commit(made.ino, {0: [session.segment(0, 100)]}).size == CHUNK + 100
    assert session.commit(made.ino, {}, end=9999).size == 9999


def test_commits_that_cannot_be(session: Session) -> None:
    """Refused before anything is written."""
    made, directory = session.create(1, b"f"), session.mkdir(1, b"d")
    extent, nodes = session.new_extent(), pack_nodes(NODES)

    def one(*segments: object) -> list[object]:
        return [0, list(segments)]

    wrong: list[list[object]] = [
        one(0, extent, 0, 0, nodes), one(0, extent, 0, -1, nodes), one(-1, extent, 0, 5, nodes),
        one(1020, extent, 0, 5, nodes), one(0, extent, -1, 5, nodes), one(0, b"short", 0, 5, nodes),
        one(0, extent, 0, 5, b"odd"), one(0, extent, 0, 5, b""), one(0, extent, 0, 5), one(), [0],
        one(0.5, extent, 0, 5, nodes), one(5, extent, 0, 5, nodes, 4, extent, 5, 5, nodes), [0, 7],
        [1, [0, extent, 0, 5, nodes], 0, [0, extent, 0, 5, nodes]], [0, [0, extent, 0, 5, nodes]] * 2,
        [-1, [0, extent, 0, 5, nodes]], [1, [0, extent, 0, 5, nodes]], ["0", [0, extent, 0, 5, nodes]],
    ]  # fmt: skip
    for chunks in wrong:
        assert commit_errno(session, made.ino, chunks) == errno.EINVAL, chunks
    good = one(0, extent, 0, 5, nodes)
    assert commit_errno(session, directory.ino, good) == errno.EINVAL
    assert commit_errno(session, 99, good) == errno.ESTALE
    assert commit_errno(session, made.ino, good, FILE_BYTES_MAX + 1) == errno.EFBIG
    many = [part for i in range(257) for part in (i, [0, extent, 0, 5, nodes])]
    assert commit_errno(session, made.ino, many, 10**6) == errno.E2BIG
    assert commit_errno(session, made.ino, good) == 0


def test_a_commit_has_a_limited_number_of_segments(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(SEGMENTS_PER_COMMIT_MAX=4)
    session = volume.session()
    made = session.create(1, b"f")
    five = [part for i in range(5) for part in (10 * i, session.new_extent(), 0, 5, pack_nodes(NODES))]
    assert commit_errno(session, made.ino, [0, five]) == errno.E2BIG
    assert commit_errno(session, made.ino, [0, five[:20]]) == 0


spans = st.tuples(st.integers(0, CHUNK - 1), st.integers(1, CHUNK)).map(lambda t: (t[0], min(t[1], CHUNK - t[0])))
Plan = list[dict[int, list[tuple[int, int]]]]
commits = st.lists(st.dictionaries(st.integers(0, 2), st.lists(spans, min_size=1, max_size=4), max_size=3), max_size=8)


def disjoint(session: Session, wanted: list[tuple[int, int]], nodes: tuple[NodeNumber, ...]) -> list[Segment]:
    """The wanted spans as a sorted list without overlap, each with a new extent and an offset within it."""
    return overlay(replace(session.segment(start, length, nodes), extent_offset=3) for start, length in wanted)


@QUICK
@given(plan=commits, nodes=st.integers(1, 3))
def test_commits_lay_later_over_earlier(make_volume: Callable[..., Volume], plan: Plan, nodes: int) -> None:
    """Whatever the order and the overlap: as geometry.overlay has it, counters and index included."""
    volume = make_volume()
    session = volume.session()
    made = session.create(1, b"f")
    model: dict[int, list[Segment]] = {}
    for wanted in plan:
        chunks = {index: disjoint(session, spans, NODES[:nodes]) for index, spans in sorted(wanted.items())}
        session.commit(made.ino, chunks)
        for index, segments in chunks.items():
            model[index] = overlay([*model.get(index, []), *segments])
    assert {i: joined(s) for i, s in volume.chunks(made.ino).items()} == {i: joined(s) for i, s in model.items()}


def joined(segments: list[Segment]) -> list[Segment]:
    """Neighbours that show neighbouring parts of one extent as one."""
    result: list[Segment] = []
    for s in segments:
        last = result[-1] if result else None
        if (
            last
            and last.extent == s.extent
            and last.end == s.offset
            and last.extent_offset + last.length == s.extent_offset
        ):
            result[-1] = replace(last, length=last.length + s.length)
        else:
            result.append(s)
    return result


@QUICK
@given(plan=commits, size=st.integers(0, 3 * CHUNK), again=commits)
def test_truncation_cuts_and_what_it_cut_stays_gone(
    make_volume: Callable[..., Volume], plan: Plan, size: int, again: Plan
) -> None:
    """Shorter, then longer, then written again: between lie holes, never old bytes."""
    volume = make_volume()
    session = volume.session()
    made = session.create(1, b"f")
    model: dict[int, list[Segment]] = {}

    def write(commits: Plan) -> None:
        for wanted in commits:
            chunks = {index: disjoint(session, spans, NODES) for index, spans in sorted(wanted.items())}
            session.commit(made.ino, chunks)
            for index, segments in chunks.items():
                model[index] = overlay([*model.get(index, []), *segments])

    write(plan)
    assert session.setattr(made.ino, size=size).size == size
    assert session.setattr(made.ino, size=3 * CHUNK).size == 3 * CHUNK
    for index, segments in list(model.items()):
        limit = size - index * CHUNK
        model[index] = [cut(s, s.offset, min(s.end, limit)) for s in segments if s.offset < limit]
        if not model[index]:
            del model[index]
    write(again)
    assert {i: joined(s) for i, s in volume.chunks(made.ino).items()} == {i: joined(s) for i, s in model.items()}


def test_what_is_covered_whole_is_condemned(volume: Volume, session: Session) -> None:
    """And only then: a part that still shows keeps its extent."""
    made = session.create(1, b"f")
    first = session.segment(0, 100)
    session.commit(made.ino, {0: [first]})
    session.commit(made.ino, {0: [session.segment(0, 60)]})
    assert volume.condemned() == set()
    session.commit(made.ino, {0: [session.segment(50, 50)]})
    assert volume.condemned() == {first.extent}


def test_an_extent_of_two_chunks_lives_until_both_let_go(volume: Volume, session: Session) -> None:
    """An append across a boundary makes such; overwriting one side and cutting the other frees it."""
    made = session.create(1, b"f")
    session.setattr(made.ino, size=CHUNK - 10)
    extent = session.new_extent()
    assert session.append(made.ino, (extent, 30)) == CHUNK - 10
    assert volume.attributes(made.ino).size == CHUNK + 20
    chunks = volume.chunks(made.ino)
    assert (chunks[0][0].length, chunks[1][0].extent_offset, chunks[1][0].length) == (10, 10, 20)
    session.commit(made.ino, {0: [session.segment(0, CHUNK)]})
    assert volume.condemned() == set()
    session.setattr(made.ino, size=CHUNK + 5)
    assert volume.condemned() == set()
    session.setattr(made.ino, size=CHUNK)
    assert volume.condemned() == {extent}


def test_appends_go_to_the_end_there_is(volume: Volume, session: Session) -> None:
    """Whoever appends: each lands whole, after what was there, over as many chunks as it takes."""
    other = volume.session()
    made = session.create(1, b"f")
    assert session.append(made.ino, (session.new_extent(), 5)) == 0
    assert other.append(made.ino, (other.new_extent(), 3000), (other.new_extent(), 7)) == 5
    assert session.append(made.ino, (session.new_extent(), 1)) == 3012
    assert volume.attributes(made.ino).size == volume.attributes(made.ino).stored_bytes == 3013


def test_what_was_appended_already_is_not_appended_again(volume: Volume, session: Session) -> None:
    """A writer that had no answer for half a minute asks anew, perhaps with more: only what is new goes to the end."""
    made = session.create(1, b"f")
    first, second = (session.new_extent(), 5), (session.new_extent(), CHUNK)
    assert session.append(made.ino, first) == 0
    assert session.append(made.ino, first) == -1
    assert session.append(made.ino, first, second) == -1
    assert volume.attributes(made.ino).size == 5 + CHUNK
    assert [s.extent for _, segments in sorted(volume.chunks(made.ino).items()) for s in segments] == [
        first[0], second[0], second[0],
    ]  # fmt: skip


def test_appends_that_cannot_be(make_volume: Callable[..., Volume]) -> None:
    """A length no extent has would keep Redis busy for hours; it is refused at once."""
    volume = make_volume(APPENDED_CHUNKS_MAX=4)
    session = volume.session()
    made, nodes = session.create(1, b"f"), pack_nodes(NODES)
    extent = session.new_extent()
    for append, wanted in (
        ([extent, 2**50, nodes], errno.EINVAL), ([extent, 0, nodes], errno.EINVAL), ([extent, 5], errno.EINVAL),
        ([b"x", 5, nodes], errno.EINVAL), ([extent, 4 * CHUNK + 1, nodes], errno.E2BIG),
        ([extent, 5, b"x"], errno.EINVAL),
    ):  # fmt: skip
        assert commit_errno(session, made.ino, [], append=append) == wanted, append
    session.setattr(made.ino, size=FILE_BYTES_MAX - 3)
    assert commit_errno(session, made.ino, [], append=[extent, 5, nodes]) == errno.EFBIG
    session.setattr(made.ino, size=0)
    assert commit_errno(session, made.ino, [], append=[extent, 4 * CHUNK, nodes]) == 0


def test_committing_the_same_extents_again_changes_no_counter(volume: Volume, session: Session) -> None:
    """As a client does that never heard of its first commit and sends it under a new number."""
    made = session.create(1, b"f")
    chunks = {0: [session.segment(0, 100)], 1: [session.segment(0, 100)]}
    session.commit(made.ino, chunks)
    before = volume.status()
    session.commit(made.ino, chunks)
    assert volume.status() | {"seq": 0} == before | {"seq": 0}
    assert volume.chunks(made.ino) == chunks
    moved = replace(chunks[0][0], offset=200)
    session.commit(made.ino, {1: [moved]})
    session.commit(made.ino, {1: [session.segment(0, CHUNK)]})
    assert chunks[0][0].extent not in volume.condemned()


def test_what_is_condemned_is_never_shown_again(volume: Volume, session: Session) -> None:
    """It may be deleted at any moment."""
    made = session.create(1, b"f")
    old = session.segment(0, 100)
    session.commit(made.ino, {0: [old]})
    session.commit(made.ino, {0: [session.segment(0, 100)]})
    assert commit_errno(session, made.ino, [0, pack_segments([old])]) == errno.ESTALE
    assert old.extent not in extents(volume, made.ino)


def test_an_extent_belongs_to_one_file(session: Session) -> None:
    one, two = session.create(1, b"one"), session.create(1, b"two")
    segment = session.segment(0, 100)
    session.commit(one.ino, {0: [segment]})
    assert commit_errno(session, two.ino, [0, pack_segments([segment])]) == errno.EINVAL


def test_extents_of_other_sessions(volume: Volume, session: Session) -> None:
    """Of one that lives: not ours to commit. Of one that is over: ours, until its garbage was collected."""
    made, lost = session.create(1, b"f"), volume.session()
    segments = [pack_segments([lost.segment(0, 10)]) for _ in range(3)]
    assert commit_errno(session, made.ino, [0, segments[0]]) == errno.ESTALE
    volume.call("session_close", lost.number)
    assert commit_errno(session, made.ino, [0, segments[0]]) == 0
    collected = volume.call("collect", extents=[segments[0][1], segments[1][1]])
    assert collected == [segments[1][1]]
    assert commit_errno(session, made.ino, [1, segments[2]], 2 * CHUNK) == errno.ESTALE
    assert commit_errno(session, made.ino, [0, segments[0]]) == 0


def test_ids_beyond_exact_numbers_are_refused(session: Session) -> None:
    made = session.create(1, b"f")
    for extent in (extent_id(session.number, 2**60), extent_id(SessionNumber(2**63), 1)):
        assert commit_errno(session, made.ino, [0, [0, extent, 0, 5, pack_nodes(NODES)]]) == errno.ESTALE


def test_what_was_stored_in_vain_is_condemned(volume: Volume, session: Session) -> None:
    """Not what a file shows, and not what another session may still commit."""
    made, other = session.create(1, b"f"), volume.session()
    kept, covered, foreign = session.segment(0, 10), session.new_extent(), other.new_extent()
    nodes = pack_nodes(NODES)
    session.commit(made.ino, {0: [kept]}, unused=[covered, nodes, kept.extent, nodes, foreign, nodes])
    assert volume.condemned() == {covered}
    for unused in ([covered], [b"x", nodes], [covered, b""]):
        assert commit_errno(session, made.ino, [], 0, unused=unused) == errno.EINVAL


def test_few_replicas_are_counted(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    thin = session.segment(0, 10, NODES[:2])
    session.commit(made.ino, {0: [thin, session.segment(10, 10)]})
    assert volume.status()["under_replicated"] == 1
    session.commit(made.ino, {0: [session.segment(0, 10)]})
    assert volume.status()["under_replicated"] == 0


def test_damage_is_counted_while_a_file_shows_it(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    assert volume.call("damage", extent=segment.extent, node=1, why=b"sum") == [0]
    session.commit(made.ino, {0: [segment]})
    assert volume.call("damage", extent=segment.extent, node=1, why=b"sum") == [1]
    assert volume.call("damage", extent=segment.extent, node=1, why=b"sum") == [0]
    assert volume.call("damage", extent=segment.extent, node=2, why=b"sum") == [1]
    assert volume.errno("damage", extent=b"x", node=2, why=b"") == errno.EINVAL
    assert volume.status()["damaged"] == 2
    session.setattr(made.ino, size=0)
    assert volume.status()["damaged"] == 0


def fill(session: Session, ino: int, chunks: range) -> None:
    for at in range(chunks.start, chunks.stop, 256):
        flat: list[object] = []
        for index in range(at, min(at + 256, chunks.stop)):
            flat += [index, pack_segments([session.segment(0, 10)])]
        reply = session.reply("commit", ino=ino, chunks=flat, end=min(at + 256, chunks.stop) * CHUNK, synced=True)
        assert reply[0] == 0


def test_a_long_file_cut_to_nothing_goes_aside(volume: Volume, session: Session) -> None:
    """In one call, however long it is; its extents are let go of in steps, and new content does not mind."""
    made = session.create(1, b"f")
    fill(session, made.ino, range(6000))
    _, more = session.call("setattr", ino=made.ino, size=0)
    assert (more, volume.attributes(made.ino).stored_bytes) == (0, 0)
    new = session.segment(0, 10)
    session.commit(made.ino, {0: [new]})
    check_volume(volume)
    volume.reclaim()
    assert len(volume.condemned()) == 6000
    assert extents(volume, made.ino) == {new.extent}
    assert volume.status()["extents"] == 1


def test_a_long_file_without_a_name_is_let_go_of_in_steps(volume: Volume, session: Session) -> None:
    """Every call does a bounded piece, and none of them finds nothing to do before all is gone."""
    made = session.closed(1, b"f")
    fill(session, made.ino, range(6000))
    session.unlink(1, b"f")
    calls = 0
    while volume.status()["extents"] or volume.status()["orphans"]:
        reaped, freed = volume.call("reap", count=256)
        assert 0 < reaped + freed <= 2 * 256 + 1
        check_volume(volume) if calls % 8 == 0 else None
        calls += 1
    assert calls >= 6000 // 256
    assert len(volume.condemned()) == 6000


@pytest.mark.parametrize("listed", [65_536, 100])
def test_a_long_file_is_cut_in_steps(make_volume: Callable[..., Volume], listed: int) -> None:
    """From the end, 256 chunks a call, until the size is reached; also without listing its chunks."""
    volume = make_volume(LISTED_CHUNKS_MAX=listed)
    session = volume.session()
    made = session.create(1, b"f")
    fill(session, made.ino, range(600))
    calls, more, size = 0, 1, 600 * CHUNK
    while more:
        _, more = session.call("setattr", ino=made.ino, size=5 * CHUNK + 3)
        now = volume.attributes(made.ino).size
        assert now < size
        size, calls = now, calls + 1
        check_volume(volume)
    assert size == 5 * CHUNK + 3
    assert 3 <= calls <= 7
    assert sorted(volume.chunks(made.ino)) == list(range(6))
    assert len(volume.condemned()) == 594


@pytest.mark.parametrize("listed", [65_536, 100])
def test_a_sparse_file_is_cut_without_visiting_its_holes(make_volume: Callable[..., Volume], listed: int) -> None:
    volume = make_volume(LISTED_CHUNKS_MAX=listed)
    session = volume.session()
    made = session.create(1, b"f")
    fill(session, made.ino, range(120))
    session.commit(made.ino, {2**40: [session.segment(0, 10)]})
    calls, more = 0, 1
    while more:
        _, more = session.call("setattr", ino=made.ino, size=CHUNK)
        calls += 1
    assert calls <= 4
    assert sorted(volume.chunks(made.ino)) == [0]
    assert volume.attributes(made.ino).size == CHUNK


def test_a_chunk_of_very_many_extents_lets_go_in_the_background(volume: Volume, session: Session) -> None:
    """The commit that covers it is quick; what it left visible stays."""
    made = session.create(1, b"f")
    session.commit(made.ino, {0: [session.segment(2 * i, 1) for i in range(500)]})
    cover = session.segment(0, 900)
    session.commit(made.ino, {0: [cover]})
    assert volume.status()["extents"] == 501
    check_volume(volume)
    volume.reclaim()
    assert volume.status()["extents"] == 51
    assert len(volume.condemned()) == 450
    session.setattr(made.ino, size=0)
    session.unlink(1, b"f")
    session.call("release", ino=made.ino)
    volume.reclaim()
    assert len(volume.condemned()) == 501


def test_locate_gives_bounded_windows(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    fill(session, made.ino, range(300))
    version, size, rows = volume.call("locate", ino=made.ino, first=0, count=10**9)
    assert (version, size) == (volume.attributes(made.ino).data_version, 300 * CHUNK)
    assert rows[::2] == list(range(256))
    assert volume.call("locate", ino=made.ino, first=256, count=256)[2][::2] == list(range(256, 300))
    assert volume.call("locate", ino=made.ino, first=300, count=256)[2] == []


def test_deletions_wait_for_every_node(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    session.commit(made.ino, {0: [segment]})
    session.setattr(made.ino, size=0)
    assert volume.call("condemned", count=10) == [segment.extent, pack_nodes(NODES)]
    volume.call("deleted", gone=[], left=[segment.extent, pack_nodes(NODES[:1])], retry_ms=0)
    assert volume.call("condemned", count=10) == [segment.extent, pack_nodes(NODES[:1])]
    volume.call("deleted", gone=[], left=[segment.extent, pack_nodes(NODES[:1])], retry_ms=60_000)
    assert volume.call("condemned", count=10) == []
    assert volume.status()["deletions_pending"] == 1
    volume.call("deleted", gone=[segment.extent], left=[], retry_ms=0)
    assert volume.status()["deletions_pending"] == 0
    volume.call("deleted", gone=[], left=[segment.extent, pack_nodes(NODES[:1])], retry_ms=0)
    assert volume.status()["deletions_pending"] == 0


def test_what_is_known_of_an_extent(volume: Volume, session: Session) -> None:
    made, over = session.create(1, b"f"), volume.session()
    shown, covered, flying, left = session.segment(0, 9), session.segment(0, 9), session.new_extent(), over.new_extent()
    session.commit(made.ino, {0: [covered]})
    session.commit(made.ino, {0: [shown]})
    volume.call("session_close", over.number)
    asked = [shown.extent, covered.extent, flying, left, extent_id(SessionNumber(2**63 + 5), 2**64 - 1)]
    assert volume.call("known", extents=asked) == [1, 2, 3, 0, 0]


def test_storing_what_was_written_moves_no_time_but_to_that_of_the_write(session: Session) -> None:
    """stat(2) has shown the write's time all the while; a chmod after it keeps its own."""
    made = session.closed(1, b"f")
    written_ns = made.ctime_ns + 1
    stored = session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(written_ns))
    assert (stored.mtime_ns, stored.ctime_ns) == (written_ns, written_ns)
    changed = session.setattr(made.ino, mode=0o600)
    stored = session.commit(made.ino, {0: [session.segment(10, 10)]}, mtime=pack_time(written_ns + 1))
    assert (stored.mtime_ns, stored.ctime_ns) == (written_ns + 1, changed.ctime_ns)
    assert stored.age > changed.age


def test_a_write_ends_a_time_that_was_set_into_the_future(session: Session) -> None:
    made = session.closed(1, b"f")
    changed = session.setattr(made.ino, mtime=[4_000_000_000, 0])
    stored = session.commit(made.ino, {0: [session.segment(0, 10)]}, mtime=pack_time(changed.ctime_ns + 1))
    assert stored.mtime_ns == stored.ctime_ns == changed.ctime_ns + 1


def test_a_commit_that_is_asked_again_has_its_first_answer_though_its_extents_are_deleted(
    volume: Volume, session: Session
) -> None:
    """Its writer heard nothing while another wrote over it. Under a new number it would be laid over that: nobody
    remembers an extent that is gone, so the writer has to ask for what it did, see `Kept` in the mount."""
    made, other = session.create(1, b"f"), volume.session()
    segment = session.segment(0, 100)
    unheard = {"ino": made.ino, "chunks": [0, pack_segments([segment])], "end": 100, "synced": True}
    first = volume.reply("commit", session.number, 500, **unheard)
    newer = other.segment(0, 100)
    other.commit(made.ino, {0: [newer]})
    assert commit_errno(session, made.ino, unheard["chunks"], end=100) == errno.ESTALE
    volume.call("deleted", gone=[segment.extent], left=[], retry_ms=0)
    assert volume.reply("commit", session.number, 500, **unheard) == first
    assert volume.chunks(made.ino) == {0: [newer]}
