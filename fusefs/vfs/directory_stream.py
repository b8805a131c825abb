"""One open directory being listed.

Called by the file system for each handle of opendir(3). Positions are the cookies of the entries:
an entry keeps its cookie while it is there, so a scan meets it once, whatever others do
meanwhile, and telldir(3) positions stay good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from fusefs.metadata.client import MetadataClient
from fusefs.vfs.attribute_cache import AttributeCache
from servers.protocol.ids import InodeNumber
from servers.protocol.limits import NAMES_PER_CALL_MAX

DOT_COOKIE, DOT_DOT_COOKIE = 1, 2
LEARNED_PAGES_MAX = 4


@dataclass(frozen=True, slots=True)
class Entry:
    name: bytes
    cookie: int
    ino: InodeNumber
    blob: bytes
    """Its attributes, packed."""


@dataclass(slots=True)
class _Page:
    after: int
    entries: list[Entry]
    at_end: bool


async def read_page(
    metadata: MetadataClient, cache: AttributeCache, ino: InodeNumber, after: int
) -> tuple[list[Entry], bool]:
    """The entries after a cookie, at most a page, and whether the directory ends there.

    Whatever is learned goes to the cache too. Raises as `ask`.
    """
    asked_at, tick = trio.current_time(), cache.tick()
    at_end, *rows = await metadata.ask("readdir", ino=ino, after=after, count=NAMES_PER_CALL_MAX)
    now, entries = trio.current_time(), []
    for i in range(0, len(rows), 4):
        name, cookie, child, blob = rows[i : i + 4]
        if blob is None:
            continue  # Forgotten in this very moment; its name goes with it.
        entries.append(Entry(name, cookie, child, blob))
        cache.put_entry(ino, name, child, asked_at, tick)
        cache.put_listed(child, blob, asked_at, now)
    return entries, bool(at_end)


async def learn_names(metadata: MetadataClient, cache: AttributeCache, ino: InodeNumber) -> bool:
    """Learns all names of a directory that is not too large for that; False where it is. Raises as `ask`."""
    asked_at, tick, after = trio.current_time(), cache.tick(), 0
    for _ in range(LEARNED_PAGES_MAX):
        entries, at_end = await read_page(metadata, cache, ino, after)
        if at_end:
            cache.complete(ino, asked_at, tick)
            return True
        if not entries:
            return False
        after = entries[-1].cookie
    return False


class DirectoryStream:
    def __init__(self, ino: InodeNumber, metadata: MetadataClient, cache: AttributeCache) -> None:
        self.ino = ino
        self._metadata = metadata
        self._cache = cache
        self._page: _Page | None = None

    async def entries(self, after: int) -> AsyncIterator[Entry]:
        """The entries whose cookies are above `after`, in order; a caller may stop at any."""
        after = max(after, DOT_DOT_COOKIE)
        if after == DOT_DOT_COOKIE:
            self._page = None  # From the start: rewinddir(3) sees the directory as it is now.
        while True:
            page = self._page
            if page is None or not page.after <= after <= (page.entries[-1].cookie if page.entries else page.after):
                asked_at, tick = trio.current_time(), self._cache.tick()
                entries, at_end = await read_page(self._metadata, self._cache, self.ino, _position(after))
                if at_end and after == DOT_DOT_COOKIE:
                    self._cache.complete(self.ino, asked_at, tick)
                page = self._page = _Page(after, entries, at_end)
            for entry in page.entries:
                if entry.cookie > after:
                    after = entry.cookie
                    yield entry
            if page.at_end:
                return
            self._page = None


def _position(after: int) -> int:
    """The start counts as 0, so that a first page is known as one."""
    return 0 if after == DOT_DOT_COOKIE else after
