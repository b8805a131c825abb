"""Faults of all kinds, drawn by chance, and what becomes of the memory of everybody meanwhile.

`Chaos.strike` injects one fault, or two that the contract allows together, holds it for a while and undoes it;
`Chaos.recover` waits until the cluster is whole again. The chance decides what, whom and how long.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import Cluster, Replica
from tests.support.processes import Process, wait_for
from tests.support.shift import Shift, Site

HURT_FILES = 6
RECOVERY_SECONDS = 240.0
"""Longer than the lease of a killed mount and the time that a mount keeps away from a node."""
HOLD_SECONDS = 8.0
COPIES = 3


@dataclass(frozen=True)
class Hurt:
    """A replica that was damaged or deleted; `inode` is that of its file."""

    replica: Replica
    inode: int


class Chaos:
    """`shift` is who works at the moment; `shifts` all whose files are still there."""

    def __init__(self, cluster: Cluster, sites: list[Site], chance: random.Random) -> None:
        self.shift: Shift | None = None
        self.shifts: list[Shift] = []
        self._cluster = cluster
        self._sites = sites
        self._chance = chance
        self._hurt: list[Hurt] = []
        of_node, of_naming, of_redis = (self._node, lambda: cluster.naming, lambda: cluster.redis)
        self._faults: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "mount killed": self._mount_killed,
            "mount hangs": lambda: self._hanging(self._chance.choice(cluster.mounts).process),
            "node killed": lambda: self._killed(of_node()),
            "node hangs": lambda: self._hanging(of_node()),
            "node stopped": lambda: self._stopped(of_node()),
            "replicas damaged": self._damaged,
            "Redis killed": lambda: self._killed(of_redis()),
            "Redis hangs": lambda: self._hanging(of_redis()),
            "naming server killed": lambda: self._killed(of_naming()),
            "naming server hangs": lambda: self._hanging(of_naming()),
        }
        self.draws: list[tuple[str, ...]] = [
            *((name,) for name in self._faults),
            # In this order: what is undone last needs what is undone first.
            ("mount killed", "node killed"), ("mount killed", "node hangs"), ("mount killed", "replicas damaged"),
            ("mount killed", "naming server killed"), ("mount killed", "Redis hangs"),
            ("node killed", "naming server killed"), ("node killed", "Redis killed"), ("node hangs", "Redis hangs"),
            ("replicas damaged", "Redis killed"), ("replicas damaged", "naming server killed"),
        ]  # fmt: skip

    def strike(self, kinds: tuple[str, ...]) -> None:
        with ExitStack() as faults:
            for kind in kinds:
                faults.enter_context(self._faults[kind]())
            time.sleep(self._chance.uniform(0.2, HOLD_SECONDS))

    def recover(self) -> None:
        """All nodes are alive, what was hurt is found, and nothing lacks a copy."""
        self._cluster.wait_alive(len(self._cluster.nodes))
        wait_for(lambda: all(map(self._is_over, self._hurt)), f"healed: {self._hurt}", RECOVERY_SECONDS)
        self._hurt.clear()
        wait_for(self.is_whole, "the cluster is whole", RECOVERY_SECONDS)

    def is_whole(self) -> bool:
        answer = self._cluster.rest("GET", "/v1/status")
        if answer.status_code != 200:
            return False
        status = answer.json()
        lacking = status["damaged"] or status["under_replicated"] or status["missing"]
        return not (lacking or status["repair"]["surveying"] or status["repair"]["by_danger"])

    def _is_over(self, hurt: Hurt) -> bool:
        """The bad file is away; there are enough copies, or none because the file was removed."""
        paths = [path for node in self._cluster.nodes if (path := node.path_of(hurt.replica.extent))]
        with suppress(FileNotFoundError):
            inodes = {path.stat().st_ino for path in paths if path == hurt.replica.path}
            return hurt.inode not in inodes and (not paths or len(paths) >= COPIES)
        return False

    def _node(self) -> Process:
        return self._chance.choice(self._cluster.nodes)

    @contextmanager
    def _killed(self, process: Process) -> Iterator[None]:
        process.kill()
        yield
        process.start()

    @contextmanager
    def _stopped(self, process: Process) -> Iterator[None]:
        process.stop()
        yield
        process.start()

    @contextmanager
    def _hanging(self, process: Process) -> Iterator[None]:
        process.pause()
        yield
        process.resume()

    @contextmanager
    def _mount_killed(self) -> Iterator[None]:
        assert self.shift
        site = self._chance.choice(self._sites)
        site.is_up.clear()
        site.lives.value += 1
        site.mount.process.kill()
        self.shift.mount_killed(site)
        site.mount.detach()
        yield
        site.mount.start()
        site.is_up.set()
        self.shift.mount_is_back(site)

    @contextmanager
    def _damaged(self) -> Iterator[None]:
        """Replicas of one node, of files that are promised, are cut, deleted, or have one bit flipped."""
        node = self._chance.choice(self._cluster.nodes)
        names = [f"/{s.place}/{name}" for s in self.shifts for name in sorted(s.promised().kept)]
        for name in self._chance.sample(names, min(len(names), HURT_FILES * 3)):
            with suppress(AssertionError, FileNotFoundError, KeyError):  # The file may have been removed.
                every = self._cluster.replicas_of(name)
                own = [replica for replica in every if replica.node == node.number]
                good = [r for r in own if sum(r.extent == other.extent for other in every) >= COPIES]
                if good and len(self._hurt) < HURT_FILES:
                    self._damage(self._chance.choice(good))
        yield

    def _damage(self, replica: Replica) -> None:
        inode = replica.path.stat().st_ino
        kind = self._chance.choice(("flipped", "cut", "deleted"))
        if kind == "deleted":
            self._cluster.delete_chunk_on_disk(replica)
        elif kind == "cut":
            self._cluster.truncate_chunk_on_disk(replica, self._chance.randrange(replica.path.stat().st_size))
        else:
            self._cluster.corrupt_chunk_on_disk(replica, self._chance.randrange(replica.path.stat().st_size))
        self._hurt.append(Hurt(replica, inode))


class MemoryWatch(threading.Thread):
    """The resident memory of every process of a cluster, once a second, over each of its lives."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._processes = [
            cluster.redis, cluster.naming, *cluster.nodes, *(mount.process for mount in cluster.mounts)
        ]  # fmt: skip
        self._lives: dict[tuple[str, int], list[int]] = {}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(1):
            for process in self._processes:
                if process.is_running and (size := resident_bytes(process.pid)):
                    self._lives.setdefault((process.name, process.pid), []).append(size)

    def finish(self) -> None:
        self._end.set()
        self.join(10)

    def knows_all(self, seconds: int) -> bool:
        """Each process has had a life of so many seconds."""
        return {name for (name, _), sizes in list(self._lives.items()) if len(sizes) >= seconds} == {
            process.name for process in self._processes
        }

    def growth(self, warm_seconds: int) -> Iterator[tuple[str, int, int, int]]:
        """Of each life of twice that length: whose, how many seconds, the peak that any of its lives had when warm, and
        its own at the end. One life fills its caches sooner than another; to grow with age is what none may."""
        warm: Counter[str] = Counter()
        for (name, _), sizes in self._lives.items():
            warm[name] = max(warm[name], *sizes[:warm_seconds])
        for (name, _), sizes in self._lives.items():
            if len(sizes) >= 2 * warm_seconds:
                yield name, len(sizes), warm[name], max(sizes[-warm_seconds // 2 :])


def resident_bytes(pid: int) -> int:
    """0 when it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
