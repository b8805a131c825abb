"""One open directory being listed.

Called by the file system for each handle of opendir(3). Positions are the cookies of the entries:
an entry keeps its cookie while it is there, so a scan meets it once, whatever others do
meanwhile, and telldir(3) positions stay good.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from fusefs.metadata.client import MetadataClient
from fusefs.vfs.attribute_cache import AttributeCache
from servers.protocol.ids import InodeNumber
from servers.protocol.limits import NAMES_PER_CALL_MAX
from servers.protocol.naming_api import unpack_attributes

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

    @property
    def last(self) -> int:
        """The position behind it."""
        return self.entries[-1].cookie if self.entries else self.after


class _Listing:
    """The pages of a directory, read one after the other, and whether all that they hold was there at once."""

    def __init__(self, metadata: MetadataClient, cache: AttributeCache, ino: InodeNumber) -> None:
        self._metadata = metadata
        self._cache = cache
        self._ino = ino
        self._number = cache.new_listing()
        self._asked_at, self._tick = trio.current_time(), cache.tick()
        self._ctimes: set[int] = set()
        self._next = 0

    async def read(self, after: int) -> tuple[list[Entry], bool]:
        """As `_read_page`; a last page whose pages before it were all read makes the directory complete."""
        entries, at_end, ctime_ns = await _read_page(self._metadata, self._cache, self._ino, after, self._number)
        self._ctimes.add(ctime_ns)
        follows, self._next = after == self._next, entries[-1].cookie if entries else after
        if not follows:
            self._next = -1
        elif at_end:
            same = self._ctimes.pop() if len(self._ctimes) == 1 else 0
            self._cache.complete(self._ino, self._asked_at, self._tick, self._number, same)
        return entries, at_end


async def _read_page(
    metadata: MetadataClient, cache: AttributeCache, ino: InodeNumber, after: int, listing: int
) -> tuple[list[Entry], bool, int]:
    """The entries after a cookie, at most a page, whether the directory ends there, and its ctime, 0 for the trash.

    Whatever is learned goes to the cache too. Raises as `ask`.
    """
    asked_at, tick = trio.current_time(), cache.tick()
    at_end, own, *rows = await metadata.ask("readdir", ino=ino, after=after, count=NAMES_PER_CALL_MAX)
    entries = []
    for i in range(0, len(rows), 4):
        name, cookie, child, blob = rows[i : i + 4]
        if blob is None:
            continue  # Forgotten in this very moment; its name goes with it.
        entries.append(Entry(name, cookie, child, blob))
        cache.put_entry(ino, name, child, asked_at, tick, listing)
        cache.put_listed(child, blob, asked_at)
    return entries, bool(at_end), unpack_attributes(ino, own).ctime_ns if own else 0


async def learn_names(metadata: MetadataClient, cache: AttributeCache, ino: InodeNumber) -> bool:
    """Learns all names of a directory that is not too large for that; False where it is. Raises as `ask`."""
    listing, after = _Listing(metadata, cache, ino), 0
    for _ in range(LEARNED_PAGES_MAX):
        entries, at_end = await listing.read(after)
        if at_end:
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
        self._listing = _Listing(metadata, cache, ino)

    async def entries(self, after: int) -> Sequence[Entry]:
        """The next entries whose cookies are above `after`, in order: at most a page, none at the directory's end."""
        after = max(after, DOT_DOT_COOKIE)
        if after == DOT_DOT_COOKIE:
            self._page = None  # From the start: rewinddir(3) sees the directory as it is now.
            self._listing = _Listing(self._metadata, self._cache, self.ino)
        while True:
            page = self._page
            if page is None or not page.after <= after <= page.last:
                entries, at_end = await self._listing.read(_position(after))
                page = self._page = _Page(after, entries, at_end)
            found = page.entries[bisect_right(page.entries, after, key=_cookie) :]
            if found or page.at_end:
                return found
            self._page = None


def _cookie(entry: Entry) -> int:
    return entry.cookie


def _position(after: int) -> int:
    """The start counts as 0, so that a first page is known as one."""
    return 0 if after == DOT_DOT_COOKIE else after
