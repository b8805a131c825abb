"""Fixtures of all suites: clusters of real processes, which leave nothing behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from tests.support.cluster import Cluster


class MakeCluster(Protocol):
    def __call__(self, nodes: int = 3, **settings: str) -> Cluster: ...


def pytest_configure() -> None:
    """A run that is ended by SIGTERM takes its processes and mounts down, as with Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Clusters as the test wants them; gone after the test."""
    with ExitStack() as clusters:

        def make(nodes: int = 3, **settings: str) -> Cluster:
            return clusters.enter_context(Cluster(nodes, **settings))

        yield make


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of three nodes for one test to do with as it likes."""
    with Cluster() as made:
        yield made


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """A cluster of three nodes that the tests of a module share and leave healthy."""
    with Cluster() as made:
        yield made
