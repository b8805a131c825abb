"""Reading an open file while others write it, or what was written is on its way: over made-up nodes and metadata."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from fusefs.chunks.cache import BlockCache
from fusefs.chunks.client import StoredExtent
from fusefs.metadata.client import Kept
from fusefs.vfs.chunk_map import ChunkMap
from fusefs.vfs.file_reader import FileReader, ReadPattern
from fusefs.vfs.file_writer import FileWriter, WriterParts
from fusefs.vfs.write_budget import WriteBudget
from servers.protocol.errors import DcsError, Unavailable
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber, SessionNumber, extent_id
from servers.protocol.naming_api import Attributes, pack_segments

CHUNK = 1024
NODES = (NodeNumber(1), NodeNumber(2), NodeNumber(3))


class World:
    """Nodes that keep extents in a dictionary, and metadata that keeps one file's map."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.extents: dict[ExtentId, bytes] = {}
        self.version = self.size = 0
        self.chunks: dict[int, list[Segment]] = {}
        self.before_store: Callable[[bytes], Awaitable[object]] = lambda _: trio.lowlevel.checkpoint()
        self.fetch_error: Callable[[], Awaitable[DcsError | None]] | None = None
        values = dict.fromkeys(Attributes._fields, 0) | {"ino": 5, "chunk_size": CHUNK, "replicas": 3}
        attributes = Attributes(**values)  # type: ignore[arg-type]
        parts = WriterParts(
            self.store, self.commit, self.barrier, WriteBudget(1 << 20, lambda: None), trio.CapacityLimiter(4), nursery,
            lambda: 1, 2, lambda ino, count: None,
        )  # fmt: skip
        self.map = ChunkMap(InodeNumber(5), self)  # type: ignore[arg-type]
        self.writer = FileWriter(attributes, lambda: b"f", parts, lambda *_: attributes, lambda: None)
        self.reader = FileReader(CHUNK, self.map, BlockCache(self.fetch), self.writer)
        self.nursery = nursery

    def written_by_others(self, *pieces: bytes) -> None:
        """The file is these from now on, one extent after the other."""
        self.version, self.size, self.chunks = self.version + 1, 0, {}
        for piece in pieces:
            extent = self.keep(piece)
            index, offset = divmod(self.size, CHUNK)
            self.chunks.setdefault(index, []).append(Segment(offset, extent, 0, len(piece), NODES))
            self.size += len(piece)

    def keep(self, content: bytes) -> ExtentId:
        extent = extent_id(SessionNumber(1), len(self.extents) + 1)
        self.extents[extent] = content
        return extent

    async def store(self, pieces: list[memoryview], **facts: Any) -> StoredExtent:
        content = b"".join(pieces)
        await self.before_store(content)
        return StoredExtent(self.keep(content), len(content), NODES, facts["sync"])

    async def commit(self, deadline: float, kept: Kept, /, **arguments: Any) -> list[Any]:
        return [msgpack.packb(0), 0, self.version]

    async def barrier(self, *_: object) -> set[NodeNumber]:
        return set(NODES)

    async def fetch(
        self, extent: ExtentId, nodes: Sequence[NodeNumber], start: int, end: int, *, until: int | None = None
    ) -> memoryview:
        error = await self.fetch_error() if self.fetch_error else None
        if error:
            raise error
        return memoryview(self.extents[extent])[start : max(end, until or 0)]

    async def ask(self, verb: str, *, ino: int, first: int, count: int) -> list[Any]:
        await trio.lowlevel.checkpoint()
        shown = {i: s for i, s in self.chunks.items() if first <= i < first + count}
        rows = [part for i, s in shown.items() for part in (i, msgpack.packb(pack_segments(s), use_bin_type=False))]
        return [self.version, self.size, rows]

    async def read(self, offset: int, size: int, file_size: int) -> bytes:
        return bytes(await self.reader.read(offset, size, file_size, ReadPattern(), self.nursery))


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await body(World(nursery))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("overwritten", [slice(0, CHUNK), slice(300, 700)])
def test_what_was_written_last_is_read_though_its_upload_is_done_before_an_older_ones(overwritten: slice) -> None:
    """A chunk was filled, and filled again while the first upload waited for a slow node."""

    async def body(world: World) -> None:
        go_on = trio.Event()

        async def slow_for_the_first(content: bytes) -> None:
            if content.startswith(b"a"):
                await go_on.wait()

        world.before_store = slow_for_the_first
        await world.writer.write(0, b"a" * CHUNK)
        await world.writer.write(0, b"b" * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        assert await world.read(0, CHUNK, CHUNK) == b"b" * CHUNK
        expected = bytearray(b"b" * CHUNK)
        expected[overwritten] = b"c" * (overwritten.stop - overwritten.start)
        await world.writer.write(overwritten.start, bytes(expected[overwritten]))
        await trio.testing.wait_all_tasks_blocked()
        assert await world.read(0, CHUNK, CHUNK) == expected
        assert await world.read(290, 20, CHUNK) == expected[290:310]
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await world.read(0, CHUNK, CHUNK) == expected

    run(body)


def test_a_read_ends_where_the_file_does_at_the_version_that_it_shows() -> None:
    """Others cut it shorter; what the reader believes of its size is older than the map it gets now."""

    async def body(world: World) -> None:
        world.written_by_others(b"short")
        assert await world.read(0, 4096, file_size=4096) == b"short"
        assert await world.read(100, 100, file_size=4096) == b""

    run(body)


def test_a_read_of_what_no_node_gives_ends_though_others_write_the_file_all_the_while() -> None:
    """They write elsewhere: what is wanted lies where it lay. Or they write here: then not more often than twice."""

    async def body(world: World) -> None:
        for elsewhere in (True, False):
            world.written_by_others(b"x" * CHUNK)

            async def fail(elsewhere: bool = elsewhere) -> DcsError:
                await trio.sleep(15)
                if elsewhere:
                    world.version += 1
                    world.size += 1
                else:
                    world.written_by_others(b"y" * CHUNK)
                return Unavailable("all nodes hang")

            world.fetch_error = fail
            began = trio.current_time()
            with trio.move_on_after(1000) as waited, pytest.raises(Unavailable):
                await world.read(0, 100, file_size=CHUNK)
            assert not waited.cancelled_caught
            assert trio.current_time() - began == pytest.approx(15 if elsewhere else 30, abs=0.1)

    run(body)
