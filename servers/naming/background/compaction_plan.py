"""What to make of a chunk's long list of segments: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, NodeNumber

RUNS_MAX = 64
"""New extents of one chunk in one go."""
RUN_SEGMENTS_MAX = 4096
"""What one node makes one extent of: a quarter of what one order may name."""


@dataclass(frozen=True)
class Run:
    """Neighbouring segments without a hole between them."""

    segments: tuple[Segment, ...]

    @property
    def offset(self) -> int:
        return self.segments[0].offset

    @property
    def length(self) -> int:
        return self.segments[-1].end - self.offset

    @property
    def home(self) -> NodeNumber:
        """The node that has most of the segments."""
        return Counter(node for segment in self.segments for node in segment.nodes).most_common(1)[0][0]


def plan_runs(
    segments: Sequence[Segment], runs_max: int = RUNS_MAX, run_segments_max: int = RUN_SEGMENTS_MAX
) -> list[Run]:
    """The runs worth one extent each, those of most segments first."""
    runs: list[list[Segment]] = []
    for segment in segments:
        if runs and runs[-1][-1].end == segment.offset and len(runs[-1]) < run_segments_max:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    long = sorted((run for run in map(_without_large_ones_ahead, runs) if len(run) > 1), key=len, reverse=True)
    return [Run(tuple(run)) for run in long[:runs_max]]


def _without_large_ones_ahead(run: list[Segment]) -> list[Segment]:
    """What is appended to all the while is not copied whole each time: only where what follows is as long again."""
    first, left = 0, sum(segment.length for segment in run)
    while first < len(run) - 1 and run[first].length > (left := left - run[first].length):
        first += 1
    return run[first:]


def compacted(
    segments: Sequence[Segment], made: Mapping[int, tuple[ExtentId, Sequence[NodeNumber]]], runs: Sequence[Run]
) -> list[Segment]:
    """The list with each run that was made, by its number, as one segment: the same bytes in the same places."""
    result = list(segments)
    for number, (extent, nodes) in made.items():
        run = runs[number]
        at = result.index(run.segments[0])
        result[at : at + len(run.segments)] = [Segment(run.offset, extent, 0, run.length, tuple(nodes))]
    return result
