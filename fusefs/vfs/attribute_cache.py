"""Names and attributes that were seen lately, and for how long they may still be believed.

Called by the file system. Everything is counted from when the question was *sent*, so nothing
is believed longer than `seconds`. Attributes are ordered by ctime and data version, which never
go back: an older answer that arrives late is not taken. Names have no such order: an answer that
was asked for before our own last change of that name is not taken.

A directory that was listed as a whole is `complete` for that time: a name that is not in it
is known not to exist. Nothing here awaits.

Every change of a directory's names moves its ctime. Where all names were known as of one ctime and a
change of ours finds that same one, nobody else changed them: all are known again, as of the new
ctime and from when our change was sent. So many changes in a row ask for no name twice.

    listed whole, or made by us, at ctime t ──▶ ours: t was before, t' is now ──▶ ours: t' was before, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from servers.protocol.ids import InodeNumber
from servers.protocol.naming_api import NS, Attributes, unpack_attributes

ENTRIES_MAX = 200_000
MISSES_BEFORE_LISTING = 3

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Known:
    attributes: Attributes | None
    blob: bytes
    """Unpacked when somebody looks: most of a listing nobody does."""
    until: float


@dataclass(slots=True)
class _Entry:
    ino: InodeNumber | None
    until: float
    changed: int
    """The tick of our own change that made it so; 0 when it was only seen."""
    listing: int = 0
    """That it was seen in, or that it continues."""


@dataclass(slots=True)
class _Directory:
    complete_until: float = 0.0
    listing: int = 0
    ctime_ns: int = 0
    """Of when the names of that listing were all its names; 0 where that is not known."""
    doubted: int = 0
    """The tick of our own last change whose outcome is not known."""
    misses: int = 0
    missed_at: float = 0.0


class AttributeCache:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._inodes: dict[InodeNumber, _Known] = {}
        self._entries: dict[tuple[InodeNumber, bytes], _Entry] = {}
        self._directories: dict[InodeNumber, _Directory] = {}
        self._names: dict[InodeNumber, bytes] = {}
        self._tick = 0
        self._listings = 0
        self._forgotten = 0
        """The tick at which entries were last forgotten for want of room."""

    def statistics(self) -> dict[str, int]:
        return {"inodes": len(self._inodes), "entries": len(self._entries)}

    # ── attributes

    def attributes(self, ino: InodeNumber, now: float) -> tuple[Attributes, float] | None:
        """The attributes and the seconds for which they may still be believed."""
        known = self._inodes.get(ino)
        if known is None or known.until <= now:
            return None
        return self._unpacked(ino, known), known.until - now

    def last(self, ino: InodeNumber) -> Attributes | None:
        """The latest attributes, however old."""
        known = self._inodes.get(ino)
        return None if known is None else self._unpacked(ino, known)

    def _unpacked(self, ino: InodeNumber, known: _Known) -> Attributes:
        if known.attributes is None:
            known.attributes = unpack_attributes(ino, known.blob)
        return known.attributes

    def left(self, asked_at: float, now: float) -> float:
        """The seconds for which an answer may still be believed."""
        return max(0.0, asked_at + self.seconds - now)

    def put(self, ino: InodeNumber, blob: bytes, asked_at: float) -> Attributes:
        """The newest attributes: these, or others that came after them."""
        return self.newest(unpack_attributes(ino, blob), asked_at)

    def newest(self, fresh: Attributes, asked_at: float) -> Attributes:
        """As `put`. What came with `fresh` does not belong to newer ones."""
        known = self._inodes.get(fresh.ino)
        if known is not None and (known.until > asked_at or known.attributes is not None):
            current = self._unpacked(fresh.ino, known)
            if current.age > fresh.age:
                return current
        self._inodes[fresh.ino] = _Known(fresh, b"", asked_at + self.seconds)
        _bound(self._inodes)
        return fresh

    def put_listed(self, ino: InodeNumber, blob: bytes, asked_at: float) -> None:
        known = self._inodes.get(ino)
        if known is not None and self._unpacked(ino, known).age > unpack_attributes(ino, blob).age:
            return
        self._inodes[ino] = _Known(None, blob, asked_at + self.seconds)
        _bound(self._inodes)

    def forget_attributes(self, ino: InodeNumber) -> None:
        """The next look asks again."""
        self._inodes.pop(ino, None)

    # ── names

    def tick(self) -> int:
        """To be taken before a question about names is sent, and given back with the answer."""
        return self._tick

    def entry(self, parent: InodeNumber, name: bytes, now: float) -> tuple[InodeNumber | None, float] | None:
        """The inode behind the name, None for no such name, and for how long; or None when it is not known."""
        found = self._entries.get((parent, name))
        if found is not None and found.until > now:
            return found.ino, found.until - now
        directory = self._directories.get(parent)
        if directory is None or directory.complete_until <= now:
            return None
        if found is None:
            return None, directory.complete_until - now
        if found.listing != directory.listing or (found.ino is not None and not directory.ctime_ns):
            return None  # Learned apart from the listing, which may be the older or the newer of the two.
        return found.ino, directory.complete_until - now

    def put_entry(
        self, parent: InodeNumber, name: bytes, ino: InodeNumber | None, asked_at: float, tick: int, listing: int = 0
    ) -> None:
        """`listing`: the one that it was seen in."""
        known = self._entries.get((parent, name))
        directory = self._directories.get(parent)
        if (known is not None and known.changed > tick) or (directory is not None and directory.doubted > tick):
            return
        if known is not None and known.until > asked_at + self.seconds:
            return  # Known from a question that was asked later and answered sooner.
        if not listing and known is not None and known.ino == ino:
            listing = known.listing
        self._remember((parent, name), _Entry(ino, asked_at + self.seconds, 0, listing))

    def _remember(self, key: tuple[InodeNumber, bytes], entry: _Entry) -> None:
        self._entries[key] = entry
        if _bound(self._entries):  # What was forgotten may be what a listing showed, also one still being taken in.
            self._tick += 1
            self._forgotten = self._tick
            for directory in self._directories.values():
                directory.complete_until, directory.ctime_ns = 0.0, 0
        if entry.ino is not None:
            self._names[entry.ino] = key[1]
            _bound(self._names)

    def changed(
        self,
        parent: InodeNumber,
        names: Mapping[bytes, InodeNumber | None],
        parent_blob: bytes,
        before: Sequence[int],
        asked_at: float,
    ) -> None:
        """Our own change made the names mean these inodes, or nothing, and the directory what `parent_blob` says;
        `before`: the ctime that it had, in seconds and nanoseconds."""
        self._tick += 1
        directory, listing = self._directories.get(parent), 0
        if directory is not None and directory.ctime_ns:
            if directory.ctime_ns == before[0] * NS + before[1]:
                directory.ctime_ns = unpack_attributes(parent, parent_blob).ctime_ns
                directory.complete_until = max(directory.complete_until, asked_at + self.seconds)
                listing = directory.listing
            else:
                directory.ctime_ns = 0
        for name, ino in names.items():
            self._remember((parent, name), _Entry(ino, asked_at + self.seconds, self._tick, listing))
        self.put(parent, parent_blob, asked_at)

    def forget_entry(self, parent: InodeNumber, name: bytes) -> None:
        """Our own change failed in a way that leaves open what the name means now."""
        self._tick += 1
        directory = self._directory(parent)
        directory.doubted = self._tick
        directory.complete_until, directory.ctime_ns = 0.0, 0
        self._entries.pop((parent, name), None)
        self.forget_attributes(parent)

    def name_of(self, ino: InodeNumber) -> bytes:
        """A name the inode had lately; empty when none is known."""
        return self._names.get(ino, b"")

    # ── whole directories

    def new_listing(self) -> int:
        """To be given to `put_entry` and to `complete`."""
        self._listings += 1
        return self._listings

    def complete(self, parent: InodeNumber, asked_at: float, tick: int, listing: int = 0, ctime_ns: int = 0) -> None:
        """All entries of the directory were put, from questions sent at or after `asked_at` and `tick`; as part of this
        listing, where all were there at once, when the directory had this ctime."""
        directory = self._directory(parent)
        if max(directory.doubted, self._forgotten) <= tick:
            directory.complete_until = asked_at + self.seconds
            directory.listing, directory.ctime_ns = listing, ctime_ns

    def wants_listing(self, parent: InodeNumber, now: float) -> bool:
        """Whether so many names of this directory were asked for lately that a listing costs less."""
        directory = self._directory(parent)
        if now - directory.missed_at > self.seconds:
            directory.misses = 0
        directory.misses += 1
        directory.missed_at = now
        return directory.misses > MISSES_BEFORE_LISTING

    def list_later(self, parent: InodeNumber, now: float) -> None:
        """Listing the directory did not pay: names are asked for one by one for a while."""
        directory = self._directory(parent)
        directory.misses, directory.missed_at = -1000, now

    def _directory(self, ino: InodeNumber) -> _Directory:
        directory = self._directories.get(ino)
        if directory is None:
            directory = self._directories[ino] = _Directory(doubted=self._tick)
            _bound(self._directories)
        return directory


def _bound(table: dict[K, V]) -> bool:
    """Forgets the oldest tenth of a table that has grown too long; whether it did."""
    if len(table) <= ENTRIES_MAX:
        return False
    for key in list(islice(table, ENTRIES_MAX // 10)):
        del table[key]
    return True
