"""One cluster and two mounts of it for all tests of this directory; every test has a directory of its own there.

A test that needs to unmount, kill or hurt makes a cluster or a mount of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount


@pytest.fixture(scope="session")
def mounted() -> Iterator[Cluster]:
    """A cluster of three nodes. At the end no extent is missing, and none is left that no file shows."""
    with Cluster() as cluster:
        yield cluster
        for mount in cluster.mounts:
            if mount.process.is_running:
                mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="session")
def mount(mounted: Cluster) -> Mount:
    return mounted.mount("mnt")


@pytest.fixture(scope="session")
def other_mount(mounted: Cluster) -> Mount:
    """The same volume, as another machine would see it."""
    return mounted.mount("other")


@pytest.fixture
def place(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory in the mount."""
    directory = mount.path / re.sub(r"\W+", "-", request.node.name)
    directory.mkdir()
    return directory


@pytest.fixture
def other_place(place: Path, other_mount: Mount) -> Path:
    """The test's directory, through the other mount."""
    return other_mount.path / place.name
