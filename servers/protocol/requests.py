"""Counting requests: plain numbers, cheap enough for the hottest path. Pure; see metrics.py for how they are told."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

BOUNDS_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(slots=True)
class Verb:
    seconds: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    """How many took at most the bound with this index, and longer than the one before; the last: longer than all."""
    failures: int = 0

    @property
    def count(self) -> int:
        return sum(self.within)

    def seconds_of(self, share: float) -> float:
        """The bound that this share of them did not exceed; infinite where that is beyond the last."""
        wanted = share * self.count
        for bound, so_far in zip(BOUNDS_SECONDS, accumulate(self.within), strict=False):
            if so_far >= wanted:
                return bound
        return inf


class Requests:
    """Requests by verb: how many, how long they took, how many failed. One thread."""

    def __init__(self) -> None:
        self.verbs: dict[str, Verb] = {}

    def observe(self, verb: str, seconds: float, *, failed: bool) -> None:
        one = self.verbs.get(verb)
        if one is None:
            one = self.verbs[verb] = Verb()
        one.seconds += seconds
        one.within[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        if failed:
            one.failures += 1
