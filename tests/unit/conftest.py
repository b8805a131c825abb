"""Fixtures of the unit suite: one Redis for all, a new volume for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.check_volume import check_volume
from tests.support.redis_server import running_redis
from tests.support.volume import Session, Volume

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def redis_client() -> Iterator[Any]:
    with running_redis() as client:
        yield client


@pytest.fixture
def make_volume(redis_client: Any) -> Iterator[Callable[..., Volume]]:
    """Volumes as the test wants them; each is judged at the end."""
    made: list[Volume] = []

    def make(**wanted: int) -> Volume:
        made.append(Volume(redis_client, f"v{next(_NUMBERS)}", **wanted))
        return made[-1]

    yield make
    for volume in made:
        check_volume(volume)


@pytest.fixture
def volume(make_volume: Callable[..., Volume]) -> Volume:
    return make_volume()


@pytest.fixture
def session(volume: Volume) -> Session:
    return volume.session()
