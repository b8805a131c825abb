"""How fast a dead node's copies are made anew, beside what the disk can do.

    python -m tests.bench.healing [MIB]

Writes MIB (1024) of random bytes to a mount of four nodes, three copies each, kills one node and waits until every
extent has three copies again, on stable storage and in the metadata. Prints the rate of healing, from its first copy
on, and for comparison how fast this process writes as many bytes to the same disk, one file of 8 MiB after the other,
each with fsync: MB/s, 10^6 bytes. All nodes are on this machine and share its disk and its processors; as root, what
they read is in no cache. A node may fetch as fast as it can: REPAIR_BYTES_PER_SECOND is 10 GB/s here, 100 MB/s where
nobody says otherwise.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.commands import MIB
from tests.support.processes import wait_for

FILE_MIB = 64
CHUNK = 8 * MIB
HEALED_SECONDS = 300.0


def main() -> None:
    files = max(1, int(sys.argv[1] if len(sys.argv) > 1 else "1024") // FILE_MIB)
    with Cluster(
        4, DEAD_AFTER_SECONDS="8", REPAIR_WAIT_SECONDS="1", REPAIR_BYTES_PER_SECOND=str(10**10)
    ) as cluster:  # fmt: skip
        mount = cluster.mount()
        for number in range(files):
            (mount.path / f"{number}").write_bytes(os.urandom(FILE_MIB * MIB))
        forget_what_was_read()
        count, seconds = heal(cluster)
        alone = write_alone(cluster.directory / "scratch", count)
    size = count * CHUNK / 1e6
    print(f"{count} extents, {size:.0f} MB: healed in {seconds:.1f} s, {size / seconds:.0f} MB/s")
    print(f"the disk alone: {size / alone:.0f} MB/s; healing has {alone / seconds:.0%} of that")


def forget_what_was_read() -> None:
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def heal(cluster: Cluster) -> tuple[int, float]:
    """Kills a node. Returns how many extents it held, and the seconds from the first copy until all were healed."""
    victim, *others = cluster.nodes
    lost = victim.extents()
    before = {node: node.extents() for node in others}
    victim.kill()

    def made() -> int:
        return sum(len(node.extents() - before[node]) for node in others)

    wait_for(made, "healing begins", HEALED_SECONDS)
    began = time.monotonic()
    wait_for(lambda: made() >= len(lost), "all has three copies again", HEALED_SECONDS)
    wait_for(lambda: is_told(cluster, len(lost)), "the metadata says so", HEALED_SECONDS)
    return len(lost), time.monotonic() - began


def is_told(cluster: Cluster, count: int) -> bool:
    status = cluster.status()
    return bool(status["repair"]["copies"] >= count and not status["under_replicated"])


def write_alone(scratch: Path, count: int) -> float:
    """The seconds that as many extents take the disk, with nothing else to do."""
    os.sync()
    data, began = os.urandom(CHUNK), time.monotonic()
    for _ in range(count):
        with scratch.open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
    return time.monotonic() - began


if __name__ == "__main__":
    main()
