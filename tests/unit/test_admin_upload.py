"""What a create has stored is committed, all of it, however its commits fall."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from servers.admin import upload
from servers.protocol.geometry import Segment
from servers.protocol.ids import NodeNumber, SessionNumber, extent_id
from servers.protocol.limits import MIB

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 10.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Cluster:
    """Its first commit is under way from the first chunk on, until all of the source was read and stored."""

    def __init__(self) -> None:
        self.committed: list[int] = []
        self.is_begun, self.may_end = asyncio.Event(), asyncio.Event()
        self._blocks = [bytes(4 * MIB), bytes(4 * MIB), b""]

    async def read(self, _: int) -> memoryview:
        block = self._blocks.pop(0)
        if len(self._blocks) == 1:
            await asyncio.wait_for(self.is_begun.wait(), WAIT_SECONDS)
        if not self._blocks:
            asyncio.get_running_loop().call_later(0.2, self.may_end.set)
        return memoryview(block)

    async def change(self, verb: str, chunks: list[Any], **_: Any) -> None:
        assert verb == "commit"
        if not self.is_begun.is_set():
            self.is_begun.set()
            await asyncio.wait_for(self.may_end.wait(), WAIT_SECONDS)
        self.committed += chunks[::2]


async def test_what_is_stored_while_a_commit_is_under_way_is_committed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the source has ended by the time that commit is done."""
    cluster, stub = Cluster(), SimpleNamespace(ino=7, replicas=1, chunk_size=4 * MIB)
    bar: Any = SimpleNamespace(advance=lambda _: None)
    source: Any = SimpleNamespace(read=cluster.read, is_hole=lambda *_: False)
    connection: Any = SimpleNamespace(naming=None)
    made = upload._Upload(connection, cluster, stub, b"f", 1, bar)  # type: ignore[arg-type]

    async def store(index: int, piece: memoryview) -> Segment:
        return Segment(0, extent_id(SessionNumber(1), index), 0, len(piece), (NodeNumber(1),))

    async def load() -> None: ...

    monkeypatch.setattr(upload, "COMMIT_SECONDS", 0.01)
    monkeypatch.setattr(upload, "choose_nodes", lambda *_: [])
    monkeypatch.setattr(made, "_store", store)
    monkeypatch.setattr(made, "_nodes", SimpleNamespace(load=load, alive=list))
    await made.run(source)
    assert sorted(cluster.committed) == [0, 1]
