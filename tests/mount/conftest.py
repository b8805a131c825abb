"""One cluster and two mounts of it for all tests of this directory; every test has a directory of its own there.

A test that needs to unmount, kill or hurt makes a cluster or a mount of its own.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.beside import Beside, remove
from tests.support.cluster import Cluster, Mount
from tests.support.processes import wait_for


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
    """The test's directory, through the other mount, which may take a second to see it."""
    path = other_mount.path / place.name
    wait_for(path.is_dir, "the other mount sees the test's directory")
    return path


@pytest.fixture(scope="session")
def open_mount(mounted: Cluster) -> Mount:
    """For all users, who need not be root to get there; honours set-user-id bits and devices."""
    mounted.directory.chmod(0o711)
    mount = mounted.mount("open", "--allow-other", "--allow-suid", "--allow-dev")
    (mount.path / "beside").mkdir()
    return mount


@pytest.fixture(scope="session")
def read_only_mount(mounted: Cluster, open_mount: Mount) -> Mount:
    return mounted.mount("read-only", "--read-only", "--allow-other")


@pytest.fixture
def beside(open_mount: Mount) -> Iterator[Beside]:
    """A new directory on the mount, and one on a local disk. Tests that act as several users need root."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as other users")
    local = Path(tempfile.mkdtemp(prefix="dcs-beside-"))
    local.chmod(0o711)
    mounted = Path(tempfile.mkdtemp(dir=open_mount.path / "beside"))
    mounted.chmod(0o711)
    yield Beside(local, mounted)
    remove(local)
    remove(mounted)


@pytest.fixture
def open_place(request: pytest.FixtureRequest) -> Path:
    """A new directory in a mount that root has opened to all users; who is not root can only open it to himself."""
    mount: Mount = request.getfixturevalue("open_mount" if os.geteuid() == 0 else "mount")
    directory = mount.path / re.sub(r"\W+", "-", request.node.name)
    directory.mkdir()
    return directory
