"""Extents that wait for repair, as many as there is room for: the most endangered stay.

Called by the repair job. Knows nothing of nodes: how endangered an extent is, it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from servers.naming.background.repair_plan import Held
from servers.protocol.ids import ExtentId


class Backlog:
    """At most `count_max` extents, by how many good copies each had when it was put here."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._good: dict[ExtentId, int] = {}
        self._by_good: dict[int, dict[ExtentId, Held]] = {}

    def __len__(self) -> int:
        return len(self._good)

    def __iter__(self) -> Iterator[Held]:
        """The most endangered first. Nothing may be put here or taken meanwhile."""
        for good in sorted(self._by_good):
            yield from self._by_good[good].values()

    def get(self, extent: ExtentId) -> Held | None:
        good = self._good.get(extent)
        return None if good is None else self._by_good[good][extent]

    def pop(self, extent: ExtentId) -> Held | None:
        """What was there of it is not any more."""
        good = self._good.pop(extent, None)
        if good is None:
            return None
        some = self._by_good[good]
        held = some.pop(extent)
        if not some:
            del self._by_good[good]
        return held

    def put(self, held: Held, good: int) -> Held | None:
        """Puts it, in the place of what was known of it. Returned is what had no room: one of the least endangered,
        perhaps this one."""
        self.pop(held.extent)
        crowded_out = None
        if len(self._good) >= self._count_max:
            most = max(self._by_good)
            if good >= most:
                return held
            crowded_out = self.pop(next(reversed(self._by_good[most])))
        self._good[held.extent] = good
        self._by_good.setdefault(good, {})[held.extent] = held
        return crowded_out

    def longest_here(self, count: int) -> list[Held]:
        return [self._by_good[self._good[extent]][extent] for extent in islice(self._good, count)]

    def drain(self) -> list[Held]:
        """All, and none is left."""
        everything = list(self)
        self._good.clear()
        self._by_good.clear()
        return everything
