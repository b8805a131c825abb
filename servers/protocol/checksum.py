"""CRC32C (Castagnoli, RFC 3720 appendix B.4) of data in blocks of 64 KiB.

Whoever has the original computes the sums once; everyone who receives the data checks them.
A table of sums travels and is stored as big-endian 32-bit numbers, one per block, the last
block being the short one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from crc32c import crc32c

from servers.protocol.limits import BLOCK_BYTES

Buffer = bytes | bytearray | memoryview


class BlockSums:
    """Sums of data that arrives piece by piece."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._open_sum = 0
        self._open_bytes = 0

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        at = 0
        while at < len(view):
            step = min(BLOCK_BYTES - self._open_bytes, len(view) - at)
            self._open_sum = crc32c(view[at : at + step], self._open_sum)
            self._open_bytes += step
            at += step
            if self._open_bytes == BLOCK_BYTES:
                self._sums.append(self._open_sum)
                self._open_sum = self._open_bytes = 0

    def table(self) -> bytes:
        sums = [*self._sums, self._open_sum] if self._open_bytes else self._sums
        return struct.pack(f">{len(sums)}I", *sums)


def block_sums(pieces: Iterable[Buffer]) -> bytes:
    """The table of sums of the pieces laid end to end."""
    sums = BlockSums()
    for piece in pieces:
        sums.update(piece)
    return sums.table()


def table_bytes(length: int) -> int:
    """The size of the table for data of this length, in bytes."""
    return 4 * -(-length // BLOCK_BYTES)


def first_damaged_block(data: Buffer, table: Buffer) -> int | None:
    """The index of the first block that does not match its sum; None when all do."""
    view = memoryview(data)
    if len(table) != table_bytes(len(view)):
        return 0
    for index, (want,) in enumerate(struct.iter_unpack(">I", table)):
        if crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) != want:
            return index
    return None
