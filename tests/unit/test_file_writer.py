"""The write buffer of one open file, over nodes and metadata that are made up."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from fusefs.chunks.client import StoredExtent
from fusefs.metadata.client import Kept
from fusefs.settings import FLUSH_DEADLINE_SECONDS
from fusefs.vfs.file_writer import FLUSHED_AGAIN_SECONDS, LATE_SECONDS, FileWriter, WriterParts
from fusefs.vfs.write_budget import WriteBudget
from servers.protocol.errors import NodeFull, Refused, Unavailable
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id
from servers.protocol.limits import APPENDED_CHUNKS_MAX, KIB, MIB, SEGMENTS_PER_COMMIT_MAX
from servers.protocol.naming_api import Attributes, Operation, unpack_nodes

CHUNK = 1024
NODES = (NodeNumber(1), NodeNumber(2), NodeNumber(3))
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class MadeUp:
    """Nodes that keep extents in a dictionary, and metadata that keeps the file's bytes."""

    def __init__(self) -> None:
        self.chunk_size = CHUNK
        self.extents: dict[ExtentId, bytes] = {}
        self.content = bytearray()
        self.commits: list[dict[str, Any]] = []
        self.tries: list[dict[str, Any]] = []
        self.confirming = set(NODES)
        """The nodes that answer a barrier."""
        self.before_store: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self.before_commit: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self.unheard = 0
        """So many commits are done, but nobody is told."""
        self.moves = self.lost = 0
        self.now_ns = 1

    def attributes(self) -> Attributes:
        values = dict.fromkeys(Attributes._fields, 0)
        values |= {"ino": 5, "chunk_size": self.chunk_size, "replicas": 3, "size": len(self.content)}
        return Attributes(**values)  # type: ignore[arg-type]

    async def store(self, pieces: list[memoryview], **facts: Any) -> StoredExtent:
        await self.before_store()
        extent = extent_id(SessionNumber(1), len(self.extents) + 1)
        self.extents[extent] = b"".join(pieces)
        return StoredExtent(extent, len(self.extents[extent]), NODES, facts["sync"])

    async def commit(self, deadline: float, kept: Kept, /, **arguments: Any) -> list[Any]:
        await self.before_commit()
        self.tries.append(arguments)
        if not kept.is_open:
            self.commits.append(arguments)
            kept.operation = Operation("commit", len(self.commits), b"")
        if self.unheard:
            self.unheard -= 1
            raise Unavailable("no answer")
        kept.end()
        offset, flat = len(self.content), arguments.get("append", [])
        for at in range(0, len(flat), 3):
            self.content += self.extents[flat[at]][: flat[at + 1]]
        return [msgpack.packb(0), offset, 0]

    def moved(self) -> None:
        self.moves += 1

    def lose(self, ino: int, count: int) -> None:
        self.lost += count


def make_writer(world: MadeUp, nursery: trio.Nursery, budget_bytes: int = 1 << 20) -> tuple[FileWriter, WriteBudget]:
    budget = WriteBudget(budget_bytes, lambda: None)

    async def barrier(nodes: object, enough: Callable[[set[NodeNumber]], bool], deadline: float) -> set[NodeNumber]:
        assert not enough(set(NODES[:1]))  # Whoever waits waits for two, whatever is accepted in the end.
        return set(world.confirming)

    def committed(blob: bytes, before: int, laid: dict[int, list[Segment]], asked_at: float) -> None: ...

    parts = WriterParts(
        world.store, world.commit, barrier, budget, trio.CapacityLimiter(4), nursery, lambda: world.now_ns, 2,
        world.lose,
    )  # fmt: skip
    return FileWriter(world.attributes(), lambda: b"name", parts, committed, world.moved), budget


async def test_what_was_appended_around_others_appends_lands_whole_and_in_order() -> None:
    """Held in two ranges of one chunk, because the file grew by another's hand between two writes."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"first ", append_at=lambda: 0)
        await writer.write(100, b"second", append_at=lambda: 100)
        await writer.flush(sync=False)
    assert bytes(world.content) == b"first second"
    assert world.moves == 1


async def test_what_was_appended_across_chunks_lands_in_the_order_it_was_written() -> None:
    """The full chunk in the middle is stored before the rest of the chunk ahead of it."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(CHUNK - 2, b"ab" + b"c" * CHUNK + b"d", append_at=lambda: CHUNK - 2)
        await writer.flush(sync=False)
    assert bytes(world.content) == b"ab" + b"c" * CHUNK + b"d"


async def test_chunks_are_committed_in_rising_order() -> None:
    """Whatever the order in which they were filled: the metadata wants it so."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        for index in (5, 1, 3):
            await writer.write(index * CHUNK, b"x" * CHUNK)
        await writer.write(0, b"x")
        await writer.flush(sync=False)
    assert [indexes for commit in world.commits for indexes in commit["chunks"][::2]] == [0, 1, 3, 5]


async def test_what_was_written_in_very_many_places_is_committed_in_steps_that_a_call_may_take() -> None:
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, budget = make_writer(world, nursery, budget_bytes=16 << 20)
        for at in range(0, 40 * CHUNK, 2):
            await writer.write(at, b"x")
        await writer.flush(sync=False)
    sizes = [sum(len(segments) // 5 for segments in commit["chunks"][1::2]) for commit in world.commits]
    assert sum(sizes) == 40 * CHUNK // 2 > SEGMENTS_PER_COMMIT_MAX
    assert max(sizes) <= SEGMENTS_PER_COMMIT_MAX
    assert (writer.bytes, writer.is_dirty, budget.held_bytes) == (0, False, 0)


async def test_an_append_elsewhere_than_the_kernel_wrote_it_is_told() -> None:
    """Its pages are then not right."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"one", append_at=lambda: 0)
        await writer.flush(sync=False)
        assert world.moves == 0
        await writer.write(70, b"two", append_at=lambda: 3)
        await writer.flush(sync=False)
    assert bytes(world.content) == b"onetwo"
    assert world.moves == 1


async def test_what_is_discarded_while_it_is_flushed_is_neither_committed_nor_held() -> None:
    world, go_on = MadeUp(), trio.Event()
    world.before_store = go_on.wait
    async with trio.open_nursery() as nursery:
        writer, budget = make_writer(world, nursery)
        await writer.write(0, b"x" * 3 * CHUNK)
        nursery.start_soon(lambda: writer.flush(sync=False))
        await trio.testing.wait_all_tasks_blocked()
        writer.discard()
        go_on.set()
    assert world.commits == []
    assert budget.held_bytes == 0


async def test_what_is_discarded_while_its_upload_fails_is_not_held_for_ever() -> None:
    world, go_on = MadeUp(), trio.Event()

    async def fail() -> None:
        await go_on.wait()
        raise Unavailable("no node")

    world.before_store = fail
    async with trio.open_nursery() as nursery:
        writer, budget = make_writer(world, nursery)
        await writer.write(0, b"x" * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        writer.discard()
        go_on.set()
    assert budget.held_bytes == 0


async def test_a_write_is_after_the_last_change_of_its_file() -> None:
    """However much the mount's idea of the volume's time lags behind."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"x", changed_ns=lambda: 10**19)
        assert writer.mtime_ns == 10**19 + 1
        await writer.write(1, b"y")
        assert writer.mtime_ns == 10**19 + 2
        writer.discard()


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> None:
    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_flush_ends_at_its_deadline_though_uploads_go_on_and_the_next_one_soon() -> None:
    """Many chunks wait for their turn: each may take its time, who waits for all of them must not. What was written
    stays, and is committed when the nodes have taken it."""
    world = MadeUp()

    async def body() -> None:
        go_on = trio.Event()
        world.before_store = go_on.wait
        async with trio.open_nursery() as nursery:
            writer, _ = make_writer(world, nursery)
            await writer.write(0, b"x" * 9 * CHUNK)
            for seconds in (FLUSH_DEADLINE_SECONDS, FLUSHED_AGAIN_SECONDS):
                began = trio.current_time()
                with pytest.raises(Unavailable):
                    await writer.flush(sync=False)
                assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)
            assert writer.bytes == 9 * CHUNK
            assert world.commits == []
            go_on.set()
            await writer.flush(sync=False)

    in_virtual_time(body)
    assert [index for commit in world.commits for index in commit["chunks"][::2]] == list(range(9))


def test_nobody_waits_longer_for_another_flush_than_for_his_own() -> None:
    world = MadeUp()

    async def body() -> None:
        go_on = trio.Event()
        world.before_commit = go_on.wait
        async with trio.open_nursery() as nursery:
            writer, _ = make_writer(world, nursery)
            await writer.write(0, b"x")
            nursery.start_soon(lambda: writer.flush(sync=False))
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            with pytest.raises(Unavailable):
                await writer.flush(sync=False)
            assert trio.current_time() - began == pytest.approx(FLUSH_DEADLINE_SECONDS, abs=0.1)
            go_on.set()

    in_virtual_time(body)
    assert len(world.commits) == 1


async def test_who_waited_for_anothers_flush_that_took_his_writes_along_is_done() -> None:
    """Of many who sync one file each waits for two flushes at most, not for all that others write meanwhile."""
    world = MadeUp()
    gates = [trio.Event() for _ in range(3)]

    async def pass_gate() -> None:
        await gates[len(world.commits)].wait()

    world.before_commit = pass_gate
    done: list[str] = []
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)

        async def sync(who: str) -> None:
            await writer.write(ord(who), who.encode())
            await writer.flush(sync=True)
            done.append(who)

        for who in "abc":
            nursery.start_soon(sync, who)
            await trio.testing.wait_all_tasks_blocked()
        gates[0].set()
        await trio.testing.wait_all_tasks_blocked()
        await writer.write(0, b"later than all")
        gates[1].set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(done) == ["a", "b", "c"]
        assert writer.is_dirty
        gates[2].set()
        await writer.flush(sync=True)
        assert not writer.is_dirty
    assert len(world.commits) == 3


async def test_a_node_that_does_not_confirm_a_sync_is_no_replica() -> None:
    """It lost power, or hangs: what fsync has confirmed never counts as held where it may not be."""
    world = MadeUp()
    world.confirming = {NODES[0], NODES[2]}
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"x" * CHUNK)  # A full chunk goes without a sync.
        await trio.testing.wait_all_tasks_blocked()
        await writer.write(CHUNK, b"x")
        await writer.flush(sync=True)
    chunks = world.commits[0]["chunks"]
    assert [unpack_nodes(segments[4]) for segments in chunks[1::2]] == [(NODES[0], NODES[2]), NODES]


@pytest.mark.parametrize("late", [False, True])
async def test_what_is_committed_long_after_it_was_stored_is_asked_for_before(late: bool) -> None:
    """The metadata did not know of it: a node that has it may have been drained, called empty and wiped meanwhile."""
    world = MadeUp()
    world.confirming = {NODES[1]}
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"x" * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        world.now_ns += int((LATE_SECONDS + 1) * 1e9) if late else 0
        await writer.write(CHUNK, b"x")
        await writer.flush(sync=False)
    chunks = world.commits[0]["chunks"]
    assert [unpack_nodes(segments[4]) for segments in chunks[1::2]] == [(NODES[1],) if late else NODES, NODES]


async def store_long_ago(world: MadeUp, nursery: trio.Nursery) -> FileWriter:
    """One chunk is stored, not synced, and has waited so long for its commit that the nodes are asked for it before."""
    writer, _ = make_writer(world, nursery)
    await writer.write(0, b"x" * CHUNK)
    await trio.testing.wait_all_tasks_blocked()
    world.now_ns += int((LATE_SECONDS + 1) * 1e9)
    return writer


async def test_a_node_that_did_not_answer_once_is_asked_by_the_next_sync_all_the_same() -> None:
    """One that has it is enough for a commit in the background, and not for fsync."""
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer = await store_long_ago(world, nursery)
        world.confirming = {NODES[0]}

        async def refuse() -> None:
            raise Refused(errno.ENOSPC)

        world.before_commit = refuse
        with pytest.raises(Refused):
            await writer.flush(sync=False)
        world.before_commit = trio.lowlevel.checkpoint
        with pytest.raises(Unavailable):
            await writer.flush(sync=True)
        world.confirming = set(NODES[1:])
        await writer.flush(sync=True)
    assert unpack_nodes(world.commits[0]["chunks"][1][4]) == NODES[1:]


async def test_a_sync_asks_for_what_a_commit_without_an_answer_has_perhaps_committed() -> None:
    """It was stored without a sync: known to be committed, nobody would ask for it any more."""
    world = MadeUp()
    world.unheard = 1
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"x" * CHUNK)
        with pytest.raises(Unavailable):
            await writer.flush(sync=False)
        world.confirming = set()
        with pytest.raises(Unavailable):
            await writer.flush(sync=True)
        assert writer.is_unanswered
        world.confirming = set(NODES)
        await writer.flush(sync=True)
    assert len(world.commits) == 1


async def test_what_no_node_has_any_more_is_an_error_of_the_close_that_would_commit_it() -> None:
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer = await store_long_ago(world, nursery)
        world.confirming = set()
        with pytest.raises(Unavailable):
            await writer.flush(sync=False)
        world.confirming = set(NODES)
        await writer.flush(sync=False)
    assert len(world.commits) == 1


async def test_a_commit_without_an_answer_is_asked_for_again_before_anything_else_is_committed() -> None:
    """It may have been done, and others may have written over it since: it is not done again under another number, and
    no upload that fails keeps from learning what became of it."""
    world = MadeUp()
    world.unheard = 2
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        await writer.write(0, b"one", append_at=lambda: 0)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await writer.flush(sync=False)
        assert writer.is_unanswered
        await writer.write(3, b"two", append_at=lambda: 0)

        async def refuse() -> None:
            raise NodeFull("no room")

        world.before_store = refuse
        with pytest.raises(NodeFull):
            await writer.flush(sync=False)
        assert not writer.is_unanswered
        world.before_store = trio.lowlevel.checkpoint
        await writer.flush(sync=True)
    assert bytes(world.content) == b"onetwo"
    assert [world.tries.index(arguments) for arguments in world.tries] == [0, 0, 0, 3]
    assert len(world.commits) == 2
    assert (writer.is_dirty, writer.bytes) == (False, 0)


async def test_what_is_given_up_is_not_committed_later() -> None:
    world = MadeUp()
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery)
        for drop_at_once in (False, True):
            world.unheard = 1
            await writer.write(0, b"x")
            if drop_at_once:

                async def drop() -> None:
                    writer.discard()

                world.before_commit = drop
            with pytest.raises(Unavailable):
                await writer.flush(sync=False)
            if not drop_at_once:
                writer.discard()
            assert not writer.is_unanswered
            assert not writer.is_dirty


async def test_what_the_metadata_will_never_take_is_given_up_and_told() -> None:
    """Others changed the file while this mount's session was over: ESTALE, once to every handle, and no more."""
    world = MadeUp()

    async def refuse() -> None:
        raise Refused(errno.ESTALE)

    world.before_commit = refuse
    async with trio.open_nursery() as nursery:
        writer, budget = make_writer(world, nursery)
        await writer.write(0, b"x" * 3 * CHUNK)
        with pytest.raises(Refused):
            await writer.flush(sync=False)
        assert (writer.is_dirty, writer.bytes, budget.held_bytes) == (False, 0, 0)
        assert (world.lost, world.moves) == (3 * CHUNK, 1)
        await writer.flush(sync=False)
        assert writer.failures == 1


async def test_what_is_appended_while_the_nodes_are_slow_still_goes_into_commits_that_are_taken() -> None:
    """A write to the end is whole, so what waits is committed in one step: not more may wait than fits into one."""
    world = MadeUp()
    piece = b"x" * 512 * CHUNK
    async with trio.open_nursery() as nursery:
        writer, _ = make_writer(world, nursery, budget_bytes=16 << 20)
        for _ in range(10):
            await writer.write(0, piece, append_at=lambda: len(world.content))
        await writer.flush(sync=False)
    assert bytes(world.content) == 10 * piece
    assert all(sum(commit["append"][1::3]) <= APPENDED_CHUNKS_MAX * CHUNK for commit in world.commits)


async def test_single_bytes_far_apart_count_with_the_memory_that_they_take() -> None:
    """A page each, and more for each chunk: a sparse writer would else fill the machine with what counts as nothing."""
    world = MadeUp()
    world.chunk_size = 16 * MIB
    async with trio.open_nursery() as nursery:
        writer, budget = make_writer(world, nursery, budget_bytes=1 << 30)
        before = _resident_bytes()
        for page in range(4000):
            await writer.write(16 * KIB * page, b"x")
        taken = _resident_bytes() - before
        assert writer.bytes == 4000
        assert taken <= budget.held_bytes <= 2 * 4000 * mmap.PAGESIZE
        writer.discard()
        assert budget.held_bytes == 0


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
