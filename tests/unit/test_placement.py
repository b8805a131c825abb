"""Replicas go to distinct live nodes with room, on distinct racks while there are some, by free space."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import (
    SLOW_MS_MIN,
    SLOW_SHARE_MIN,
    NodeState,
    NodeView,
    choose_nodes,
    cluster_space,
    share,
)


def node(
    number: int, *, free: int = 1000, state: NodeState = "alive", rack: str = "", space: str = "", store_ms: int = 0
) -> NodeView:
    where = space or f"disk {number}"
    return NodeView(
        NodeNumber(number), f"{number:032x}", f"n{number}:1", state, free, 10, 2000, where, rack, store_ms=store_ms
    )


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeView]:
    return [
        node(
            number + 1,
            free=draw(st.integers(0, 10**15)),
            state=draw(st.sampled_from(["alive", "alive", "suspect", "dead"])),
            rack=draw(st.sampled_from(["", "a", "b", "c"])),
            store_ms=draw(st.integers(0, 10**7)),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@given(clusters(), st.integers(0, 4), st.integers(0, 10**6), st.integers(), st.integers(1, 8))
def test_the_chosen_are_distinct_and_fit(nodes: list[NodeView], count: int, length: int, seed: int, local: int) -> None:
    fit = [n for n in nodes if n.state == "alive" and n.free_bytes > length and n.number != 2]
    chance = random.Random(seed)
    if len(fit) < count:
        with pytest.raises(TooFewNodes, match=f"Fewer than {count} storage servers available") as caught:
            choose_nodes(nodes, count, length, chance, avoid={NodeNumber(2)}, local=NodeNumber(local))
        alive = sum(n.state == "alive" and n.number != 2 for n in nodes)
        assert ("have no room" in str(caught.value)) == (alive >= count)
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


@given(clusters(), st.lists(st.sampled_from(["", "a", "b"]), max_size=3), st.integers(), st.integers(1, 8))
def test_a_copy_that_is_lacking_goes_to_a_rack_that_has_none(
    nodes: list[NodeView], racks: list[str], seed: int, local: int
) -> None:
    """Also where the client's own machine is on one that has."""
    fit = [n for n in nodes if n.state == "alive" and n.free_bytes > 0]
    if fit:
        beside = [node(100 + number, rack=rack) for number, rack in enumerate(racks)]
        (chosen,) = choose_nodes(nodes, 1, 0, random.Random(seed), local=NodeNumber(local), beside=beside)
        elsewhere = [n for n in fit if not n.rack or n.rack not in racks]
        assert chosen in (elsewhere or fit)
        assert chosen.number == local or local not in {n.number for n in elsewhere}


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


def test_a_slow_node_gets_clearly_fewer_and_is_never_left_out() -> None:
    """It is neither dead nor to be worked to death; and only what it takes shows that it is quick again."""
    chance = random.Random(3)
    slow = node(1, store_ms=900)
    nodes = [slow, *(node(number, store_ms=3) for number in (2, 3, 4))]
    on_node = Counter(n.number for _ in range(5000) for n in choose_nodes(nodes, 3, 0, chance))
    assert 0.1 < on_node[slow.number] / 5000 < 0.3
    assert all(on_node[n.number] / 5000 > 0.85 for n in nodes[1:])


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 100))
def test_the_share_of_a_node_falls_with_what_its_stores_take(store_ms: float, usual_ms: float, more: float) -> None:
    """Within bounds; and who is as quick as most, or quick enough for anybody, has all of it."""
    assert SLOW_SHARE_MIN <= share(store_ms * more, usual_ms) <= share(store_ms, usual_ms) <= 1
    assert share(usual_ms, usual_ms) == share(SLOW_MS_MIN, usual_ms) == 1


def test_three_copies_on_three_nodes_are_on_all_of_them_however_slow_one_is() -> None:
    nodes = [node(1, store_ms=10**6), node(2), node(3)]
    assert {n.number for n in choose_nodes(nodes, 3, 0, random.Random(1))} == {1, 2, 3}
