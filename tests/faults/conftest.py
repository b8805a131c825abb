"""A cluster and a mount for the tests of a module, which leave both healthy; and a wire, for those that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.wire import Wire


@pytest.fixture(scope="module")
def mounted() -> Iterator[Cluster]:
    """Three nodes. At the end no extent is missing, and none is left that no file shows."""
    with Cluster(SESSION_LEASE_SECONDS="25") as cluster:
        yield cluster
        for mount in cluster.mounts:
            if mount.process.is_running:
                mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def mount(mounted: Cluster) -> Mount:
    return mounted.mount()


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire
