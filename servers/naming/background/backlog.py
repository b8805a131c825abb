"""Extents that wait for repair, as many as there is room for: the most endangered stay.

Called by the repair job. Knows nothing of nodes: how endangered an extent is, it is told.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        """The most endangered first. Nothing is put here or taken meanwhile: copy it for a longer look."""
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

    def put(self, held: Held, good: int) -> int | None:
        """Puts it, in the place of what was known of it. Where there is no room one of the least endangered is not
        here afterwards, perhaps this one: returned is how many good copies that had."""
        self.pop(held.extent)
        crowded_out = None
        if len(self._good) >= self._count_max:
            crowded_out = max(self._by_good, default=good)
            if good >= crowded_out:
                return good
            last = next(reversed(self._by_good[crowded_out]))
            self.pop(last)
        self._good[held.extent] = good
        self._by_good.setdefault(good, {})[held.extent] = held
        return crowded_out

    def drain(self) -> list[Held]:
        """All, and none is left."""
        everything = list(self)
        self._good.clear()
        self._by_good.clear()
        return everything
