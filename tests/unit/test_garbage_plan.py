"""What a round of the garbage collector may delete: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servers.naming.background.garbage import Brake, Held, plan_collection
from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.protocol.snapshots import MANIFEST, TAIL, part_id

GRACE = 1_000
extents = st.integers(1, 500).map(lambda n: extent_id(SessionNumber(1), n))
sightings = st.dictionaries(extents, st.integers(0, 5_000), max_size=200)
brakes = st.builds(Brake, st.floats(0, 1), st.integers(0, 100))


@given(since=sightings, extra=st.integers(0, 1_000), now=st.integers(0, 6_000), brake=st.none() | brakes)
def test_nothing_goes_before_its_grace_and_never_more_than_the_brake_allows(
    since: dict[ExtentId, int], extra: int, now: int, brake: Brake | None
) -> None:
    held = len(since) + extra
    plan = plan_collection(Held(held, 0), since, now, GRACE, brake)
    assert all(now - since[extent] >= GRACE for extent in plan.due)
    assert len(plan.due) + plan.waiting == len(since)
    if brake is not None:
        assert len(plan.due) <= brake.limit(held)
        assert plan.is_suspicious == (len(since) > brake.limit(held))
    if not plan.stopped:
        assert set(plan.due) == {extent for extent, ms in since.items() if now - ms >= GRACE}
    else:
        assert not plan.due


@given(since=sightings, now=st.integers(6_001, 9_000))
def test_without_a_brake_all_of_it_goes_in_the_end(since: dict[ExtentId, int], now: int) -> None:
    assert set(plan_collection(Held(len(since), 0), since, now, GRACE, None).due) == set(since)


def test_the_brake_cannot_be_passed_in_slices() -> None:
    """It counts what is still waiting as well."""
    since = {extent_id(SessionNumber(1), n): 0 if n <= 3 else 999 for n in range(1, 21)}
    plan = plan_collection(Held(100, 0), since, GRACE, GRACE, Brake(0.05, 5))
    assert plan.due == ()
    assert "20 of 100" in plan.stopped
    assert len(plan_collection(Held(100, 0), since, GRACE, GRACE, Brake(0.2, 5)).due) == 3


@given(held=st.integers(0, 10_000), share=st.floats(0, 0.5), extents_min=st.integers(0, 1_000))
def test_however_few_they_are_no_more_than_half_ever_goes_unasked(held: int, share: float, extents_min: int) -> None:
    assert Brake(share, extents_min).limit(held) <= held / 2


def test_a_small_node_does_not_lose_all_it_has() -> None:
    """A crashed upload beside as much that is needed goes; a node of garbage alone waits."""
    since = {extent_id(SessionNumber(1), n): 0 for n in range(60)}
    brake = Brake(0.05, 100)
    assert "60 of 60" in plan_collection(Held(60, 0), since, GRACE, GRACE, brake).stopped
    assert "60 of 119" in plan_collection(Held(119, 0), since, GRACE, GRACE, brake).stopped
    assert set(plan_collection(Held(120, 0), since, GRACE, GRACE, brake).due) == set(since)


def test_the_many_parts_of_snapshots_hide_no_loss_of_files() -> None:
    """And a few that were given up stop nothing."""
    since = {extent_id(SessionNumber(1), n): 0 for n in range(60)}
    brake = Brake(0.05, 100)
    assert "60 of 60" in plan_collection(Held(60, 5400), since, GRACE, GRACE, brake).stopped
    given_up = dict.fromkeys([part_id(70, 0), part_id(70, TAIL)], 0)
    assert len(plan_collection(Held(0, 2), given_up, GRACE, GRACE, brake, oldest_snapshot=60).due) == 2


def test_the_brake_lets_old_snapshots_go_and_counts_those_that_nobody_knows_yet() -> None:
    """After an hour of changes one has many parts. One later than all that are known means that something is wrong."""
    parts = [part_id(70, n) for n in (0, MANIFEST, *range(TAIL, TAIL + 1800))]
    since, held, brake = dict.fromkeys(parts, 0), Held(1000, 3000), Brake(0.05, 100)
    assert set(plan_collection(held, since, GRACE, GRACE, brake, oldest_snapshot=71).due) == set(parts)
    for oldest in (0, 69, 70):
        assert "1802 of 3000" in plan_collection(held, since, GRACE, GRACE, brake, oldest).stopped
    since[extent_id(SessionNumber(1), 1)] = 0
    assert "1 of 1000" in plan_collection(held, since, GRACE, GRACE, Brake(0.0, 0), oldest_snapshot=71).stopped
