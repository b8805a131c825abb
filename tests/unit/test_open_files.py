"""The open files of a mount as it ends and when storing fails: over made-up nodes and metadata, in virtual time."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from fusefs.chunks.client import StoredExtent
from fusefs.chunks.replicas import Replicas
from fusefs.metadata.session import NODES_SECONDS
from fusefs.settings import FLUSH_DEADLINE_SECONDS, WRITE_BACK_SECONDS, MountSettings
from fusefs.vfs.attribute_cache import AttributeCache
from fusefs.vfs.dirty_ranges import OBJECTS_BYTES, RANGE_BYTES
from fusefs.vfs.file_writer import COMMIT_SECONDS_MIN, LATE_SECONDS
from fusefs.vfs.open_files import KEEP_FAILED_SECONDS, OpenFiles
from fusefs.vfs.write_back import LOOK_SECONDS
from servers.naming.settings import NamingSettings
from servers.protocol.errors import Unavailable
from servers.protocol.ids import InodeNumber, NodeNumber, SessionNumber, extent_id
from servers.protocol.naming_api import Attributes, unpack_attributes
from servers.protocol.placement import NodeView

CHUNK = 1024
BYTES_OF_TWO = 2 * (OBJECTS_BYTES + CHUNK + RANGE_BYTES) + 100
NODES = (NodeNumber(1), NodeNumber(2), NodeNumber(3))


class World:
    """Files whose uploads wait for a gate, if they have one, or fail."""

    def __init__(self, nursery: trio.Nursery, dirty_bytes_max: int = 1 << 20) -> None:
        self.gates: dict[int, trio.Event] = {}
        self.failing: set[int] = set()
        self.stored: list[tuple[int, bytes]] = []
        self.uploads = self.version = 0
        self.links = 1
        self.replicas = Replicas()
        session: Any = SimpleNamespace(
            ask=self.ask, now_ns=lambda: 10**18, saw=lambda _: None, sessions_lost=0, facts=SimpleNamespace(replicas=3)
        )
        metadata: Any = SimpleNamespace(ask=self.ask, ask_in=self.commit, session=SessionNumber(1))
        extents: Any = SimpleNamespace(store=self.store, fetch=None)
        settings = MountSettings(Path("/nowhere"), "", "", dirty_bytes_max=dirty_bytes_max)
        self.files = OpenFiles(settings, nursery, metadata, session, extents, self.replicas, AttributeCache(1.0))
        self.nursery = nursery

    def attributes(self, ino: int) -> bytes:
        fields = [0o100644, 0, 0, self.links, 100, 0, 0, 0, 0, 0, 0, 0, CHUNK, 0, self.version, 0, 0, b"", 3, 0]
        packed: bytes = msgpack.packb(fields)
        return packed

    def known(self, ino: int) -> Attributes:
        return unpack_attributes(ino, self.attributes(ino))

    def open(self, ino: int) -> int:
        return self.files.open(self.known(ino), self.version, [], os.O_RDWR)[0]

    async def store(self, pieces: list[memoryview], *, inode: int, **facts: Any) -> StoredExtent:
        self.uploads += 1
        content = b"".join(pieces)
        if inode in self.gates:
            await self.gates[inode].wait()
        if inode in self.failing:
            await trio.sleep(1)
            raise Unavailable("no node")
        self.stored.append((inode, content))
        return StoredExtent(extent_id(SessionNumber(1), len(self.stored)), len(content), NODES, True)

    async def ask(self, verb: str, **arguments: Any) -> list[Any]:
        return [self.attributes(arguments["ino"])]

    async def commit(self, session: int, seconds: float, verb: str, **arguments: Any) -> list[Any]:
        self.version += 1
        return [self.attributes(arguments["ino"]), 0, self.version - 1]


class Overtaken(World):
    """Each commit is answered only after another mount's is known here, from an open."""

    async def commit(self, session: int, seconds: float, verb: str, **arguments: Any) -> list[Any]:
        reply = await super().commit(session, seconds, verb, **arguments)
        self.version += 1
        self.open(arguments["ino"])
        return reply


def run(body: Callable[[World], Awaitable[None]], kind: type[World] = World, **limits: int) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await body(kind(nursery, **limits))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_is_written_while_a_mount_that_ends_stores_other_files_is_stored_too() -> None:
    """SIGTERM under load: programs go on writing, and what they sync meanwhile is not thrown away."""

    async def body(world: World) -> None:
        quick, slow = world.open(1), world.open(2)
        await world.files.write(quick, 0, b"early")
        await world.files.write(slow, 0, b"large")
        world.gates[2] = trio.Event()
        world.nursery.start_soon(world.files.flush_all)
        await trio.testing.wait_all_tasks_blocked()
        world.gates[1] = trio.Event()
        await world.files.write(quick, 10, b"late")
        world.nursery.start_soon(world.files.fsync, quick)
        await trio.testing.wait_all_tasks_blocked()
        world.gates[2].set()
        await trio.testing.wait_all_tasks_blocked()
        world.gates[1].set()
        await trio.testing.wait_all_tasks_blocked()
        await world.files.flush_all()
        assert sorted(world.stored) == [(1, b"early"), (1, b"late"), (2, b"large")]
        assert world.files.lost_bytes == 0

    run(body)


def test_a_chunk_map_that_is_older_than_the_attributes_is_not_taken_for_theirs() -> None:
    """A commit of ours is known before the answer to an open that the metadata gave before it."""

    async def body(world: World) -> None:
        writing = world.open(1)
        await world.files.write(writing, 0, b"x")
        await world.files.flush(writing)
        reading = world.files.open(world.known(1), world.version - 1, [], os.O_RDONLY).handle
        assert bytes(await world.files.read(reading, 0, 1)) == b"x"

    run(body)


def test_what_was_shown_while_another_mounts_change_lay_below_ours_is_not_kept_as_that_change() -> None:
    async def body(world: World) -> None:
        moved: list[int] = []
        world.files.on_moved = moved.append
        writing = world.open(1)
        await world.files.write(writing, 0, b"x")
        await world.files.flush(writing)
        assert moved == [1]
        assert not world.files.open(world.known(1), world.version, [], os.O_RDWR).keeps_pages

    run(body, Overtaken)


def test_what_came_with_anothers_commit_is_shown_also_where_size_and_times_are_as_before() -> None:
    async def body(world: World) -> None:
        moved: list[int] = []
        world.files.on_moved = moved.append
        world.open(1)
        await world.files.getattr(InodeNumber(1))
        assert not moved
        world.version += 1
        await trio.sleep(2)
        await world.files.getattr(InodeNumber(1))
        assert moved == [1]

    run(body)


@pytest.mark.parametrize(("size", "is_dropped"), [(100, True), (99, False)])
def test_pages_of_what_this_mount_cut_to_another_size_are_left_to_the_kernel(size: int, is_dropped: bool) -> None:
    """It drops them by itself then. To the same size it drops nothing, and another mount may have written meanwhile."""

    async def body(world: World) -> None:
        moved: list[int] = []
        world.files.on_moved = moved.append
        world.open(1)
        world.version += 1
        world.files.shown(world.known(1)._replace(size=size), 1.0, is_cut=True)
        assert moved == [1] * is_dropped

    run(body)


def test_what_is_given_up_is_not_shown_any_more() -> None:
    async def body(world: World) -> None:
        moved: list[int] = []
        world.files.on_moved = moved.append
        world.failing.add(1)
        handle = world.open(1)
        await world.files.write(handle, 0, b"x")
        with pytest.raises(Unavailable):
            await world.files.fsync(handle)
        assert not moved
        await world.files.release(handle)
        await trio.sleep(KEEP_FAILED_SECONDS + 60)
        assert (moved, world.files.lost_bytes) == ([1], 1)

    run(body)


def test_who_syncs_what_a_mount_that_ends_gives_up_is_told() -> None:
    async def body(world: World) -> None:
        handle = world.open(1)
        world.gates[1] = trio.Event()
        await world.files.write(handle, 0, b"hanging")
        outcomes: list[bool] = []

        async def sync() -> None:
            try:
                await world.files.fsync(handle)
                outcomes.append(True)
            except Unavailable:
                outcomes.append(False)

        world.nursery.start_soon(world.files.flush_all)
        await trio.sleep(20)
        world.nursery.start_soon(sync)
        await trio.sleep(11)  # It has taken over from the flush of the end, which has given up.
        world.gates[1].set()
        await trio.sleep(1)
        assert outcomes == [False]
        assert world.files.lost_bytes == len(b"hanging")

    run(body)


@pytest.mark.parametrize("times", [20])
def test_a_file_that_cannot_be_stored_is_tried_by_one_however_often_it_is_opened_and_closed(times: int) -> None:
    async def body(world: World) -> None:
        world.failing.add(1)
        handle = world.open(1)
        await world.files.write(handle, 0, b"x")
        await world.files.release(handle)
        for _ in range(times):
            await trio.sleep(0.1)
            await world.files.release(world.open(1))
        tasks = len(world.nursery.child_tasks)
        world.failing.clear()
        await trio.sleep(10)
        assert world.stored == [(1, b"x")]
        assert tasks <= 2  # The one that tries, and an upload.

    run(body)


def test_a_file_that_cannot_be_stored_does_not_keep_room_from_others() -> None:
    """It is the oldest. What it holds stays, what others hold is stored."""

    async def body(world: World) -> None:
        one, other = world.open(1), world.open(2)
        world.failing.add(1)
        await world.files.write(one, 0, b"x" * 1000)
        await world.files.write(other, 0, b"y" * 1000)
        began = trio.current_time()
        await world.files.write(other, 1024, b"z" * 1000)
        assert trio.current_time() - began < 3
        assert world.stored == [(2, b"y" * 1000)]
        await world.files.flush_all()

    run(body, dirty_bytes_max=BYTES_OF_TWO)


def test_who_waits_for_room_has_it_soon_after_the_nodes_are_back() -> None:
    """Though what was tried as he began to wait has failed since."""

    async def body(world: World) -> None:
        handle = world.open(1)
        world.failing.add(1)
        await world.files.write(handle, 0, b"x" * 1000)
        await world.files.write(handle, 1024, b"y" * 1000)
        world.nursery.start_soon(world.files.write, handle, 2048, b"z" * 1000)
        await trio.sleep(10)
        world.failing.clear()
        await trio.sleep(3)
        assert sorted(world.stored)[:2] == [(1, b"x" * 1000), (1, b"y" * 1000)]
        await world.files.flush_all()

    run(body, dirty_bytes_max=BYTES_OF_TWO)


def written_back(body: Callable[[World], Awaitable[None]]) -> None:
    """Runs the body beside the job that writes back."""

    async def beside(world: World) -> None:
        world.nursery.start_soon(world.files.keep_written_back)
        await body(world)
        world.nursery.cancel_scope.cancel()

    run(beside)


def test_what_is_written_slowly_to_a_file_that_stays_open_is_stored_and_committed_once_in_a_while() -> None:
    """A byte is never older than this; and a commit each time, not for each write."""

    async def body(world: World) -> None:
        handle = world.open(1)
        for second in range(60):
            await world.files.write(handle, second, b"x")
            await trio.sleep(1)
            assert sum(len(content) for _, content in world.stored) >= second - WRITE_BACK_SECONDS - LOOK_SECONDS
        assert 5 <= world.version <= 6

    written_back(body)


def test_what_is_closed_soon_is_not_written_back() -> None:
    async def body(world: World) -> None:
        handle = world.open(1)
        await world.files.write(handle, 0, b"x")
        await trio.sleep(WRITE_BACK_SECONDS - 2 * LOOK_SECONDS)
        assert world.stored == []
        await world.files.flush(handle)
        await trio.sleep(2 * WRITE_BACK_SECONDS)
        assert world.stored == [(1, b"x")]

    written_back(body)


def test_what_could_not_be_stored_in_the_background_is_told_to_every_descriptor_once_and_tried_again() -> None:
    """However often it was tried in vain; and what was stored in the end is no error to who hears of the file later."""

    async def body(world: World) -> None:
        world.failing.add(1)
        one, other = world.open(1), world.open(1)
        await world.files.write(one, 0, b"x")
        await trio.sleep(5 * WRITE_BACK_SECONDS)
        world.failing.clear()
        await trio.sleep(2 * WRITE_BACK_SECONDS)
        assert world.stored == [(1, b"x")]
        late = world.open(1)
        for handle in (one, other):
            with pytest.raises(Unavailable):
                await world.files.fsync(handle)
            await world.files.fsync(handle)
        await world.files.fsync(late)

    written_back(body)


def test_who_was_told_is_not_told_again_of_what_is_still_not_stored() -> None:
    async def body(world: World) -> None:
        world.failing.add(1)
        handle = world.open(1)
        await world.files.write(handle, 0, b"x")
        with pytest.raises(Unavailable):
            await world.files.fsync(handle)
        await trio.sleep(3 * WRITE_BACK_SECONDS)
        world.failing.clear()
        await world.files.fsync(handle)

    written_back(body)


def test_a_file_that_cannot_be_stored_keeps_no_other_from_being_written_back() -> None:
    async def body(world: World) -> None:
        count = 50
        handles = [world.open(ino) for ino in range(1, count + 1)]
        world.failing.update(range(1, count))
        for handle in handles:
            await world.files.write(handle, 0, b"x")
        await trio.sleep(3 * WRITE_BACK_SECONDS)
        assert world.stored == [(count, b"x")]
        world.failing.clear()

    written_back(body)


@pytest.mark.parametrize("drained", [False, True])
def test_what_has_no_name_is_written_back_only_where_its_node_is_drained(drained: bool) -> None:
    """Nobody reads it after this mount. But this one does, and no drain waits for what the metadata does not know."""

    async def body(world: World) -> None:
        world.links = 0
        handle = world.open(1)
        await world.files.write(handle, 0, b"x" * (CHUNK + 1))
        await trio.sleep(3 * WRITE_BACK_SECONDS)
        assert len(world.stored) == 1
        if drained:
            world.replicas.update([NodeView(NODES[1], "uuid", "there", "alive", 1, 1, 1, "space", draining=True)])
        await trio.sleep(2 * LOOK_SECONDS)
        assert len(world.stored) == (2 if drained else 1)

    written_back(body)


def test_what_is_stored_on_a_node_that_is_drained_is_committed_before_the_node_is_called_empty() -> None:
    """A mount knows late of it, looks late, and stores as slowly as it may."""
    grace = NamingSettings.model_fields["drain_grace_seconds"].default
    assert grace > NODES_SECONDS + LOOK_SECONDS + FLUSH_DEADLINE_SECONDS + COMMIT_SECONDS_MIN
    assert grace > NODES_SECONDS + LATE_SECONDS
