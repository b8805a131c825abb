"""Extents with too few, too many or misplaced replicas are found, and moved in one checked step."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from servers.naming.background.repair_plan import Held, held_of
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.naming_api import pack_nodes
from tests.support.volume import Session, Volume


def nodes(*numbers: int) -> tuple[NodeNumber, ...]:
    return tuple(NodeNumber(n) for n in numbers)


def walk(volume: Volume, settled: Sequence[int], leaving: Sequence[int] = (), count: int = 10) -> list[Held]:
    """A whole survey, big files too."""
    wanted: dict[str, Any] = {"settled": pack_nodes(nodes(*settled)), "leaving": pack_nodes(nodes(*leaving))}
    found: list[Any] = []
    cursor = b"0"
    while True:
        cursor, later, rows = volume.call("survey", cursor=cursor, count=count, **wanted)
        found += rows
        for ino in later:
            inner = b"0"
            while True:
                inner, rows = volume.call("survey_file", ino=ino, cursor=inner, count=count, **wanted)
                found += rows
                if inner == b"0":
                    break
        if cursor == b"0":
            return held_of(found)


def relocate(volume: Volume, *moves: tuple[ExtentId, tuple[int, ...], tuple[int, ...]], grace_ms: int = 0) -> list[int]:
    flat = [part for e, before, after in moves for part in (e, pack_nodes(nodes(*before)), pack_nodes(nodes(*after)))]
    results: list[int] = volume.call("relocate", moves=flat, grace_ms=grace_ms)
    return results


def fetching(volume: Volume, extent: ExtentId, node: int, *, within_ms: int) -> None:
    volume.call("fetching", replicas=[extent + pack_nodes(nodes(node))], within_ms=within_ms)


def dropped(volume: Volume) -> dict[tuple[ExtentId, int], bytes]:
    """And where good copies stay."""
    rows = volume.call("dropped", count=1000)
    return {(ExtentId(r[:16]), r[17]): good for r, good in zip(rows[::3], rows[2::3], strict=True)}


def test_a_survey_finds_what_is_not_as_it_should_be(volume: Volume, session: Session) -> None:
    """Copies on nodes that are away, on nodes that are being emptied, too few of them and too many."""
    places = {b"good": (1, 2, 3), b"away": (1, 2, 9), b"leaving": (1, 2, 4), b"few": (1, 2), b"many": (1, 2, 3, 5)}
    placed = {name: session.segment(0, 10, nodes(*where)) for name, where in places.items()}
    for name, segment in placed.items():
        session.commit(session.create(1, name).ino, {0: [segment]})
    found = {held.extent: held for held in walk(volume, (1, 2, 3, 4, 5), leaving=(4,))}
    assert found.keys() == {placed[name].extent for name in (b"away", b"leaving", b"few", b"many")}
    assert found[placed[b"away"].extent] == Held(placed[b"away"].extent, nodes(1, 2, 9), 10, 3)
    assert len(walk(volume, (9,))) == 5


def test_a_survey_sees_large_files_and_extents_that_many_chunks_show(make_volume: Any) -> None:
    volume = make_volume(CHUNKS_PER_CALL_MAX=8)
    session = volume.session()
    large = session.create(1, b"large")
    for index in range(20):
        session.commit(large.ino, {index: [session.segment(0, 100, nodes(1, 2))]})
    spread = session.create(1, b"spread")
    session.append(spread.ino, (session.new_extent(), 3 * 1024), nodes=nodes(1, 2))
    found = walk(volume, (1, 2, 3))
    assert len(found) == 21
    assert max(held.length for held in found) == 3 * 1024


def test_a_move_changes_every_chunk_that_shows_the_extent(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    extent = session.new_extent()
    session.append(made.ino, (extent, 2500), nodes=nodes(1, 2))
    assert volume.status()["under_replicated"] == 1
    assert relocate(volume, (extent, (1, 2), (1, 2, 4))) == [1]
    assert {s.nodes for segments in volume.chunks(made.ino).values() for s in segments} == {nodes(1, 2, 4)}
    assert volume.status()["under_replicated"] == 0
    assert relocate(volume, (extent, (1, 2, 4), (2, 4))) == [1]
    assert volume.status()["under_replicated"] == 1
    assert dropped(volume) == {(extent, 1): pack_nodes(nodes(2, 4))}


def test_a_node_that_a_copy_still_came_to_is_not_taken_for_empty(volume: Volume, session: Session) -> None:
    """The copy was ordered before the node was to be emptied. One that keeps what it has is not begun anew."""
    segment = session.segment(0, 10)
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    volume.client.hset(f"{volume.key}:draining", mapping={"3": 1, "4": 1})
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [1]
    since_ms = volume.client.hgetall(f"{volume.key}:draining")
    assert since_ms[b"3"] == b"1"
    assert int(since_ms[b"4"]) > 1


def test_a_move_that_was_decided_from_an_older_state_changes_nothing(volume: Volume, session: Session) -> None:
    """What was copied for it is deleted, unless it is there by now."""
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    session.commit(made.ino, {0: [segment]})
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [1]
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 5)), (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [
        0,
        0,
    ]
    assert relocate(volume, (segment.extent, (1, 2, 3), (2, 3))) == [0]
    assert volume.chunks(made.ino)[0][0].nodes == nodes(1, 2, 3, 4)
    assert dropped(volume) == {(segment.extent, 5): pack_nodes(nodes(1, 2, 3, 4))}


def test_a_copy_of_what_was_deleted_meanwhile_is_deleted(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    session.commit(made.ino, {0: [segment]})
    session.setattr(made.ino, size=0)
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [2]
    assert dropped(volume) == {(segment.extent, 4): b""}
    volume.call("dropped_done", gone=[segment.extent + pack_nodes(nodes(4))], left=[], retry_ms=0)
    assert dropped(volume) == {}


def test_what_is_being_deleted_on_a_node_does_not_come_back_there(volume: Volume, session: Session) -> None:
    """Until it is certainly gone: the order to delete it may be on its way."""
    made = session.create(1, b"f")
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    session.commit(made.ino, {0: [segment]})
    relocate(volume, (segment.extent, (1, 2, 3, 4), (1, 2, 3)))
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [0]
    replica = segment.extent + pack_nodes(nodes(4))
    volume.call("dropped_done", gone=[], left=[replica], retry_ms=60_000)
    assert dropped(volume) == {}
    assert volume.status()["dropped"] == 1
    volume.call("dropped_done", gone=[replica], left=[], retry_ms=0)
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [1]


def test_a_copy_is_kept_that_a_file_says_to_be_there_after_all(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    session.commit(made.ino, {0: [segment]})
    volume.client.zadd(f"{volume.key}:dropped", {segment.extent + pack_nodes(nodes(4)): 1})
    assert dropped(volume) == {}
    assert volume.status()["dropped"] == 0


def test_of_what_is_to_be_deleted_it_is_told_where_good_copies_stay(volume: Volume, session: Session) -> None:
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    made = session.create(1, b"f")
    session.commit(made.ino, {0: [segment]})
    relocate(volume, (segment.extent, (1, 2, 3, 4), (1, 2, 3)))
    row = segment.extent + pack_nodes(nodes(4))
    assert volume.call("dropped", count=1) == [row, 3, pack_nodes(nodes(1, 2, 3))]
    volume.call("damage", extent=segment.extent, node=2, why=b"seen")
    assert volume.call("dropped", count=1) == [row, 3, pack_nodes(nodes(1, 3))]
    session.setattr(made.ino, size=0)
    assert volume.call("dropped", count=1) == [row, 0, b""]


def test_what_was_to_be_deleted_may_be_copied_to_again_once_it_is_not(volume: Volume, session: Session) -> None:
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    assert relocate(volume, (segment.extent, (1, 2, 3, 4), (1, 2, 3))) == [1]
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [0]
    fetching(volume, segment.extent, 4, within_ms=60_000)
    assert dropped(volume) == {}
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [1]
    fetching(volume, segment.extent, 4, within_ms=0)
    assert dropped(volume) == {}, "the map names it"


def test_a_copy_that_was_stored_after_its_writer_had_given_the_node_up_is_dropped(
    volume: Volume, session: Session
) -> None:
    """Not what the map names, what is being copied there, or what no file shows; nor before its grace."""
    segment, unknown = session.segment(0, 10, nodes(1, 2, 3)), session.new_extent()
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    fetching(volume, segment.extent, 5, within_ms=60_000)

    def strays(node: int) -> list[Held]:
        return held_of(volume.call("strays", node=node, extents=[segment.extent, unknown])[0])

    def drop(node: int, grace_ms: int = 60_000) -> None:
        volume.call("drop_strays", node=node, extents=[segment.extent, unknown], grace_ms=grace_ms)

    assert strays(4) == [Held(segment.extent, nodes(1, 2, 3), 10, 3)]
    assert strays(1) == strays(5) == []
    for node in (1, 4, 5):
        drop(node)
    assert volume.status()["dropped"] == 1
    assert dropped(volume) == {}
    assert strays(4) == []
    volume.client.zadd(f"{volume.key}:dropped", {segment.extent + pack_nodes(nodes(4)): 1})
    drop(4)
    assert dropped(volume) == {(segment.extent, 4): pack_nodes(nodes(1, 2, 3))}
    volume.client.hset(f"{volume.key}:volume", "held", "a test")
    assert strays(6) == []
    drop(6, grace_ms=0)
    assert volume.status()["dropped"] == 1


def test_a_stray_stays_while_a_copy_that_the_map_names_is_damaged_or_in_doubt(volume: Volume, session: Session) -> None:
    """It may be the only good one."""
    segment = session.segment(0, 10, nodes(1, 2, 3))
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    stray = {"node": 4, "extents": [segment.extent]}
    volume.client.hset(f"{volume.key}:doubted", "2", "1")
    assert volume.call("strays", **stray) == [[]]
    volume.client.hdel(f"{volume.key}:doubted", "2")
    assert len(volume.call("strays", **stray)[0]) == 4
    volume.call("damage", extent=segment.extent, node=3, why=b"a test")
    assert volume.call("strays", **stray) == [[]]
    volume.call("drop_strays", **stray, grace_ms=0)
    assert dropped(volume) == {}


def test_a_stray_stays_while_the_map_names_fewer_copies_than_are_asked_for(volume: Volume, session: Session) -> None:
    """No other node may have room for one."""
    segment = session.segment(0, 10, nodes(1, 2))
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    stray = {"node": 4, "extents": [segment.extent]}
    assert volume.call("strays", **stray) == [[]]
    volume.call("drop_strays", **stray, grace_ms=0)
    assert dropped(volume) == {}
    assert relocate(volume, (segment.extent, (1, 2), (1, 2, 3))) == [1]
    assert len(volume.call("strays", **stray)[0]) == 4


def test_what_was_copied_and_came_into_no_map_is_deleted_and_then_does_not_come_into_one(
    volume: Volume, session: Session
) -> None:
    """Whoever had it copied may have died, or not have heard that it was."""
    segment = session.segment(0, 10, nodes(1, 2, 3))
    session.commit(session.create(1, b"f").ino, {0: [segment]})
    fetching(volume, segment.extent, 4, within_ms=60_000)
    assert dropped(volume) == {}
    fetching(volume, segment.extent, 4, within_ms=0)
    assert dropped(volume) == {(segment.extent, 4): pack_nodes(nodes(1, 2, 3))}
    assert relocate(volume, (segment.extent, (1, 2, 3), (1, 2, 3, 4))) == [0]


def test_nothing_moves_and_nothing_is_dropped_in_safe_mode(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    session.commit(made.ino, {0: [segment]})
    relocate(volume, (segment.extent, (1, 2, 3, 4), (1, 2, 3)))
    volume.client.hset(f"{volume.key}:volume", "safe", "a test")
    move = [segment.extent, pack_nodes(nodes(1, 2, 3)), pack_nodes(nodes(2, 3))]
    assert volume.errno("relocate", moves=move, grace_ms=0) == errno.EROFS
    assert dropped(volume) == {}
    volume.client.hdel(f"{volume.key}:volume", "safe")


@pytest.mark.parametrize(
    "moves", [[b"short", b"\0\1", b"\0\1"], [b"x" * 16, b"\0\1", b""], [b"x" * 16, b"\0\1"], [1, 2, 3]]
)
def test_moves_that_make_no_sense_are_refused(volume: Volume, moves: list[Any]) -> None:
    assert volume.errno("relocate", moves=moves, grace_ms=0) == errno.EINVAL


def test_thin_and_damaged_extents_are_listed_with_where_they_are(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    thin, good = session.segment(0, 10, nodes(1, 2)), session.segment(10, 20)
    session.commit(made.ino, {0: [thin, good]})
    cursor, rows = volume.call("thin", cursor=b"0", count=100)
    assert (cursor, held_of(rows)) == (b"0", [Held(thin.extent, nodes(1, 2), 10, 3)])
    assert volume.call("damage", extent=good.extent, node=2, why=b"sum") == [1]
    assert volume.call("damage", extent=good.extent, node=7, why=b"it is not said to be there") == [0]
    cursor, replicas, rows = volume.call("wounded", cursor=b"0", count=100)
    assert (cursor, replicas) == (b"0", [good.extent + pack_nodes(nodes(2))])
    assert held_of(rows) == [Held(good.extent, nodes(1, 2, 3), 20, 3)]
    volume.call("mended", replicas=replicas)
    assert volume.status()["damaged"] == 0


def test_what_leaves_a_node_is_not_damaged_there_any_more(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segment = session.segment(0, 10, nodes(1, 2, 3, 4))
    session.commit(made.ino, {0: [segment]})
    volume.call("damage", extent=segment.extent, node=4, why=b"sum")
    relocate(volume, (segment.extent, (1, 2, 3, 4), (1, 2, 3)))
    assert volume.status()["damaged"] == 0


def ask(session: Session, ino: int, name: bytes, value: bytes) -> int:
    return session.errno("setxattr", ino=ino, name=name, value=value, flags=0)


def test_copies_and_chunk_size_are_asked_for_by_attribute_and_inherited(volume: Volume, session: Session) -> None:
    """They are always there, are not listed, and do not go away."""
    directory = session.mkdir(1, b"d").ino
    assert ask(session, directory, b"user.dcs.replicas", b"2") == 0
    assert ask(session, directory, b"user.dcs.chunk_size", b"4096") == 0
    below = session.mkdir(directory, b"e").ino
    made = session.create(below, b"f")
    assert (made.replicas, made.chunk_size) == (2, 4096)
    assert volume.call("getxattr", ino=made.ino, name=b"user.dcs.replicas") == [b"2"]
    assert volume.call("getxattr", ino=directory, name=b"user.dcs.chunk_size") == [b"4096"]
    assert volume.call("listxattr", ino=directory) == [[]]
    assert session.errno("removexattr", ino=directory, name=b"user.dcs.replicas") == errno.EPERM
    assert ask(session, made.ino, b"user.dcs.chunk_size", b"4096") == errno.EINVAL
    for value in (b"0", b"17", b"x", b"", b"-1", b"2.0", b"99999999999999999999"):
        assert ask(session, directory, b"user.dcs.replicas", value) == errno.EINVAL
    for value in (b"1000", b"512", b"134217728"):
        assert ask(session, directory, b"user.dcs.chunk_size", value) == errno.EINVAL
    link = session.symlink(1, b"l", b"d").ino
    assert ask(session, link, b"user.dcs.replicas", b"2") == errno.EPERM


def recount(volume: Volume) -> list[Held]:
    found: list[Any] = []
    rows = volume.call("recount", count=100)
    for ino, change in zip(rows[::2], rows[1::2], strict=True):
        cursor = b"0"
        while True:
            cursor, more = volume.call("recount_file", ino=ino, cursor=cursor, count=10, change=change)
            found += more
            if cursor == b"0":
                break
    return held_of(found)


def test_a_file_asked_for_in_other_numbers_is_recounted(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    segments = {index: [session.segment(0, 1024)] for index in range(5)}
    session.commit(made.ino, segments)
    assert ask(session, made.ino, b"user.dcs.replicas", b"4") == 0
    assert volume.status()["recounting"] == 1
    assert {held.target for held in recount(volume)} == {4}
    assert (volume.status()["recounting"], volume.status()["under_replicated"]) == (0, 5)
    ask(session, made.ino, b"user.dcs.replicas", b"2")
    assert len(recount(volume)) == 5
    assert volume.status()["under_replicated"] == 0
    ask(session, made.ino, b"user.dcs.replicas", b"3")
    session.unlink(1, b"f")
    session.call("release", ino=made.ino)
    volume.reclaim()
    assert volume.status()["recounting"] == 0


def test_a_file_that_is_published_has_what_its_directory_asks_for(volume: Volume, session: Session) -> None:
    directory = session.mkdir(1, b"d").ino
    ask(session, directory, b"user.dcs.replicas", b"2")
    ino, _ = session.call("stub", mode=0o644, uid=0, gid=0)
    session.commit(ino, {0: [session.segment(0, 10)]})
    session.call("publish", ino=ino, parent=directory, name=b"f", size=10, overwrite=False)
    assert volume.attributes(ino).replicas == 2
    assert [held.target for held in recount(volume)] == [2]
