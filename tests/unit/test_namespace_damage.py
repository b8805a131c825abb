"""What the metadata knows of damaged replicas, and when it doubts a node."""

from __future__ import annotations

from servers.naming.node_facts import read_facts
from servers.protocol.ids import NodeNumber
from servers.protocol.naming_api import pack_segments
from tests.support.volume import NODES, Session, Volume

NODE = NodeNumber(1)
FACTS = b'{"start": "s", "store_ms": 7}'


def holds(volume: Volume, start: bytes, held: bytes, lost: int = 0, *, ended: bool = False) -> bool:
    (in_doubt,) = volume.call("holds", node=1, start=start, held=held, lost=lost, ended=ended, facts=FACTS)
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
    assert not holds(volume, b"one", b"4:cd", ended=True), "it took one more"
    assert not holds(volume, b"two", b"4:cd"), "started again with what it had"
    assert holds(volume, b"two", b"3:ab", lost=1)
    ((number, facts, since),) = [volume.call("facts")]
    assert read_facts([number, facts, since])[NODE].in_doubt
    assert read_facts([number, facts, since])[NODE].facts.store_ms == 7
    volume.call("believed", node=1, since=since - 1)
    assert holds(volume, b"two", b"3:ab", lost=1), "what was asked before that does not count"
    volume.call("believed", node=1, since=since)
    assert not holds(volume, b"two", b"3:ab", lost=1, ended=True)
    assert holds(volume, b"three", b"2:ff")


def test_a_node_that_ended_without_a_word_is_doubted(volume: Volume, session: Session) -> None:
    """It may have taken more than it told of. And again when a commit names it for what it took before that."""
    made = session.create(1, b"f")

    def is_doubted_after_commit(begun: int, synced: bool = False, node: int = 1) -> bool:
        segment = session.segment(0, 10, [NodeNumber(node), NodeNumber(2)])
        flat = [0, pack_segments([segment])]
        session.call("commit", ino=made.ino, chunks=flat, end=10, synced=synced, begun=begun)
        return bool(volume.call("doubted"))

    holds(volume, b"one", b"4:cd")
    assert not is_doubted_after_commit(0), "it has never been away"
    assert holds(volume, b"two", b"4:cd")
    _, since = volume.call("doubted")
    volume.call("believed", node=1, since=int(since))
    assert not is_doubted_after_commit(int(since)), "stored since"
    assert not is_doubted_after_commit(0, synced=True)
    assert not is_doubted_after_commit(0, node=3)
    assert is_doubted_after_commit(int(since) - 1)


def test_facts_of_another_version_are_as_if_not_said() -> None:
    assert read_facts([b"1", b'{"disks": "many"}', 0])[NODE].facts.disks == []
