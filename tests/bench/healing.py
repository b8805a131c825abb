"""How fast a dead node's copies are made anew, beside what the disk can do.

    python -m tests.bench.healing [MIB]

Writes MIB (1024) of random bytes to a mount of four nodes, three copies each, kills one node and waits until every
extent has three copies again. Prints the rate of healing from its first copy to its last, and for comparison how fast
this process writes as many bytes to the same disk, one file of 8 MiB after the other, each with fsync: MB/s, 10^6
bytes. All nodes are on this machine and share its disk. A node may fetch as fast as it can: REPAIR_BYTES_PER_SECOND
is 10 GB/s here, 100 MB/s where nobody says otherwise.
"""

from __future__ import annotations

import os
import sys
import time

from tests.support.cluster import Cluster
from tests.support.commands import MIB
from tests.support.processes import wait_for

FILE_MIB = 64
CHUNK = 8 * MIB


def main() -> None:
    files = max(1, int(sys.argv[1] if len(sys.argv) > 1 else "1024") // FILE_MIB)
    with Cluster(
        4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="1", REPAIR_BYTES_PER_SECOND=str(10**10)
    ) as cluster:  # fmt: skip
        mount = cluster.mount()
        for number in range(files):
            (mount.path / f"{number}").write_bytes(os.urandom(FILE_MIB * MIB))
        victim, *others = cluster.nodes
        lost = victim.extents()
        before = {node: node.extents() for node in others}
        victim.kill()
        began: list[float] = []

        def healed() -> bool:
            made = sum(len(node.extents() - before[node]) for node in others)
            if made and not began:
                began.append(time.monotonic())
            return made >= len(lost)

        wait_for(healed, "all has three copies again", 300)
        seconds = time.monotonic() - began[0]
        scratch = cluster.directory / "scratch"
        data, start = os.urandom(CHUNK), time.monotonic()
        for _ in lost:
            with scratch.open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())
        alone = time.monotonic() - start
        size = len(lost) * CHUNK / 1e6
        print(f"{len(lost)} extents, {size:.0f} MB: healed in {seconds:.1f} s, {size / seconds:.0f} MB/s")
        print(f"the disk alone: {size / alone:.0f} MB/s; healing has {alone / seconds:.0%} of that")


if __name__ == "__main__":
    main()
