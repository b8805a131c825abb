"""The mount's idea of the volume's time, and its way to another session."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import trio
import trio.testing

from fusefs.metadata.client import MetadataClient
from fusefs.metadata.session import NODES_SECONDS, Session
from servers.client.naming import NamingClient
from servers.protocol.errors import SessionLost, TryAgain, Unavailable
from servers.protocol.ids import SessionNumber

SECOND = 1_000_000_000


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Volume:
    """Whose clock is ahead of ours, and which takes its time to answer."""

    def __init__(self, ahead_ns: int, answers_after: float) -> None:
        self._ahead_ns = ahead_ns
        self._answers_after = answers_after
        self.is_away = False
        self.uuid = b"one"
        self.begun: list[int] = []

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        await trio.sleep(self._answers_after / 2)
        now = time.time_ns() + self._ahead_ns
        await trio.sleep(self._answers_after / 2)
        facts = {b"uuid": self.uuid, b"chunk_size": 1024, b"replicas": 3, b"lease_ms": 60_000}
        return [1, {b"s": now // SECOND, b"ns": now % SECOND, **facts}]

    session = 1

    def begin_session(self, number: int) -> None:
        self.session = number
        self.begun.append(number)

    async def nodes(self) -> list[Any]:
        if self.is_away:
            await trio.sleep(30)
            raise TryAgain("away")
        return [self.uuid]


async def opened(volume: Volume, on_nodes: Callable[[Iterable[Any]], None] = lambda _: None) -> Session:
    def nothing() -> None: ...

    session = Session(cast(MetadataClient, volume), cast(NamingClient, volume), on_nodes, "test", nothing)
    await session.open()
    return session


@pytest.mark.anyio
async def test_the_volumes_time_is_known_and_never_ahead() -> None:
    """However long the answer took."""
    session = await opened(Volume(3600 * SECOND, answers_after=0.4))
    assert 0 <= time.time_ns() + 3600 * SECOND - session.now_ns() < SECOND


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_a_wall_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = await opened(Volume(0, answers_after=0.0))
    before, real = session.now_ns(), time.time_ns
    for hours in (1, -1):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3600 * SECOND)
        assert 0 < session.now_ns() - before < 10 * SECOND


@pytest.mark.anyio
async def test_another_volume_in_place_of_the_first_is_not_worked_with() -> None:
    """Its inodes have the same numbers, and other content."""
    volume = Volume(0, answers_after=0.0)
    session = await opened(volume)
    volume.uuid = b"other"
    with pytest.raises(Unavailable, match="other"):
        await session.renew_lost(SessionNumber(1))
    assert session.facts.uuid == "one"
    assert session.sessions_lost == 0
    assert volume.begun == [1, 0], "the number of its session may be another's there"
    volume.uuid = b"one"
    await session.renew_lost(SessionNumber(0))
    assert volume.begun == [1, 0, 1]


@pytest.mark.anyio
async def test_without_a_session_there_is_no_id_for_what_is_stored() -> None:
    """It would be a snapshot's, and no commit could ever name it; the next session has ids again."""
    volume = Volume(0, answers_after=0.0)
    session = await opened(volume)
    first = session.new_extent()
    volume.begin_session(0)
    with pytest.raises(Unavailable):
        session.new_extent()
    await session.renew_lost(SessionNumber(0))
    assert session.new_extent() == first


def test_another_volumes_nodes_are_not_taken_for_ours() -> None:
    async def main() -> None:
        volume, told = Volume(0, answers_after=0.0), list[Any]()
        session = await opened(volume, told.extend)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.keep)
            await trio.sleep(NODES_SECONDS * 1.5)
            assert told == [b"one", b"one"]
            volume.uuid = b"other"
            with pytest.raises(Unavailable):
                await session.renew_lost(SessionNumber(1))
            await trio.sleep(NODES_SECONDS * 2)
            nursery.cancel_scope.cancel()
        assert told == [b"one", b"one"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Metadata(Volume):
    """Whose session was lost, for an operation that was sent before or that was not."""

    def __init__(self, *, perhaps_done: bool) -> None:
        super().__init__(0, answers_after=0.0)
        self.lost: SessionLost | None = SessionLost("over")
        self.lost.perhaps_done = perhaps_done
        self.asked: list[str] = []

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        if verb != "session_open":
            self.asked.append(verb)
            if self.lost is not None:
                lost, self.lost = self.lost, None
                raise lost
        return await super().ask(verb, **arguments)


@pytest.mark.anyio
async def test_what_a_lost_session_did_not_do_the_next_one_does() -> None:
    metadata = Metadata(perhaps_done=False)
    session = await opened(metadata)
    await session.ask("unlink", parent=1, name=b"f")
    assert metadata.asked == ["unlink", "unlink"]


@pytest.mark.anyio
@pytest.mark.parametrize(("verb", "is_repeated"), [("unlink", False), ("create", False), ("opens", True)])
async def test_what_a_lost_session_may_have_done_is_not_done_again(verb: str, is_repeated: bool) -> None:
    """A second unlink would remove what another mount has made under the name since."""
    metadata = Metadata(perhaps_done=True)
    session = await opened(metadata)
    if is_repeated:
        await session.ask(verb)
    else:
        with pytest.raises(Unavailable, match="nobody can tell"):
            await session.ask(verb)
    assert metadata.asked == [verb] * (1 + is_repeated)
    assert session.sessions_lost == 1


def test_who_waits_while_another_opens_a_session_in_vain_does_not_wait_again() -> None:
    """Ten calls whose session is over while the naming server is away: each has one deadline, not ten."""

    async def main() -> None:
        volume = Volume(0, answers_after=0.0)
        session = await opened(volume)
        volume.is_away = True

        async def call() -> None:
            with pytest.raises(TryAgain):
                await session.renew_lost(SessionNumber(1))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call)
        assert trio.current_time() - began < 31
        await call()
        assert trio.current_time() - began > 59

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
