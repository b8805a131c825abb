"""Looks again and again, in a thread, at how many good copies there are of each extent that a file shows.

    with CopiesWatch(cluster, asked=3) as watch:
        cluster.dcs("drain", "1", "--wait")

A copy counts when the naming server's map names its node and it lies on that node's disk. What once had as many as
were asked for must have so many ever after: a writer may have done with fewer, and repair brings the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.cluster import Cluster, Node

BETWEEN_LOOKS_SECONDS = 0.3
LOOKS_MIN = 3
"""With fewer nothing is shown."""


class CopiesWatch:
    def __init__(self, cluster: Cluster, asked: int, is_good: Callable[[Path], bool] = lambda path: True) -> None:
        """`is_good`: judges a replica's file, where being there is not enough. It may be gone by then."""
        self._cluster = cluster
        self._asked = asked
        self._is_good = is_good
        self._away: frozenset[int] = frozenset()
        self._once_whole: set[str] = set()
        self._looks = 0
        self._stop_now = threading.Event()
        self._threads = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._watching = self._threads.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_now.set()
        self._threads.shutdown()
        if error is None:
            self._watching.result()
            assert self._looks >= LOOKS_MIN, f"only {self._looks} looks"
            assert self._once_whole, "no extent ever had its copies"
            print(f"{self._looks} looks at the copies of {len(self._once_whole)} extents", flush=True)

    def lose(self, node: Node) -> None:
        """From here on the copies on this node do not count, and one fewer is enough. To be called before it dies."""
        self._away |= {node.number}

    def _run(self) -> None:
        while not self._stop_now.is_set():
            self._look()
            self._looks += 1
            self._stop_now.wait(BETWEEN_LOOKS_SECONDS)

    def _look(self) -> None:
        away = self._away
        enough = self._asked - len(away)
        maps = {extent: nodes - away for extent, nodes in self._maps().items()}
        short = {extent: nodes for extent, nodes in maps.items() if len(nodes) < enough}
        lost = {extent: sorted(short[extent]) for extent in short.keys() & self._once_whole}
        assert not lost, f"of these the map names too few nodes: {lost}"
        held = self._held(maps)
        on_disk = {extent: {n for n in nodes if extent in held[n]} for extent, nodes in maps.items()}
        thin = {extent for extent, nodes in on_disk.items() if len(nodes) < enough}
        if thin & self._once_whole:  # Since the map was asked a copy may have moved, or the file may have changed.
            again = self._maps()
            lost = {e: sorted(on_disk[e]) for e in thin & self._once_whole if again.get(e, set()) - away == maps[e]}
            assert not lost, f"of these only so many good copies are on the disks: {lost}"
        self._once_whole |= on_disk.keys() - thin

    def _maps(self) -> dict[str, set[int]]:
        """The nodes of each extent, as the naming server tells them."""
        found: dict[str, set[int]] = {}
        after: str | None = "0"
        while after is not None:
            page = self._cluster.rest("GET", f"/v1/extents?after={after}").json()
            found |= {row["id"]: set(row["nodes"]) for row in page["extents"]}
            after = page["next"]
        return found

    def _held(self, maps: dict[str, set[int]]) -> dict[int, set[str]]:
        """What of these each node has on its disk, and good."""
        return {
            node.number: {
                path.name
                for path in (node.data_dir / "extents").glob("*/*")
                if node.number in maps.get(path.name, ()) and self._is_good(path)
            }
            for node in self._cluster.nodes
        }
