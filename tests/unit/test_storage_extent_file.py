"""The footer of a replica: whatever was packed is read again, and nothing that was changed is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.checksum import block_sums, table_bytes
from servers.protocol.errors import ExtentDamaged
from servers.protocol.ids import SessionNumber, extent_id
from servers.protocol.limits import CHUNK_BYTES_MAX
from servers.protocol.storage_api import ExtentHeader
from servers.storage.extent_file import FOOTER_BYTES_MAX, MAP_BYTES_MAX, Footer, pack_footer, parse_footer

u64 = st.integers(0, 2**64 - 1)


@st.composite
def footers(draw: st.DrawFn, length_max: int = CHUNK_BYTES_MAX) -> Footer:
    length = draw(st.integers(1, length_max))
    size = table_bytes(length)
    sums = (draw(st.binary(min_size=4, max_size=64)) * size)[:size]
    header = ExtentHeader(
        draw(st.text(max_size=40)), draw(u64), draw(u64), draw(u64), draw(st.binary(max_size=255)), sums
    )
    return Footer(extent_id(SessionNumber(draw(u64)), draw(u64)), length, header)


@given(footers())
def test_a_footer_is_read_as_it_was_packed(footer: Footer) -> None:
    """From the last bytes of the file alone, whatever stands before it."""
    packed = pack_footer(footer)
    assert len(packed) <= FOOTER_BYTES_MAX
    assert parse_footer(packed, footer.length + len(packed)) == footer
    assert parse_footer(b"data" + packed, footer.length + len(packed)) == footer


@given(footers(length_max=300_000), st.data())
def test_any_flipped_bit_is_noticed(footer: Footer, data: st.DataObject) -> None:
    packed = bytearray(pack_footer(footer))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ExtentDamaged):
        parse_footer(bytes(packed), footer.length + len(packed))


def test_every_flipped_bit_of_one_footer_is_noticed() -> None:
    header = ExtentHeader("v", 1, 2, 3, b"name", block_sums([bytes(100_000)]))
    packed = pack_footer(Footer(extent_id(SessionNumber(1), 1), 100_000, header))
    for bit in range(8 * len(packed)):
        hurt = bytearray(packed)
        hurt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ExtentDamaged):
            parse_footer(bytes(hurt), 100_000 + len(hurt))


@given(footers(length_max=300_000), st.data())
def test_a_file_of_another_size_is_noticed(footer: Footer, data: st.DataObject) -> None:
    """Cut anywhere or grown, even when the trailer itself is whole."""
    packed = pack_footer(footer)
    size = footer.length + len(packed)
    cut = data.draw(st.integers(1, size))
    tail = packed[: max(0, len(packed) - cut)]
    with pytest.raises(ExtentDamaged):
        parse_footer(tail, size - cut)
    with pytest.raises(ExtentDamaged):
        parse_footer(packed, size - cut)
    with pytest.raises(ExtentDamaged):
        parse_footer(packed, size + cut)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_footer_are_damage_and_nothing_else(tail: bytes) -> None:
    with pytest.raises(ExtentDamaged):
        parse_footer(tail, len(tail))


def test_a_header_too_large_to_keep_is_refused() -> None:
    header = ExtentHeader("v", 1, 2, 3, b"n" * MAP_BYTES_MAX, bytes(4))
    with pytest.raises(ValueError, match="at most"):
        pack_footer(Footer(extent_id(SessionNumber(1), 1), 5, header))
