"""What one disk holds: how many replicas and bytes, and a digest that tells whether it is what it was.

Kept current by every store and deletion, bucket by bucket, and compared with the directory now
and then: a replica that went away without an order is noticed though nobody reads it. The
digest is a sum over the ids, so that it changes with each of them and does not depend on their
order; disks' digests add up to the node's.

Any thread; `_lock` is held for arithmetic only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from servers.protocol.ids import ExtentId
from servers.storage.data_directory import BUCKETS, DataDirectory

_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Held:
    count: int = 0
    digest: int = 0
    bytes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.count + other.count, (self.digest + other.digest) % _MODULUS, self.bytes + other.bytes)

    def __sub__(self, other: Held) -> Held:
        return Held(self.count - other.count, (self.digest - other.digest) % _MODULUS, self.bytes - other.bytes)

    def __str__(self) -> str:
        """Equal for equal sets of extents, and practically never otherwise."""
        return f"{self.count}:{self.digest:016x}"


def held(extent: ExtentId, file_bytes: int) -> Held:
    return Held(1, int.from_bytes(blake2b(extent, digest_size=8).digest(), "big"), file_bytes)


def total(parts: Iterable[Held]) -> Held:
    return sum(parts, Held())


class Holdings:
    def __init__(self, directory: DataDirectory) -> None:
        """Looks at every file."""
        self._directory = directory
        self._lock = threading.Lock()
        self._buckets = [self._look(bucket) for bucket in range(BUCKETS)]
        self._changing = [0] * BUCKETS
        self._versions = [0] * BUCKETS
        self._total = total(self._buckets)
        self.lost = 0
        """Replicas that went away without an order since the start, as far as was noticed."""

    @property
    def total(self) -> Held:
        return self._total

    @contextmanager
    def changing(self, extent: ExtentId) -> Iterator[None]:
        """Around everything that makes or removes the replica's name, up to its `add` or `remove`."""
        with self._lock:
            self._changing[extent[-1]] += 1
        try:
            yield
        finally:
            with self._lock:
                self._changing[extent[-1]] -= 1
                self._versions[extent[-1]] += 1

    def add(self, extent: ExtentId, file_bytes: int) -> None:
        one = held(extent, file_bytes)
        with self._lock:
            self._buckets[extent[-1]] += one
            self._total += one

    def remove(self, extent: ExtentId, file_bytes: int) -> None:
        one = held(extent, file_bytes)
        with self._lock:
            self._buckets[extent[-1]] -= one
            self._total -= one

    def recount(self, bucket: int) -> int:
        """How many replicas of the bucket went away by themselves; what is there now counts from here on.

        0 while the bucket changes: it will be looked at again. Raises OSError. Blocks.
        """
        with self._lock:
            version, known = self._versions[bucket], self._buckets[bucket]
            if self._changing[bucket]:
                return 0
        listed = total(held(extent, 0) for extent in self._directory.bucket_names(bucket))
        if str(listed) == str(known):
            return 0
        found = self._look(bucket)
        with self._lock:
            if self._changing[bucket] or self._versions[bucket] != version or str(found) == str(known):
                return 0
            self._buckets[bucket] = found
            self._total += found - known
            lost = max(1, known.count - found.count)
            self.lost += lost
        return lost

    def _look(self, bucket: int) -> Held:
        return total(held(extent, size) for extent, size in self._directory.bucket_sizes(bucket))
