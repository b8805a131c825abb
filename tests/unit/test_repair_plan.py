"""What repair decides, for any cluster: it heals what can be healed, and never makes anything worse."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.naming.background.rebalance_plan import rebalance_step, surplus_bytes
from servers.naming.background.repair_plan import (
    PAUSE_SECONDS,
    Copy,
    Drop,
    Held,
    Load,
    Outlook,
    good_copies,
    lacking,
    look_out,
    next_step,
    repair_plan,
    vanished_together,
)
from servers.naming.membership import Member, Patience
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.placement import NodeView

EXTENT = ExtentId(bytes(16))
WAIT_SECONDS = 60.0
GIB = 1 << 30


def member(number: int, state: str = "alive", silent: float = 1.0, **fields: Any) -> Member:
    view = NodeView(NodeNumber(number), f"u{number}", f"h:{number}", state, GIB, GIB, 2 * GIB, f"d{number}")  # type: ignore[arg-type]
    return Member(replace(view, **fields), silent)


def seen(members: list[Member], observed: float = 1e6) -> Outlook:
    return look_out(members, Patience(), WAIT_SECONDS, observed)


def held(*numbers: int, target: int = 3, length: int = 100) -> Held:
    return Held(EXTENT, tuple(NodeNumber(n) for n in numbers), length, target)


def step(held: Held, outlook: Outlook, damaged: set[int] | None = None) -> Copy | Drop | None:
    return next_step(held, outlook, {(EXTENT, NodeNumber(n)) for n in damaged or ()}, random.Random(1))


@st.composite
def clusters(draw: st.DrawFn) -> list[Member]:
    made = []
    for number in range(1, draw(st.integers(1, 8)) + 1):
        state = draw(st.sampled_from(["alive", "alive", "alive", "suspect", "dead"]))
        silent = {"alive": 1.0, "suspect": 10.0}.get(state) or draw(st.sampled_from([31.0, 80.0, 100.0, 5000.0]))
        fields = {
            "rack": draw(st.sampled_from(["", "a", "b"])),
            "draining": draw(st.sampled_from([False, False, True])),
            "free_bytes": draw(st.sampled_from([0, 50, GIB])),
            "used_bytes": draw(st.integers(0, 2 * GIB)),
        }
        made.append(member(number, state, silent, **fields))
    return made


extents = st.builds(
    lambda numbers, target, length: held(*numbers, target=target, length=length),
    st.lists(st.integers(1, 9), min_size=1, max_size=6, unique=True), st.integers(1, 4), st.integers(1, 200),
)  # fmt: skip
wounds = st.sets(st.integers(1, 9), max_size=4)


@given(clusters(), extents, wounds)
def test_a_step_is_possible_and_never_takes_what_is_needed(
    members: list[Member], held: Held, damaged: set[int]
) -> None:
    outlook = seen(members)
    bad = {(EXTENT, NodeNumber(n)) for n in damaged}
    good = good_copies(held, outlook, bad)
    found = step(held, outlook, damaged)
    if isinstance(found, Copy):
        assert found.to.takes_copies
        assert found.to.free_bytes > held.length
        assert found.to.number not in good
        assert {view.number for view in found.sources} == set(good) != set()
        assert not found.in_place or found.to.number in damaged
        assert sum(n in outlook.staying for n in good) < held.target
    elif isinstance(found, Drop):
        kept = {view.number for view in found.kept}
        assert found.node in held.nodes
        assert found.node not in kept
        assert kept <= set(good)
        assert len(kept) >= held.target
        assert all(view.state == "alive" and not view.draining for view in found.kept)


@given(clusters(), extents, wounds, st.integers())
def test_repair_comes_to_an_end_with_what_is_wanted_or_what_can_be(
    members: list[Member], held: Held, damaged: set[int], seed: int
) -> None:
    """Step by step, each done as planned: no good copy is lost on the way, and at the end nothing more is possible."""
    outlook, bad, chance = seen(members), {(EXTENT, NodeNumber(n)) for n in damaged}, random.Random(seed)
    fewest = min(len(good_copies(held, outlook, bad)), held.target)
    for _ in range(30):
        found = next_step(held, outlook, bad, chance)
        if found is None:
            break
        if isinstance(found, Drop):
            held = replace(held, nodes=tuple(n for n in held.nodes if n != found.node))
        elif found.in_place:
            bad.discard((EXTENT, found.to.number))
        else:
            held = replace(held, nodes=(*held.nodes, found.to.number))
        assert len(good_copies(held, outlook, bad)) >= fewest
    else:
        pytest.fail("repair goes on for ever")
    good = good_copies(held, outlook, bad)
    short = lacking(held, outlook, bad)
    if good and short > 0 and not outlook.awaited:
        able = [v for v in outlook.takers if v.number not in good and v.free_bytes > held.length]
        assert not able, "a copy is missing that could be made"


def test_all_that_have_a_copy_give_it() -> None:
    """Not one of them all of what is healed: each comes first some time."""
    outlook, first = seen([member(n) for n in range(1, 5)]), set()
    for seed in range(30):
        found = next_step(held(1, 2, 3, target=4), outlook, set(), random.Random(seed))
        assert isinstance(found, Copy)
        first.add(found.sources[0].number)
    assert first == {1, 2, 3}


def test_a_dead_node_is_waited_for_but_not_for_the_last_copy() -> None:
    dead = member(3, "dead", 31)
    outlook = seen([member(1), member(2), dead, member(4)])
    assert step(held(1, 2, 3), outlook) is None
    assert isinstance(step(held(1, 3, target=2), outlook), Copy)
    assert isinstance(step(held(1, 2, 3), seen([member(1), member(2), member(3, "dead", 91), member(4)])), Copy)
    assert step(held(1, 2, 3), seen([member(1), member(2), member(3, "dead", 5000), member(4)], observed=30)) is None


def test_a_suspect_node_still_counts() -> None:
    assert step(held(1, 2, 3), seen([member(1), member(2), member(3, "suspect", 10), member(4)])) is None


def test_a_damaged_copy_is_replaced_where_it_is() -> None:
    found = step(held(1, 2, 3), seen([member(n) for n in (1, 2, 3, 4)]), damaged={2})
    assert isinstance(found, Copy)
    assert (found.to.number, found.in_place) == (2, True)
    assert {view.number for view in found.sources} == {1, 3}


def test_a_damaged_copy_on_a_node_that_takes_nothing_is_replaced_elsewhere() -> None:
    """Its disk is full, read-only or taken out: it says that nothing is free. Where nobody else can, it waits."""
    outlook = seen([member(1), member(2, free_bytes=0), member(3), member(4)])
    found = step(held(1, 2, 3), outlook, damaged={2})
    assert isinstance(found, Copy)
    assert found.to.number == 4
    found = step(held(1, 2, 3, 4), outlook, damaged={2})
    assert isinstance(found, Drop)
    assert found.node == 2
    assert step(held(1, 2, 3), seen([member(1), member(2, free_bytes=100), member(3)]), damaged={2}) is None


def test_the_last_good_copy_is_never_dropped_and_no_good_copy_means_no_step() -> None:
    outlook = seen([member(1), member(2)])
    assert step(held(1, 2, target=1), outlook, damaged={1}) == Drop(
        held(1, 2, target=1), NodeNumber(1), (outlook.views[NodeNumber(2)],)
    )
    assert step(held(1, 2), outlook, damaged={1, 2}) is None
    assert step(held(1, target=1), seen([member(1, draining=True)])) is None


def test_a_drained_node_gives_only_what_others_have() -> None:
    outlook = seen([member(1, draining=True), *(member(n) for n in (2, 3, 4))])
    found = step(held(1, 2, 3), outlook)
    assert isinstance(found, Copy)
    assert found.to.number == 4
    found = step(held(1, 2, 3, 4), outlook)
    assert isinstance(found, Drop)
    assert found.node == 1
    assert step(held(1, 2, 3), seen([member(1, draining=True), member(2), member(3)])) is None


def test_a_returned_node_is_welcomed_and_the_fullest_of_a_shared_rack_gives() -> None:
    full = member(2, used_bytes=3 * GIB)
    found = step(held(1, 2, 3, 4), seen([member(1), full, member(3), member(4)]))
    assert isinstance(found, Drop)
    assert found.node == 2
    racked = [
        member(1, rack="a"),
        member(2, rack="b", used_bytes=3 * GIB),
        member(3, rack="a", used_bytes=2 * GIB),
        member(4, rack="c"),
    ]
    found = step(held(1, 2, 3, 4), seen(racked))
    assert isinstance(found, Drop)
    assert found.node == 3


def test_a_copy_goes_to_a_rack_that_has_none() -> None:
    members = [member(1, rack="a"), member(2, rack="b"), member(3, rack="a"), member(4, rack="c"), member(5, rack="b")]
    for seed in range(20):
        found = next_step(held(1, 2), seen(members), (), random.Random(seed))
        assert isinstance(found, Copy)
        assert found.to.number == 4


def test_the_most_endangered_go_first_and_a_round_has_its_limits() -> None:
    outlook = seen([member(n) for n in range(1, 6)])
    few, fewer = held(1, 2), replace(held(1), extent=ExtentId(b"x" * 16))
    plan = repair_plan([few, fewer], outlook, (), Load(1, 1000), random.Random(1))
    assert plan.steps[0].held is fewer
    many = [replace(held(1, 2, length=60), extent=ExtentId(n.to_bytes(16, "big"))) for n in range(50)]
    plan = repair_plan(
        [*many, replace(held(1, 2, 3), extent=ExtentId(b"y" * 16))], outlook, (), Load(5, 100), random.Random(1)
    )
    assert len(plan.steps) == 3
    assert (len(plan.later), len(plan.idle)) == (47, 1)


def test_when_many_nodes_vanish_together_only_last_copies_are_copied() -> None:
    gone = [member(4, "dead", 200), member(5, "dead", 210)]
    outlook = seen([member(1), member(2), member(3), *gone])
    assert outlook.is_paused
    assert step(held(1, 4, 2), outlook) is None
    assert isinstance(step(held(1, 4, 5), outlook), Copy)
    assert not seen([member(1), member(2), member(3), member(4, "dead", 200), member(5, "dead", 300)]).is_paused
    assert not vanished_together([member(1), member(2), member(3, "dead", 200)])
    assert not vanished_together([member(1), member(2), *(member(n, "dead", PAUSE_SECONDS + 1) for n in (3, 4))])


def fill(number: int, part: float, **fields: Any) -> Member:
    return member(number, used_bytes=int(100 * GIB * part), free_bytes=int(100 * GIB * (1 - part)), **fields)


def test_a_node_that_is_ten_points_too_full_gives_to_those_below_the_mean() -> None:
    outlook = seen([fill(1, 0.8), fill(2, 0.5), fill(3, 0.5), fill(4, 0.2)])
    surplus = surplus_bytes(outlook)
    assert surplus.keys() == {1}
    assert 24 * GIB < surplus[NodeNumber(1)] < 26 * GIB
    found = rebalance_step(held(1, 2, 3), outlook, (), surplus, random.Random(1))
    assert found is not None
    assert (found.copy.to.number, found.giver) == (4, 1)
    assert rebalance_step(held(2, 3, 4), outlook, (), surplus, random.Random(1)) is None
    assert rebalance_step(held(1, 2), outlook, (), surplus, random.Random(1)) is None
    assert surplus_bytes(seen([fill(1, 0.55), fill(2, 0.5), fill(3, 0.45)])) == {}
    assert surplus_bytes(seen([fill(1, 0.8), fill(2, 0.2), fill(3, 0.2, state="suspect")])) == {}


def test_rebalance_brings_no_copy_where_one_is_said_to_be_damaged() -> None:
    """Repair would take the new one for that."""
    outlook = seen([fill(1, 0.8), fill(2, 0.5), fill(3, 0.5), fill(4, 0.2)])
    hurt, surplus = {(EXTENT, NodeNumber(4))}, surplus_bytes(outlook)
    assert rebalance_step(held(1, 2, 3), outlook, (), surplus, random.Random(1)) is not None
    assert rebalance_step(held(1, 2, 3), outlook, hurt, surplus, random.Random(1)) is None


@given(clusters(), extents, wounds)
def test_what_rebalance_brings_repair_does_not_take_back(members: list[Member], held: Held, damaged: set[int]) -> None:
    outlook, bad = seen(members), {(EXTENT, NodeNumber(n)) for n in damaged}
    surplus = surplus_bytes(outlook)
    found = rebalance_step(held, outlook, bad, surplus, random.Random(1))
    if found is not None:
        after = next_step(replace(held, nodes=(*held.nodes, found.copy.to.number)), outlook, bad, random.Random(1))
        assert isinstance(after, Drop)
        assert after.node == found.giver
        assert found.giver in surplus


@given(st.lists(st.sampled_from(["", "a", "b"]), min_size=2, max_size=7), st.integers(1, 3), st.integers())
def test_rebalance_comes_to_an_end_and_keeps_racks_apart(racks: list[str], copies: int, seed: int) -> None:
    """Turn after turn, with disks of other sizes and filled unevenly, each gift followed by repair."""
    chance = random.Random(seed)
    numbers = [NodeNumber(n) for n in range(1, len(racks) + 1)]
    capacity = {n: chance.choice((500, 1000, 2000)) for n in numbers}
    weight = {n: chance.random() ** 4 for n in numbers}
    target, length = min(copies, len(numbers)), 10
    extents = []
    for _ in range(60):
        nodes = sorted(numbers, key=lambda n: chance.random() * weight[n])[-target:]
        extents.append(held(*nodes, target=target, length=length))

    def outlook_now() -> Outlook:
        used = Counter(n for one in extents for n in one.nodes)
        return seen([
            member(n, rack=rack, used_bytes=length * used[n], free_bytes=max(0, capacity[n] - length * used[n]))
            for n, rack in zip(numbers, racks, strict=True)
        ])  # fmt: skip

    def spread(one: Held) -> int:
        return len({racks[n - 1] or n for n in one.nodes})

    for _ in range(30):
        outlook, has_given = outlook_now(), False
        surplus = surplus_bytes(outlook)
        for index, one in enumerate(extents):
            gift = rebalance_step(one, outlook, (), [n for n in one.nodes if surplus.get(n, 0) > 0], chance)
            if gift is not None:
                surplus[gift.giver] -= length
                both = replace(one, nodes=(*one.nodes, gift.copy.to.number))
                drop, has_given = next_step(both, outlook, (), chance), True
                assert isinstance(drop, Drop)
                assert drop.node == gift.giver
                extents[index] = replace(one, nodes=tuple(n for n in both.nodes if n != drop.node))
                assert spread(extents[index]) >= spread(one)
        if not has_given:
            return
    pytest.fail("rebalance goes on for ever")


def test_a_node_alone_on_its_rack_keeps_what_no_other_rack_may_have_instead() -> None:
    """A copy on the other rack would not be the one too many: repair would drop another of that rack."""
    outlook = seen([fill(1, 0.9, rack="a"), fill(2, 0.4, rack="b"), fill(3, 0.4, rack="b")])
    assert surplus_bytes(outlook).keys() == {1}
    assert rebalance_step(held(1, 2, target=2), outlook, (), [NodeNumber(1)], random.Random(1)) is None
    outlook = seen([*(fill(n, 0.4, rack="b") for n in (2, 3)), fill(1, 0.9, rack="a"), fill(4, 0.1, rack="a")])
    found = rebalance_step(held(1, 2, target=2), outlook, (), [NodeNumber(1)], random.Random(1))
    assert found is not None
    assert (found.copy.to.number, found.giver) == (4, 1)
