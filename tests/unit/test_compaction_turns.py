"""A turn of the compaction job: whatever one chunk gives, the others have their turn."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from servers.naming.background.compaction import LATER_RUNS, Compaction
from servers.naming.settings import NamingSettings
from servers.protocol.errors import AccessDenied, DcsError, NodeFailed, Refused, TooFewNodes, TryAgain

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Store:
    """Three long chunks, of inodes 1 to 3; asking for those in `errors` fails."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self.errors = errors
        self.asked: list[tuple[str, int]] = []

    async def ask(self, verb: str, **arguments: Any) -> list[Any]:
        if verb == "deletions":
            return [1_000_000]
        if verb == "long":
            return [1, 0, 2, 0, 3, 0]
        if verb == "put_off":
            assert arguments["ms"] == LATER_RUNS * 5000
        self.asked.append((verb, arguments["ino"]))
        if verb == "long_chunk":
            raise self.errors.get(arguments["ino"], Refused(errno.ENOENT))
        return []


def compaction(store: Store) -> Compaction:
    settings = NamingSettings.model_validate({"compaction_interval_seconds": 5})
    service: Any = SimpleNamespace(store=store, settings=settings)
    return Compaction(service)


@pytest.mark.parametrize(
    "error", [TryAgain("x"), NodeFailed("x"), TooFewNodes("x"), AccessDenied("x"), Refused(errno.E2BIG)], ids=repr
)
async def test_a_chunk_that_fails_is_put_behind_the_others_which_have_their_turn(error: DcsError) -> None:
    store = Store({1: error})
    job = compaction(store)
    await job.run()
    tried = [ino for verb, ino in store.asked if verb == "long_chunk"]
    assert tried == [1, 2, 3]
    assert ("not_long", 1) not in store.asked
    assert {("not_long", 2), ("not_long", 3)} <= set(store.asked)
    assert job.statistics()["compactions_failed"] == 1


async def test_a_surprise_flies_but_the_chunk_is_behind_the_others_then() -> None:
    store = Store({1: ValueError("a bug")})
    with pytest.raises(ValueError, match="a bug"):
        await compaction(store).run()
    assert store.asked == [("put_off", 1), ("long_chunk", 1)]
