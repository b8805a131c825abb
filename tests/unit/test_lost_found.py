"""Rebuilding files from replicas alone, and how snapshots lie on the nodes: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servers.naming.lost_found import Found, plan_files
from servers.protocol.ids import NodeNumber, SessionNumber, extent_id
from servers.protocol.snapshots import MANIFEST, Manifest, complete, is_part, part_id, unpack_manifest

MIB = 1024 * 1024


def found(number: int, inode: int, chunk: int, length: int, name: bytes = b"a.txt") -> Found:
    return Found(extent_id(SessionNumber(1), number), length, inode, chunk, number, name, (NodeNumber(1),))


def test_a_file_of_full_chunks_is_rebuilt() -> None:
    """What its chunk size was is told by those that are full."""
    (file,) = plan_files([found(3, 7, 2, 100), found(1, 7, 0, MIB), found(2, 7, 1, MIB)], 8 * MIB)
    assert (file.name, file.chunk_size, file.size) == (b"a.txt.7", MIB, 2 * MIB + 100)
    assert [file.chunks[index][0].extent for index in (0, 1, 2)] == [extent_id(SessionNumber(1), n) for n in (1, 2, 3)]


def test_a_small_file_has_the_volumes_chunk_size() -> None:
    (file,) = plan_files([found(1, 7, 0, 100)], 8 * MIB)
    assert (file.chunk_size, file.size) == (8 * MIB, 100)


def test_pieces_whose_place_nobody_knows_are_files_of_their_own() -> None:
    files = plan_files([found(1, 7, 0, 10), found(2, 7, 0, 20), found(3, 7, 1, 5)], MIB)
    assert [file.name for file in files] == [b"a.txt.7", b"a.txt.7.chunk0.1-1", b"a.txt.7.chunk0.1-2"]
    assert [file.size for file in files] == [MIB + 5, 10, 20]


def piece(number: int, chunk: int, *places: int, chunk_size: int = MIB) -> Found:
    return replace(found(number, 7, chunk, sum(places[1::2])), chunk_size=chunk_size, places=places)


def test_pieces_are_laid_over_each_other_in_the_order_of_writing() -> None:
    """Several ranges of one extent, several extents of one chunk, in whatever order they are found."""
    late = piece(9, 0, 5, 10)
    (file,) = plan_files([late, piece(1, 0, 0, 8, 100, 50), piece(2, 3, 70, 30)], 8 * MIB)
    assert (file.chunk_size, file.size) == (MIB, 3 * MIB + 100)
    assert [(s.offset, s.length, s.extent_offset) for s in file.chunks[0]] == [(0, 5, 0), (5, 10, 0), (100, 50, 8)]
    assert file.chunks[0][1].extent == late.extent
    assert [(s.offset, s.length) for s in file.chunks[3]] == [(70, 30)]


def test_appends_beside_pieces_whose_place_is_known_are_files_of_their_own() -> None:
    """They cannot hide what is known."""
    files = plan_files([piece(1, 0, 0, 8), found(2, 7, 0, 20), found(3, 7, 1, 20)], 8 * MIB)
    assert [(file.name, file.size) for file in files] == [(b"a.txt.7", MIB + 20), (b"a.txt.7.chunk0.1-2", 20)]


@pytest.mark.parametrize(("hint", "name"), [(b"", b"file.7"), (b"a/b", b"a_b.7"), (b"n" * 300, b"n" * 253 + b".7")])
def test_names_are_possible_ones(hint: bytes, name: bytes) -> None:
    assert plan_files([found(1, 7, 0, 1, hint)], MIB)[0].name == name


def test_a_snapshot_is_complete_with_its_manifest() -> None:
    parts = [part_id(5, 0), part_id(5, 1), part_id(9, 0), part_id(9, MANIFEST), part_id(7, MANIFEST)]
    assert all(is_part(part) for part in parts)
    assert complete([*parts, extent_id(SessionNumber(1), 9 * 65536 + MANIFEST)]) == [9, 7]
    manifest = Manifest("v", "main", 9, 1, 1, 100, "abc")
    assert unpack_manifest(manifest.pack()) == manifest
    with pytest.raises(ValueError, match="manifest"):
        unpack_manifest(b'{"seq": 1}')
