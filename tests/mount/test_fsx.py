"""Random operations on files whose chunks are of the smallest, a middle and the usual size, checked against a copy.

After the idea of fsx: see tests/support/random_file.py. DCS_TEST_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB, run, sha256_of, write_pattern
from tests.support.random_file import RandomFile

KIB = 1024


@dataclass(frozen=True)
class Variant:
    """A chunk size, and how much is done there on each change: small chunks make many extents."""

    chunk_size: int
    bytes_max: int
    longest: int
    operations: int


VARIANTS = [
    Variant(KIB, 64 * KIB, 3 * KIB, 8_000),
    Variant(64 * KIB, 2 * MIB, 150 * KIB, 36_000),
    Variant(8 * MIB, 40 * MIB, 200 * KIB, 36_000),
]
TURNS = 10


@pytest.fixture(scope="module", params=VARIANTS, ids=["1KiB", "64KiB", "8MiB"])
def variant(request: pytest.FixtureRequest) -> Variant:
    assert isinstance(request.param, Variant)
    return request.param


@pytest.fixture(scope="module")
def sized(variant: Variant) -> Iterator[Cluster]:
    """A cluster with this chunk size and two mounts. At the end its extents are what its files show."""
    with Cluster(CHUNK_SIZE=str(variant.chunk_size)) as cluster:
        cluster.mount("one")
        cluster.mount("two")
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture
def mount(sized: Cluster) -> Mount:
    return sized.mounts[0]


def random_file(path: Path, variant: Variant) -> RandomFile:
    seed = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    print(f"DCS_TEST_SEED={seed}")
    return RandomFile(
        path, bytes_max=variant.bytes_max, edge=variant.chunk_size, longest=variant.longest, seed=seed
    )  # fmt: skip


def drop_caches() -> None:
    """The kernel's clean pages, names and inodes go, if we may."""
    with suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def test_a_file_has_its_clusters_chunk_size_and_reads_back(mount: Mount, variant: Variant) -> None:
    size = min(3 * MIB, 300 * variant.chunk_size) + 17
    digest = write_pattern(mount.path / "a", size)
    run("cp", mount.path / "a", mount.path / "b")
    mount.remount()
    assert sha256_of(mount.path / "a") == sha256_of(mount.path / "b") == digest
    assert (mount.path / "b").stat().st_size == size


@pytest.mark.timeout(600)
def test_random_operations_on_a_file_do_what_they_do_in_memory(mount: Mount, variant: Variant) -> None:
    with random_file(mount.path / "random", variant) as file:
        file.run(variant.operations)
    file.check()
    assert min(file.counts.values()) > 20
    mount.remount()
    file.check()


@pytest.mark.timeout(600)
def test_random_operations_with_a_remount_every_now_and_then(mount: Mount, variant: Variant) -> None:
    """What was closed is what the next daemon finds, and it starts from nothing."""
    with random_file(mount.path / "remounted", variant) as file:
        for _ in range(TURNS):
            file.run(variant.operations // 100)
            with file.put_down():
                mount.remount()
            file.check()
            file.run(variant.operations // 100)
            drop_caches()
    file.check()


@pytest.mark.timeout(600)
def test_two_mounts_take_turns_with_a_file(sized: Cluster, variant: Variant) -> None:
    """Close to open: whoever opens after the other's close goes on from there, whatever it remembers of the file."""
    paths = [mount.path / "shared" for mount in sized.mounts]
    chance = random.Random()
    with random_file(paths[0], variant) as file:
        for _ in range(TURNS * 10):
            file.run(chance.randint(1, variant.operations // 1000))
            with file.put_down():
                file.path = chance.choice(paths)
    file.check()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_very_many_random_operations_on_files(mount: Mount, variant: Variant) -> None:
    for _ in range(10):
        with random_file(mount.path / "random", variant) as file:
            file.run(2 * variant.operations)
        file.check()
