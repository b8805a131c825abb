"""Sums do not depend on how the data comes in pieces, and every flipped bit is found."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.protocol.checksum import BlockSums, block_sums, first_damaged_block, table_bytes
from servers.protocol.limits import BLOCK_BYTES

DATA = random.Random(1).randbytes(3 * BLOCK_BYTES + 5)
CUTS = st.lists(st.integers(0, len(DATA)), max_size=8)
ENDS = st.one_of(st.integers(0, len(DATA)), st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1]))


@settings(deadline=None)
@given(CUTS, ENDS)
def test_the_pieces_do_not_matter(cuts: list[int], end: int) -> None:
    places = [0, *sorted(c for c in cuts if c < end), end]
    pieces = [memoryview(DATA)[a:b] for a, b in pairwise(places)]
    table = block_sums([DATA[:end]])
    assert block_sums(pieces) == table
    assert len(table) == table_bytes(end)
    assert first_damaged_block(DATA[:end], table) is None


@settings(deadline=None)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_found_in_its_block(at: int, bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[at] ^= 1 << bit
    assert first_damaged_block(damaged, block_sums([DATA])) == at // BLOCK_BYTES


@pytest.mark.parametrize("length", [0, 1, BLOCK_BYTES, len(DATA) - 1])
def test_data_of_another_length_is_damaged(length: int) -> None:
    assert first_damaged_block(DATA[:length], block_sums([DATA])) is not None
    assert first_damaged_block(DATA, block_sums([DATA[:length]])) is not None


def test_the_castagnoli_check_value() -> None:
    """RFC 3720, appendix B.4: 32 bytes of zeros."""
    assert block_sums([bytes(32)]) == bytes.fromhex("8a9136aa")
    assert block_sums([b"123456789"]) == bytes.fromhex("e3069283")
    assert BlockSums().table() == b""
