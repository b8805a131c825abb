"""When the death of a node makes another snapshot of the metadata due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servers.naming.background.snapshots import are_too_few
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeState, NodeView

STATES: dict[str, tuple[NodeState, bool]] = {
    "alive": ("alive", False), "suspect": ("suspect", False), "dead": ("dead", False), "draining": ("alive", True),
}  # fmt: skip


def nodes(*states: str) -> list[NodeView]:
    return [
        NodeView(NodeNumber(i), str(i), f"h:{i}", STATES[state][0], 9, 0, 9, "", draining=STATES[state][1])
        for i, state in enumerate(states)
    ]


def held_by(*numbers: int) -> frozenset[NodeNumber]:
    return frozenset(map(NodeNumber, numbers))


def test_a_dead_holder_counts_where_another_node_could_take_its_place() -> None:
    assert are_too_few([held_by(0, 1, 2)], nodes("dead", "alive", "alive", "alive"))
    assert are_too_few([held_by(1, 2, 3), held_by(0, 1, 2)], nodes("dead", "alive", "alive", "alive"))
    assert not are_too_few([held_by(1, 2, 3)], nodes("dead", "alive", "alive", "alive"))
    assert not are_too_few([held_by(0, 1, 2)], nodes("dead", "alive", "alive"))
    assert not are_too_few([held_by(0, 1, 2)], nodes("suspect", "alive", "alive", "alive"))
    assert are_too_few([held_by(0, 1, 2)], nodes("draining", "alive", "alive", "alive")), "it may soon be switched off"
    assert not are_too_few([held_by(0, 1, 2)], nodes("draining", "alive", "alive"))
    assert are_too_few([held_by(0, 1, 7)], nodes("alive", "alive", "alive")), "node 7 is not known any more"


@given(st.lists(st.sampled_from(list(STATES)), max_size=6), st.integers(1, 3))
def test_a_snapshot_that_was_just_taken_is_never_followed_by_another_for_this(states: list[str], copies: int) -> None:
    """Wherever `takers` were enough for it: so it ends."""
    known = nodes(*states)
    taken = held_by(*[node.number for node in known if node.takes_copies][:copies])
    assert not are_too_few([taken], known)
