"""The mount's idea of the volume's time."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
import trio

from fusefs.metadata.client import MetadataClient
from fusefs.metadata.session import Session
from servers.client.naming import NamingClient

pytestmark = pytest.mark.anyio
SECOND = 1_000_000_000


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Volume:
    """Whose clock is ahead of ours, and which takes its time to answer."""

    def __init__(self, ahead_ns: int, answers_after: float) -> None:
        self._ahead_ns = ahead_ns
        self._answers_after = answers_after

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        await trio.sleep(self._answers_after / 2)
        now = time.time_ns() + self._ahead_ns
        await trio.sleep(self._answers_after / 2)
        facts = {b"uuid": b"", b"chunk_size": 1024, b"replicas": 3, b"lease_ms": 60_000}
        return [1, {b"s": now // SECOND, b"ns": now % SECOND, **facts}]

    def begin_session(self, number: int) -> None: ...

    async def nodes(self) -> list[Any]:
        return []


async def opened(volume: Volume) -> Session:
    def nothing() -> None: ...

    session = Session(cast(MetadataClient, volume), cast(NamingClient, volume), lambda _: None, "test", nothing)
    await session.open()
    return session


async def test_the_volumes_time_is_known_and_never_ahead() -> None:
    """However long the answer took."""
    session = await opened(Volume(3600 * SECOND, answers_after=0.4))
    assert 0 <= time.time_ns() + 3600 * SECOND - session.now_ns() < SECOND


async def test_time_only_goes_forward_and_is_after_all_that_was_seen() -> None:
    session = await opened(Volume(0, answers_after=0.0))
    times = [session.now_ns() for _ in range(1000)]
    assert times == sorted(set(times))
    seen = session.now_ns() + SECOND // 2
    session.saw(seen)
    session.saw(5)
    assert session.now_ns() > seen
    session.saw(seen + 3600 * SECOND)
    assert session.now_ns() < seen + SECOND, "somebody's clock was wrong"


async def test_a_wall_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = await opened(Volume(0, answers_after=0.0))
    before, real = session.now_ns(), time.time_ns
    for hours in (1, -1):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3600 * SECOND)
        assert 0 < session.now_ns() - before < 10 * SECOND
