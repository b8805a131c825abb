"""Reads a whole replica from the disk itself and compares it with its sums.

Around the page cache, so that what is verified is the medium and not memory, and readers keep
their pages; where the file system cannot, through the cache, which is let go of before and after. Blocks.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from dataclasses import dataclass

from servers.protocol.checksum import first_damaged_block
from servers.protocol.errors import ExtentDamaged, ExtentMissing
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.limits import BLOCK_BYTES, MIB
from servers.storage.disk import PAGE_BYTES, OpenFile
from servers.storage.extent_file import FOOTER_BYTES_MAX, Footer, parse_footer

PIECE_BYTES = MIB
_SUMS_PER_PIECE = 4 * PIECE_BYTES // BLOCK_BYTES

_buffers = threading.local()


@dataclass(frozen=True, slots=True)
class Verified:
    footer: Footer
    file_bytes: int


def verify_file(path: str | os.PathLike[str], extent: ExtentId) -> Verified:
    """All of it was read and is right. Raises ExtentMissing, ExtentDamaged (from the OSError where the disk refused),
    and OSError where the file cannot be opened."""
    try:
        file, is_around_cache = _open(path)
    except FileNotFoundError:
        raise ExtentMissing(f"{extent_text(extent)} is not here") from None
    try:
        size = os.fstat(file.fd).st_size
        footer = parse_footer(_tail(file, size), size)
        if footer.extent != extent:
            raise ExtentDamaged(f"the file holds {extent_text(footer.extent)}")
        _verify_data(file, footer)
        if not is_around_cache:
            _drop_cached(file)
    except OSError as error:
        raise ExtentDamaged(f"{error.strerror} while reading") from error
    return Verified(footer, size)


def _verify_data(file: OpenFile, footer: Footer) -> None:
    for number, start in enumerate(range(0, footer.length, PIECE_BYTES)):
        want = min(PIECE_BYTES, footer.length - start)
        piece = _read(file, start, want)
        sums = footer.sums[number * _SUMS_PER_PIECE : (number + 1) * _SUMS_PER_PIECE]
        block = first_damaged_block(piece, sums) if len(piece) == want else 0
        if block is not None:
            raise ExtentDamaged(f"block {number * PIECE_BYTES // BLOCK_BYTES + block} has a wrong CRC32C")


def _open(path: str | os.PathLike[str]) -> tuple[OpenFile, bool]:
    """The file, and whether what is read of it comes around the page cache."""
    try:
        return OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    _drop_cached(file)
    return file, False


def _drop_cached(file: OpenFile) -> None:
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _tail(file: OpenFile, size: int) -> bytes:
    """The end of the file, from a whole page on, with all of the footer in it."""
    start = max(0, size - FOOTER_BYTES_MAX)
    start -= start % PAGE_BYTES
    return bytes(_read(file, start, size - start))


def _read(file: OpenFile, start: int, length: int) -> memoryview:
    """Less than `length` where the file ends before. `start` is at a page; the view is good until the next read."""
    buffer: memoryview | None = getattr(_buffers, "view", None)
    if buffer is None:
        # Page-aligned, as direct reads want it, with room for a footer that does not begin at a page.
        buffer = _buffers.view = memoryview(mmap.mmap(-1, PIECE_BYTES))
    whole = -(-length // PAGE_BYTES) * PAGE_BYTES
    done = 0
    while done < length:
        count = os.preadv(file.fd, [buffer[done:whole]], start + done)
        if count == 0:
            break
        done += count
        if done % PAGE_BYTES:  # The end of the file: a direct read from here would not be aligned.
            break
    return buffer[: min(done, length)]
