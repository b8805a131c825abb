"""What the metadata knows of damaged replicas, and when it doubts a node."""

from __future__ import annotations

from servers.naming.node_facts import read_facts
from servers.protocol.ids import NodeNumber
from tests.support.volume import NODES, Session, Volume

NODE = NodeNumber(1)
FACTS = b'{"start": "s", "store_ms": 7}'


def holds(volume: Volume, start: bytes, held: bytes, lost: int = 0) -> bool:
    (in_doubt,) = volume.call("holds", node=1, start=start, held=held, lost=lost, facts=FACTS)
    return bool(in_doubt)


def test_only_a_replica_that_a_map_names_can_be_damaged(volume: Volume, session: Session) -> None:
    """What was moved elsewhere meanwhile is nobody's damage."""
    made = session.create(1, b"f")
    segment = session.segment(0, 10)
    session.commit(made.ino, {0: [segment]})
    assert volume.call("damage", extent=segment.extent, node=9, why=b"late") == [0]
    assert volume.call("damage", extent=segment.extent, node=2, why=b"sum") == [1]
    volume.call("sound", extent=segment.extent, node=2)
    assert volume.status()["damaged"] == 0


def test_a_damaged_replica_may_go_when_nobody_can_need_it(volume: Volume, session: Session) -> None:
    """Not while the map names a damaged one or too few, nor while its session may still commit it."""
    made = session.create(1, b"f")
    shown, thin, flying = session.segment(0, 10), session.segment(10, 10, NODES[:2]), session.segment(0, 10)
    asked = [shown.extent, thin.extent, flying.extent]
    session.commit(made.ino, {0: [shown, thin]})
    assert volume.call("healed", extents=asked) == [shown.extent]
    volume.call("damage", extent=shown.extent, node=1, why=b"sum")
    assert volume.call("healed", extents=asked) == []
    session.setattr(made.ino, size=0)
    assert volume.call("healed", extents=asked) == [shown.extent, thin.extent]
    volume.call("session_close", session.number)
    assert volume.call("healed", extents=asked) == asked


def test_a_node_is_doubted_when_it_lost_something(volume: Volume) -> None:
    """Or when it came back with something else than it had; not for what it took and deleted by order."""
    assert not holds(volume, b"one", b"3:ab")
    assert not holds(volume, b"one", b"4:cd"), "it took one more"
    assert not holds(volume, b"two", b"4:cd"), "started again with what it had"
    assert holds(volume, b"two", b"3:ab", lost=1)
    ((number, facts, since),) = [volume.call("facts")]
    assert read_facts([number, facts, since])[NODE].in_doubt
    assert read_facts([number, facts, since])[NODE].facts.store_ms == 7
    volume.call("believed", node=1, since=since - 1)
    assert holds(volume, b"two", b"3:ab", lost=1), "what was asked before that does not count"
    volume.call("believed", node=1, since=since)
    assert not holds(volume, b"two", b"3:ab", lost=1)
    assert holds(volume, b"three", b"2:ff")


def test_facts_of_another_version_are_as_if_not_said() -> None:
    assert read_facts([b"1", b'{"disks": "many"}', 0])[NODE].facts.disks == []
