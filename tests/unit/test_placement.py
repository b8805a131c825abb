"""Replicas go to distinct live nodes with room, on distinct racks while there are some, by free space."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeView, choose_nodes, cluster_space


def node(number: int, *, free: int = 1000, state: str = "alive", rack: str = "", space: str | None = None) -> NodeView:
    where = space if space is not None else f"disk {number}"
    return NodeView(NodeNumber(number), f"{number:032x}", f"n{number}:1", state, free, 10, 2000, where, rack)  # type: ignore[arg-type]


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeView]:
    return [
        node(
            number + 1,
            free=draw(st.integers(0, 10**15)),
            state=draw(st.sampled_from(["alive", "alive", "suspect", "dead"])),
            rack=draw(st.sampled_from(["", "a", "b", "c"])),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@given(clusters(), st.integers(0, 4), st.integers(0, 10**6), st.integers(), st.integers(1, 8))
def test_the_chosen_are_distinct_and_fit(nodes: list[NodeView], count: int, length: int, seed: int, local: int) -> None:
    fit = [n for n in nodes if n.state == "alive" and n.free_bytes > length and n.number != 2]
    chance = random.Random(seed)
    if len(fit) < count:
        with pytest.raises(TooFewNodes, match=f"Fewer than {count} storage servers available"):
            choose_nodes(nodes, count, length, chance, avoid={NodeNumber(2)}, local=NodeNumber(local))
        return
    chosen = choose_nodes(nodes, count, length, chance, avoid={NodeNumber(2)}, local=NodeNumber(local))
    assert len({n.number for n in chosen}) == count
    assert all(n in fit for n in chosen)
    if count and local in {n.number for n in fit}:
        assert chosen[0].number == local
    racks = Counter(n.rack for n in chosen if n.rack)
    if max(racks.values(), default=0) > 1:
        unused = {n.rack for n in fit} - {n.rack for n in chosen} - {""}
        assert not unused, "a rack was used twice while another had none"


def test_more_free_space_takes_more() -> None:
    """A node with four times the room gets about four times the first choices."""
    chance = random.Random(3)
    nodes = [node(1, free=4000), node(2, free=1000)]
    first = Counter(choose_nodes(nodes, 1, 0, chance)[0].number for _ in range(5000))
    assert 3.5 < first[NodeNumber(1)] / first[NodeNumber(2)] < 4.5


def test_space_of_one_disk_counts_once() -> None:
    """Nodes that share a file system share its free bytes; the dead count nothing."""
    nodes = [node(1, space="x"), node(2, space="x"), node(3, space="y"), node(4, state="dead")]
    space = cluster_space(nodes)
    assert (space.free_bytes, space.used_bytes, space.total_bytes) == (2000, 30, 2030)
