"""Clusters with chunks of the smallest, a middle and the usual size: all work the same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB, run, sha256_of, write_pattern
from tests.support.random_file import RandomFile

KIB = 1024
SIZES = [KIB, 64 * KIB, 8 * MIB]


@pytest.fixture(scope="module", params=SIZES, ids=["1KiB", "64KiB", "8MiB"])
def chunk_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def sized(chunk_size: int) -> Iterator[Mount]:
    """A mount of a cluster with this chunk size. At the end its extents are what its files show."""
    with Cluster(CHUNK_SIZE=str(chunk_size)) as cluster:
        mount = cluster.mount()
        yield mount
        mount.unmount()
        cluster.wait_clean()


def operations(path: Path, chunk_size: int, count: int, seed: int) -> RandomFile:
    bytes_max = max(64 * KIB, min(20 * MIB, 60 * chunk_size))
    print(f"seed {seed}")
    with RandomFile(path, bytes_max=bytes_max, edge=chunk_size, seed=seed) as file:
        file.run(count)
    file.check()
    return file


def test_a_file_has_its_clusters_chunk_size_and_reads_back(sized: Mount, chunk_size: int) -> None:
    size = min(3 * MIB, 300 * chunk_size) + 17
    digest = write_pattern(sized.path / "a", size)
    run("cp", sized.path / "a", sized.path / "b")
    sized.remount()
    assert sha256_of(sized.path / "a") == sha256_of(sized.path / "b") == digest
    assert (sized.path / "b").stat().st_size == size


@pytest.mark.timeout(400)
def test_random_operations_on_a_file_do_what_they_do_in_memory(sized: Mount, chunk_size: int) -> None:
    seed = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    file = operations(sized.path / "random", chunk_size, 3000, seed)
    assert min(file.counts.values()) > 20
    sized.remount()
    file.check()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_very_many_random_operations_on_files(sized: Mount, chunk_size: int) -> None:
    for _ in range(10):
        operations(sized.path / "random", chunk_size, 10_000, random.randrange(1 << 32))
        (sized.path / "random").unlink()
