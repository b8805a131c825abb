"""What a chunk's long list of segments becomes: the same bytes in the same places, in fewer extents."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from servers.naming.background.compaction_plan import compacted, plan_runs
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id

NODES = st.lists(st.sampled_from([NodeNumber(n) for n in (1, 2, 3, 4)]), min_size=1, max_size=3, unique=True)


@st.composite
def lists(draw: st.DrawFn) -> list[Segment]:
    """Sorted and without overlap, with holes here and there."""
    at, segments = 0, []
    for number in range(draw(st.integers(0, 30))):
        at += draw(st.sampled_from([0, 0, 0, 7]))
        length = draw(st.integers(1, 50))
        extent = extent_id(SessionNumber(1), number + 1)
        segments.append(Segment(at, extent, draw(st.integers(0, 9)), length, tuple(draw(NODES))))
        at += length
    return segments


def source_of(segments: list[Segment], made: dict[ExtentId, list[tuple[ExtentId, int]]]) -> dict[int, object]:
    """Which byte of which of the first extents is shown at each place."""
    shown: dict[int, object] = {}
    for s in segments:
        for i in range(s.length):
            at = s.extent_offset + i
            shown[s.offset + i] = made[s.extent][at] if s.extent in made else (s.extent, at)
    return shown


@given(segments=lists(), runs_max=st.integers(1, 5), longest=st.integers(2, 40), leave=st.integers(0, 4))
def test_the_same_bytes_are_shown_in_the_same_places(
    segments: list[Segment], runs_max: int, longest: int, leave: int
) -> None:
    """Whichever of the runs were made."""
    runs = plan_runs(segments, runs_max, longest)
    assert len(runs) <= runs_max
    assert all(len(run.segments) <= longest for run in runs)
    made, content = {}, {}
    for number, run in enumerate(runs):
        assert len(run.segments) > 1
        assert all(a.end == b.offset for a, b in itertools.pairwise(run.segments))
        assert run.home in {node for s in run.segments for node in s.nodes}
        if number != leave:
            extent = extent_id(SessionNumber(2), number + 1)
            made[number] = (extent, [NodeNumber(9)])
            content[extent] = [(s.extent, s.extent_offset + i) for s in run.segments for i in range(s.length)]
            assert len(content[extent]) == run.length
    result = compacted(segments, made, runs)
    assert source_of(result, content) == source_of(segments, {})
    assert len(result) == len(segments) - sum(len(runs[number].segments) - 1 for number in made)
    assert all(a.end <= b.offset for a, b in itertools.pairwise(result))


def test_a_file_that_is_appended_to_for_long_is_copied_a_few_times_and_not_each_time() -> None:
    """And its list stays short: 10,000 pieces, of which a hundred come between two looks."""
    segments: list[Segment] = []
    at = copied = 0
    for number in range(10_000):
        segments.append(Segment(at, extent_id(SessionNumber(1), number + 1), 0, 100, (NodeNumber(1),)))
        at += 100
        if number % 100 == 99:
            runs = plan_runs(segments)
            made = {n: (extent_id(SessionNumber(2), number + n), [NodeNumber(1)]) for n in range(len(runs))}
            segments = compacted(segments, made, runs)
            copied += sum(run.length for run in runs)
            assert len(segments) < 20
    assert copied < 10 * at
