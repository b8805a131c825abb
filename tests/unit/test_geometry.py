"""Spans cover a range exactly; overlays show, byte for byte, what was laid last."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.geometry import Segment, Span, cut, is_chunk_size, overlay, spans
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id

SIZES = st.integers(10, 26).map(lambda bits: 1 << bits)


@given(st.integers(0, 2**52), st.integers(0, 2**27), SIZES)
def test_spans_cover_the_range_in_order(offset: int, length: int, chunk_size: int) -> None:
    at = offset
    for span in spans(offset, min(length, 1000 * chunk_size), chunk_size):
        assert span.index * chunk_size + span.start == at
        assert 0 <= span.start < span.end <= chunk_size
        at = span.index * chunk_size + span.end
    assert at == offset + min(length, 1000 * chunk_size)


def test_spans_of_nothing_and_of_a_boundary() -> None:
    assert list(spans(5, 0, 1024)) == []
    assert list(spans(1020, 8, 1024)) == [Span(0, 1020, 1024), Span(1, 0, 4)]


@given(st.integers(-(2**30), 2**30))
def test_chunk_sizes_are_powers_of_two_in_their_limits(size: int) -> None:
    assert is_chunk_size(size) == (size in {1 << bits for bits in range(10, 27)})


def extent(number: int) -> ExtentId:
    return extent_id(SessionNumber(1), number)


@st.composite
def layers(draw: st.DrawFn) -> list[Segment]:
    made = []
    for number in range(draw(st.integers(0, 12))):
        offset = draw(st.integers(0, 60))
        length = draw(st.integers(1, 64 - offset))
        made.append(Segment(offset, extent(number), draw(st.integers(0, 9)), length, (NodeNumber(number + 1),)))
    return made


def painted(segments: list[Segment]) -> dict[int, tuple[ExtentId, int, tuple[NodeNumber, ...]]]:
    """Where each byte comes from, later segments over earlier ones."""
    return {s.offset + i: (s.extent, s.extent_offset + i, s.nodes) for s in segments for i in range(s.length)}


@given(layers())
def test_an_overlay_shows_what_was_laid_last(laid: list[Segment]) -> None:
    result = overlay(laid)
    assert painted(result) == painted(laid)
    assert all(a.end <= b.offset for a, b in pairwise(result))


@given(layers())
def test_an_overlay_of_an_overlay_is_itself(laid: list[Segment]) -> None:
    assert overlay(overlay(laid)) == overlay(laid)


@given(layers(), st.integers(0, 64), st.integers(0, 64))
def test_a_cut_is_the_part_within(laid: list[Segment], start: int, end: int) -> None:
    for segment in laid:
        inside = {at: from_ for at, from_ in painted([segment]).items() if start <= at < end}
        if inside:
            assert painted([cut(segment, start, end)]) == inside
        else:
            with pytest.raises(ValueError, match="nothing of"):
                cut(segment, start, end)


def test_an_overlay_of_ten_thousand_pieces_takes_no_longer_than_sorting_them() -> None:
    """The mount's one thread does it: by looking at all for each it took a quarter of a minute."""
    chance = random.Random(1)
    laid = [Segment(16 * chance.randrange(10_000) + 3, extent(n), 0, 24, (NodeNumber(1),)) for n in range(10_000)]
    began = time.process_time()
    result = overlay(laid)
    assert time.process_time() - began < 2
    assert all(a.end <= b.offset for a, b in pairwise(result))
