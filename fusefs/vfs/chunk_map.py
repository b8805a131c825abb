"""Which extents make up an open file, and how long it is, as the metadata last told.

Called by the reader and the writer of the file. Held for one data version at a time: when the
version moves on by somebody else's hand, everything is forgotten and asked for again. The size
belongs to the same version, so that nobody takes for a hole what lies beyond the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusefs.metadata.client import MetadataClient
from servers.protocol.geometry import Segment, overlay
from servers.protocol.ids import InodeNumber
from servers.protocol.naming_api import unpack_segments

WINDOW_CHUNKS = 64
WINDOWS_MAX = 64
"""Windows held at once: a file of many chunks does not fill the memory."""

MERGED_SEGMENTS_MAX = 32
"""A longer list is asked for again when somebody reads there: most who write so do not."""


class ChunkMap:
    def __init__(self, ino: InodeNumber, metadata: MetadataClient) -> None:
        self._ino = ino
        self._metadata = metadata
        self.version = 0
        self._size = 0
        self._windows: dict[int, dict[int, list[Segment]]] = {}

    def begin(self, version: int, size: int, rows: Sequence[Any]) -> None:
        """The map as `open` gave it: the first window, at this version."""
        self.forget(version, size)
        self._take(0, rows)

    def forget(self, version: int, size: int) -> None:
        """The content is at this version now, and this long."""
        if version != self.version:
            self._windows.clear()
            self.version, self._size = version, size

    def _take(self, window: int, rows: Sequence[Any]) -> None:
        self._windows[window] = {
            index: unpack_segments(blob) for index, blob in zip(rows[::2], rows[1::2], strict=True)
        }
        if len(self._windows) > WINDOWS_MAX:
            del self._windows[next(iter(self._windows))]

    def committed(self, before: int, version: int, size: int, chunks: dict[int, list[Segment]]) -> None:
        """Our own commit laid these over what version `before` was."""
        if before != self.version:
            if version > self.version:
                self.forget(version, size)
            return
        self.version, self._size = version, size
        for index, segments in chunks.items():
            window = self._windows.get(index // WINDOW_CHUNKS)
            if window is None:
                continue
            held = window.get(index, ())
            if len(held) + len(segments) <= MERGED_SEGMENTS_MAX:
                window[index] = overlay([*held, *segments])
            else:
                del self._windows[index // WINDOW_CHUNKS]

    async def segments(self, first: int, last: int) -> tuple[int, dict[int, list[Segment]]]:
        """The file's size, and the segments of chunks first..last at the same version. Raises as `ask`."""
        while True:
            version = self.version
            found: dict[int, list[Segment]] = {}
            for number in range(first // WINDOW_CHUNKS, last // WINDOW_CHUNKS + 1):
                if number not in self._windows:
                    await self._locate(number)
                window = self._windows.get(number)
                if window is None:
                    break  # It moved on while we asked.
                for index in range(max(first, number * WINDOW_CHUNKS), min(last, (number + 1) * WINDOW_CHUNKS - 1) + 1):
                    if index in window:
                        found[index] = window[index]
            else:
                if version == self.version:
                    return self._size, found

    async def _locate(self, window: int) -> None:
        asked = self.version
        version, size, rows = await self._metadata.ask(
            "locate", ino=self._ino, first=window * WINDOW_CHUNKS, count=WINDOW_CHUNKS
        )
        if self.version not in (asked, version):
            return  # Moved on while we asked: what came may be older.
        self.forget(version, size)
        self._take(window, rows)
