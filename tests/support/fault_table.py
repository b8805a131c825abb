"""The faults that the file system survives, and a table of those that a run has injected.

A test says with `@pytest.mark.fault("S1", "S3")` which it is about; what watches a program says with
`note_stall` how long its longest call took. `tests/conftest.py` prints the table at the end of the run;
`deploy/test` runs them all, `pytest -m fault tests` these alone.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ROWS = {
    "S1": "a node killed while it is written to",
    "S2": "a node killed while it is read from",
    "S3": "a node hangs",
    "S4": "two of three nodes down",
    "S5": "all nodes down",
    "S6": "nodes restarted one after another",
    "S7": "a node killed inside a store",
    "S8": "power loss: unsynced data gone",
    "S9": "a replica's file truncated",
    "S10": "a bit flipped in data or footer",
    "S11": "all replicas of an extent damaged",
    "S12": "a replica's file deleted, a disk emptied",
    "S13": "fsync or write fails with EIO",
    "S14": "disks full",
    "S15": "a disk read-only",
    "S16": "a slow disk",
    "S17": "a node out of descriptors",
    "S18": "two processes on one data directory",
    "S19": "a node drained while another dies",
    "M1": "one of two naming servers killed at random",
    "M2": "the only naming server restarts",
    "M3": "a naming server dies after Redis did the work",
    "M4": "Redis killed and restarted",
    "M5": "Redis hangs for 10 s",
    "M6": "Redis hangs for 120 s",
    "M7": "Sentinel: the primary killed or hung",
    "M8": "Sentinel: split brain",
    "M9": "all Sentinels down, then the replicas",
    "M10": "Redis Cluster: the master killed, the slot moved",
    "M11": "Redis full, its disk full",
    "M12": "Redis empty, or restored from earlier",
    "M13": "a naming server's view of what another changed",
    "M14": "the log of Redis cut short or damaged",
    "M15": "the naming server's clock jumps",
    "N1": "no packets between a mount and a node",
    "N2": "connections refused or reset",
    "N3": "no node can be reached",
    "N4": "the naming server cannot be reached",
    "N5": "requests arrive, answers are lost",
    "N6": "a slow, lossy network that flips bits",
    "N7": "an answer drips",
    "N8": "late, doubled and replayed requests",
    "C1": "the mount killed, and mounted again",
    "C2": "the mount sleeps through its lease",
    "C3": "unmounted with unwritten data",
    "C4": "nodes hang under many writers: memory",
    "C5": "a mount out of descriptors",
    "C6": "a program killed while it waits",
    "C7": "the mount's clock is wrong",
    "R1": "one name made by several at once",
    "R2": "renames against each other",
    "R3": "appends from several writers",
    "R4": "writes into disjoint parts of a chunk",
    "R5": "unlinked or renamed over while open elsewhere",
    "R6": "truncation against writes and appends",
    "R7": "a directory read while it changes",
}

_stalls: list[float] = []


def note_stall(seconds: float) -> None:
    """The longest call of a program that the test watched."""
    _stalls.append(seconds)


@contextlib.contextmanager
def stall_noted() -> Iterator[None]:
    """Of what is called within, whether it fails or not."""
    began = time.monotonic()
    try:
        yield
    finally:
        note_stall(time.monotonic() - began)


def take_stall() -> float | None:
    """The longest that was noted since the last time this was asked."""
    longest = max(_stalls, default=None)
    _stalls.clear()
    return longest


@dataclass(frozen=True, slots=True)
class Shown:
    rows: tuple[str, ...]
    test: str
    passed: bool
    seconds: float
    stall_seconds: float | None


def table(shown: Iterable[Shown]) -> list[str]:
    """A line per row and test function, in the order of the rows; of several cases the longest stall."""
    cases: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    for one in shown:
        for row in one.rows:
            cases[row, one.test.partition("[")[0]].append(one)
    order, width = list(ROWS), max(map(len, ROWS.values()))
    lines = [f"{'':4} {'fault':{width}} {'passed':>7} {'took':>8} {'stall':>7}  test"]
    for (row, test), ones in sorted(cases.items(), key=lambda case: order.index(case[0][0])):
        stalls = [one.stall_seconds for one in ones if one.stall_seconds is not None]
        lines.append(
            f"{row:4} {ROWS[row]:{width}} {sum(one.passed for one in ones):3}/{len(ones):<3} "
            f"{sum(one.seconds for one in ones):6.1f} s {f'{max(stalls):.2f} s' if stalls else '':>7}  {test}"
        )
    return lines
