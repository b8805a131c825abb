"""Counting requests: plain numbers, cheap enough for the hottest path. Pure; see metrics.py for how they are told."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

FIGURES_TOLD = 4
"""Of so many verbs, the slowest, a storage node or a mount tells the naming server."""
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


@dataclass(frozen=True, slots=True)
class Figures:
    """What is told of one verb's requests."""

    verb: str
    count: int
    failures: int
    half_ms: int | None
    """Half of them took so long at most; None: longer than any bound."""
    most_ms: int | None
    """99 in 100 did."""


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


def figures(*counted: Requests) -> list[Figures]:
    """Of all verbs, the slowest first. Any thread."""
    rows = [row for requests in counted for row in list(requests.verbs.items())]
    slowest = sorted(rows, key=lambda row: (row[1].seconds_of(0.99), row[1].seconds), reverse=True)
    return [
        Figures(verb, one.count, one.failures, _ms(one.seconds_of(0.5)), _ms(one.seconds_of(0.99)))
        for verb, one in slowest
    ]


def _ms(seconds: float) -> int | None:
    return None if seconds == inf else round(seconds * 1000)
