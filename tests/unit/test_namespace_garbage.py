"""What metadata says of extents that lie on nodes, and when it lets none be deleted."""

from __future__ import annotations

import errno

from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.naming_api import pack_nodes
from servers.protocol.snapshots import MANIFEST, TAIL, part_id
from tests.support.volume import Session, Volume

GARBAGE, NEEDED, CONDEMNED, IN_FLIGHT, SURPLUS = 0, 1, 2, 3, 4
NOBODYS = extent_id(SessionNumber(999), 1)


def sighted(volume: Volume, *extents: ExtentId) -> dict[ExtentId, int]:
    rows = volume.call("sight", extents=list(extents))
    return dict(zip(rows[::2], rows[1::2], strict=True))


def test_why_an_extent_would_stay_or_go(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    needed, old, flying = session.segment(0, 10), session.segment(0, 10), session.new_extent()
    session.commit(made.ino, {0: [old]})
    session.commit(made.ino, {0: [needed]})
    rows = volume.call("why", extents=[needed.extent, old.extent, flying, NOBODYS])
    assert rows[::3] == [NEEDED, CONDEMNED, IN_FLIGHT, GARBAGE]
    assert rows[1::3] == [session.number] * 3 + [999]
    assert rows[2] == rows[8] == rows[11] == 0
    assert rows[5] > 0


def test_a_surplus_copy_goes_though_the_extent_is_needed(volume: Volume, session: Session) -> None:
    """Of the node that lost it; asked for another node, or for none, the extent is needed."""
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    session.commit(made.ino, {0: [segment]})
    first, *rest = segment.nodes
    volume.call("relocate", moves=[segment.extent, pack_nodes(segment.nodes), pack_nodes(rest)], grace_ms=60_000)
    verdict, _, due_ms = volume.call("why", extents=[segment.extent], node=first)
    assert verdict == SURPLUS
    assert due_ms > 60_000
    for other in ({"node": rest[0]}, {}):
        assert volume.call("why", extents=[segment.extent], **other)[::2] == [NEEDED, 0]


def test_it_is_kept_when_the_garbage_of_a_node_was_found_to_be_no_more_than_usual(volume: Volume) -> None:
    assert volume.call("judged_ms", node=1) == [0]
    volume.call("judged", node=1, ms=1234)
    assert (volume.call("judged_ms", node=1), volume.call("judged_ms", node=2)) == ([1234], [0])


def test_garbage_is_known_since_it_was_first_seen(volume: Volume, session: Session) -> None:
    """And what is in flight, or shown, is none."""
    flying = session.new_extent()
    first = sighted(volume, NOBODYS, flying)
    assert first.keys() == {NOBODYS}
    assert sighted(volume, NOBODYS) == first
    assert volume.status()["garbage"] == 1
    volume.call("collected", gone=[NOBODYS])
    assert volume.status()["garbage"] == 0


def test_while_deletions_are_held_nothing_may_go(volume: Volume, session: Session) -> None:
    made = session.create(1, b"f")
    session.commit(made.ino, {0: [session.segment(0, 10)]})
    session.commit(made.ino, {0: [session.segment(0, 10)]})
    assert len(volume.condemned()) == 1
    volume.call("hold", why=b"looking")
    assert volume.condemned() == set()
    assert sighted(volume, NOBODYS) == {}
    assert volume.call("collect", extents=[NOBODYS]) == []
    assert volume.errno("order") == errno.EROFS
    assert volume.errno("order", empty=False) == errno.EROFS
    assert volume.call("order", empty=True)[0] == 1, "it only ends earlier ones"
    assert volume.call("deletions")[1] == b"looking"
    volume.call("hold", why=b"")
    assert len(volume.condemned()) == 1
    assert volume.call("collect", extents=[NOBODYS]) == [NOBODYS]


def test_in_safe_mode_no_order_is_given(volume: Volume) -> None:
    volume.call("volume_open", **{**volume.settings, "seq": 10**6})
    assert volume.errno("order") == errno.EROFS
    assert volume.errno("order", empty=True) == errno.EROFS
    assert sighted(volume, NOBODYS) == {}


def test_orders_are_numbered_upwards(volume: Volume) -> None:
    numbers = [volume.call("order")[0] for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_the_brake_is_noted_and_let_off(volume: Volume) -> None:
    volume.call("brake", why=b"too much")
    now, held, why, off = volume.call("deletions")
    assert (held, why, off) == (b"", b"too much", 0)
    volume.call("brake", why=b"", off_ms=5000)
    now, _, why, off = volume.call("deletions")
    assert why == b""
    assert off > now


def test_the_parts_of_a_snapshot_are_needed_while_it_is_noted(volume: Volume) -> None:
    """Also after a recovery, when the change counter goes on by the clock: 65,536 times that is more than fits a
    double."""
    volume.call("recovered", session=1, why="a test")
    (number,) = volume.call("snapshot")
    assert number > 2**40
    parts = [part_id(number, part) for part in (0, TAIL, MANIFEST)]
    other = part_id(number + 1, 0)
    assert volume.call("known", extents=[*parts, other]) == [NEEDED] * 3 + [GARBAGE]
    volume.call("snapshot_over", seq=number, keep=0)
    assert volume.call("known", extents=parts) == [GARBAGE] * 3
    volume.call("hold", why="")
