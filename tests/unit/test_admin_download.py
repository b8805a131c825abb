"""What of a chunk is fetched from where: the pieces of a chunk map."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servers.admin.download import PIECE_BYTES_MAX, pieces_of_chunk
from servers.protocol.geometry import Segment, overlay
from servers.protocol.ids import NodeNumber, SessionNumber, extent_id

CHUNK = 3 * PIECE_BYTES_MAX


@st.composite
def maps(draw: st.DrawFn) -> list[Segment]:
    """Chunk maps as commits make them."""
    written = []
    for number in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, CHUNK - 1))
        length = draw(st.integers(1, CHUNK - start))
        within = draw(st.integers(0, 1 << 20))
        written.append(Segment(start, extent_id(SessionNumber(1), number), within, length, (NodeNumber(1),)))
    return overlay(written)


@given(maps(), st.integers(1, CHUNK))
def test_pieces_are_the_chunk_from_its_beginning_to_its_end(segments: list[Segment], length: int) -> None:
    """Without gap or overlap, none larger than may be asked at once; holes exactly where no segment is."""
    at = 0
    for piece in pieces_of_chunk(7, segments, length):
        assert piece.chunk == 7
        assert piece.length > 0
        if piece.segment is None:
            assert not any(s.offset < at + piece.length and at < s.end for s in segments)
        else:
            assert piece.length <= PIECE_BYTES_MAX
            assert (piece.segment.offset, piece.segment.length) == (at, piece.length)
            (source,) = [s for s in segments if s.extent == piece.segment.extent and s.offset <= at < s.end]
            assert piece.segment.extent_offset - source.extent_offset == at - source.offset
        at += piece.length
    assert at == length
