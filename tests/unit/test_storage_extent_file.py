"""The footer of a replica: whatever was packed is read again, and nothing that was changed is."""

from __future__ import annotations

import struct

import msgpack
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.checksum import block_sums, table_bytes
from servers.protocol.errors import ExtentDamaged
from servers.protocol.ids import SessionNumber, extent_id
from servers.protocol.limits import CHUNK_BYTES_MAX
from servers.protocol.storage_api import PLACES_MAX, ExtentHeader, flat_places, unpack_places
from servers.storage.extent_file import FOOTER_BYTES_MAX, MAP_BYTES_MAX, Footer, pack_footer, parse_footer

u64 = st.integers(0, 2**64 - 1)
places = st.tuples(st.integers(0, CHUNK_BYTES_MAX), st.integers(1, CHUNK_BYTES_MAX))


def flattened(rows: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(number for row in rows for number in row)[: 2 * PLACES_MAX]


@st.composite
def footers(draw: st.DrawFn, length_max: int = CHUNK_BYTES_MAX) -> Footer:
    length = draw(st.integers(1, length_max))
    size = table_bytes(length)
    sums = (draw(st.binary(min_size=4, max_size=64)) * size)[:size]
    header = ExtentHeader(
        draw(st.text(max_size=40)), draw(u64), draw(u64), draw(u64), draw(st.binary(max_size=255)), sums,
        draw(st.sampled_from((0, 1024, 2**26))), draw(st.lists(places, max_size=2 * PLACES_MAX).map(flattened)),
    )  # fmt: skip
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


def test_a_footer_of_a_writer_that_knew_no_places_is_read() -> None:
    """Byte by byte what was written before there were any."""
    extent = extent_id(SessionNumber(1), 2)
    row = {"id": extent, "volume": "v", "inode": 7, "chunk": 3, "mtime_ns": 5, "name": b"n"}
    packed = bytes(4) + msgpack.packb(row)
    body = packed + struct.pack(">8sHHIIQ", b"DCSEXT\r\n", 1, 0, 4, len(packed) - 4, 5)
    footer = parse_footer(body + struct.pack(">I", crc32c(body)), 5 + len(body) + 4)
    assert footer == Footer(extent, 5, ExtentHeader("v", 7, 3, 5, b"n", bytes(4)))
    assert pack_footer(footer) == body + struct.pack(">I", crc32c(body))


def test_places_that_are_none_are_refused() -> None:
    for wrong in ([1], [0, -1], ["a", 1], 7, [0, 2**40]):
        with pytest.raises(ValueError, match="places"):
            unpack_places(wrong)
    assert flat_places([(0, 5), (10, 12)]) == (0, 5, 10, 2)
    assert flat_places([(n, n + 1) for n in range(0, 1000, 2)]) == ()
