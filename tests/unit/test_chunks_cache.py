"""The block cache over a fetch that counts, waits and fails as told."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.chunks.cache import RUN_OVERHEAD_BYTES, BlockCache
from servers.protocol.errors import ExtentDamaged, Unavailable
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id
from servers.protocol.limits import BLOCK_BYTES, KIB, MIB

pytestmark = pytest.mark.anyio

EXTENT = extent_id(SessionNumber(1), 1)
NODES = (NodeNumber(1), NodeNumber(2))


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Source:
    """Extents of which every byte is known; `gate` holds fetches up, `error` makes them fail."""

    def __init__(self, length: int = 8 * MIB) -> None:
        self.data = random.Random(1).randbytes(length)
        self.fetched: list[tuple[int, int]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.under_way_at_most = self._under_way = 0

    async def __call__(
        self, extent: ExtentId, nodes: Sequence[NodeNumber], start: int, end: int, *, until: int | None = None
    ) -> memoryview:
        assert nodes == NODES
        self._under_way += 1
        self.under_way_at_most = max(self.under_way_at_most, self._under_way)
        try:
            self.fetched.append((start, until or end))
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            if end > len(self.data):
                raise ExtentDamaged("too short")
            return memoryview(self.data)[start : max(end, until or 0)]
        finally:
            self._under_way -= 1


async def test_one_run_is_one_piece_without_a_copy() -> None:
    source = Source()
    cache = BlockCache(source)
    (piece,) = await cache.read(EXTENT, NODES, 100_000, 200_000, MIB)
    assert piece == source.data[100_000:200_000]
    assert piece.obj is source.data


async def test_small_reads_are_served_from_a_large_run() -> None:
    source = Source()
    cache = BlockCache(source)
    await cache.read(EXTENT, NODES, 0, 10, MIB)
    for at in range(0, MIB, 50_000):
        (piece,) = await cache.read(EXTENT, NODES, at, min(at + 4096, MIB), 64 * KIB)
        assert piece == source.data[at : at + 4096]
    assert source.fetched == [(0, MIB)]


async def test_a_large_run_is_fetched_around_what_is_there() -> None:
    source = Source()
    cache = BlockCache(source)
    await cache.read(EXTENT, NODES, 3 * BLOCK_BYTES + 5, 3 * BLOCK_BYTES + 6, BLOCK_BYTES)
    pieces = await cache.read(EXTENT, NODES, 0, MIB, MIB)
    assert b"".join(pieces) == source.data[:MIB]
    assert source.fetched == [(3 * BLOCK_BYTES, 4 * BLOCK_BYTES), (0, 3 * BLOCK_BYTES), (4 * BLOCK_BYTES, MIB)]


async def test_a_read_over_several_units_is_one_fetch() -> None:
    source = Source()
    await BlockCache(source).read(EXTENT, NODES, 10, 10 * BLOCK_BYTES, BLOCK_BYTES)
    assert source.fetched == [(0, 10 * BLOCK_BYTES)]


async def test_the_tail_of_an_extent_is_held_and_beyond_it_is_damage() -> None:
    source = Source(100_000)
    cache = BlockCache(source)
    assert b"".join(await cache.read(EXTENT, NODES, 0, 100_000, MIB)) == source.data
    for end in (100_001, 131_073, 5 * MIB):
        with pytest.raises(ExtentDamaged):
            await cache.read(EXTENT, NODES, 90_000, end, MIB)
        with pytest.raises(ExtentDamaged):
            await cache.read(EXTENT, NODES, end - 1, end, MIB)
    assert b"".join(await cache.read(EXTENT, NODES, 99_999, 100_000, MIB)) == source.data[-1:]


async def test_a_run_that_was_fetched_short_is_fetched_again_when_more_is_needed() -> None:
    """One replica ended early where nobody needed more; another has the rest."""
    source = Source(200_000)
    whole = source.data
    cache = BlockCache(source)
    source.data = whole[:100]
    await cache.read(EXTENT, NODES, 0, 100, MIB)
    source.data = whole
    assert b"".join(await cache.read(EXTENT, NODES, 50, 150_000, MIB)) == whole[50:150_000]


async def test_readers_of_one_run_share_a_fetch() -> None:
    source = Source()
    source.gate = trio.Event()
    cache = BlockCache(source)
    got: list[bytes] = []

    async def reader(at: int) -> None:
        got.append(b"".join(await cache.read(EXTENT, NODES, at, at + 10, MIB)))

    async with trio.open_nursery() as nursery:
        for at in range(0, MIB, 100_000):
            nursery.start_soon(reader, at)
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert source.fetched == [(0, MIB)]
    assert sorted(got) == sorted(source.data[at : at + 10] for at in range(0, MIB, 100_000))


async def test_a_cancelled_reader_does_not_break_the_others() -> None:
    """The next one that waits fetches instead."""
    source = Source()
    source.gate = trio.Event()
    cache = BlockCache(source)
    got: list[bytes] = []

    async def reader() -> None:
        got.append(b"".join(await cache.read(EXTENT, NODES, 0, 10, MIB)))

    first = trio.CancelScope()

    async def cancelled_reader() -> None:
        with first:
            await reader()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled_reader)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader)
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert got == [source.data[:10]] * 2
    assert len(source.fetched) == 2


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    source = Source()
    source.gate = trio.Event()
    source.error = Unavailable("gone")
    cache = BlockCache(source)
    failures: list[Exception] = []

    async def reader() -> None:
        try:
            await cache.read(EXTENT, NODES, 0, 10, MIB)
        except Unavailable as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert len(failures) == 3
    source.error = None
    assert b"".join(await cache.read(EXTENT, NODES, 0, 10, MIB)) == source.data[:10]


async def test_what_was_used_longest_ago_goes_first_and_the_bound_holds() -> None:
    source = Source()
    cache = BlockCache(source, cached_bytes_max=4 * (BLOCK_BYTES + RUN_OVERHEAD_BYTES))
    for index in (0, 1, 2, 3, 0, 4):
        await cache.read(EXTENT, NODES, index * BLOCK_BYTES, index * BLOCK_BYTES + 1, BLOCK_BYTES)
    source.fetched.clear()
    for index in (0, 2, 3, 4):
        await cache.read(EXTENT, NODES, index * BLOCK_BYTES, index * BLOCK_BYTES + 1, BLOCK_BYTES)
    assert source.fetched == []
    await cache.read(EXTENT, NODES, BLOCK_BYTES, BLOCK_BYTES + 1, BLOCK_BYTES)
    assert source.fetched == [(BLOCK_BYTES, 2 * BLOCK_BYTES)]
    assert cache.statistics()["runs"] == 4


async def test_a_run_larger_than_the_cache_is_still_read() -> None:
    source = Source()
    cache = BlockCache(source, cached_bytes_max=1000)
    assert b"".join(await cache.read(EXTENT, NODES, 0, 2 * MIB, MIB)) == source.data[: 2 * MIB]
    assert cache.statistics()["cached_bytes"] == 0


async def test_a_prefetch_is_bounded_and_shared_with_readers() -> None:
    source = Source()
    source.gate = trio.Event()
    cache = BlockCache(source, prefetches_max=3)
    async with trio.open_nursery() as nursery:
        assert not cache.prefetch(nursery, EXTENT, NODES, 10, 8 * MIB, MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(source.fetched) == [(0, MIB), (MIB, 2 * MIB), (2 * MIB, 3 * MIB)]
        assert cache.prefetch(nursery, EXTENT, NODES, 0, 3 * MIB, MIB), "all of it is under way"
        nursery.start_soon(cache.read, EXTENT, NODES, MIB, 2 * MIB, MIB)
        await trio.testing.wait_all_tasks_blocked()
        source.gate.set()
    assert len(source.fetched) == 3
    async with trio.open_nursery() as nursery:
        assert cache.prefetch(nursery, EXTENT, NODES, 0, 5 * MIB, MIB)
    assert sorted(source.fetched[3:]) == [(3 * MIB, 4 * MIB), (4 * MIB, 5 * MIB)]
    assert source.under_way_at_most == 3


async def test_a_prefetch_beyond_the_end_of_an_extent_ends() -> None:
    source = Source(100)
    cache = BlockCache(source)
    await cache.read(EXTENT, NODES, 0, 100, MIB)
    async with trio.open_nursery() as nursery:
        assert cache.prefetch(nursery, EXTENT, NODES, 100, 300, MIB)


async def test_a_prefetch_that_fails_or_is_cancelled_leaves_nothing_behind() -> None:
    source = Source()
    source.error = ExtentDamaged("bad")
    cache = BlockCache(source)
    async with trio.open_nursery() as nursery:
        cache.prefetch(nursery, EXTENT, NODES, 0, MIB, MIB)
    source.error = None
    async with trio.open_nursery() as nursery:
        cache.prefetch(nursery, EXTENT, NODES, 0, MIB, MIB)
        nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        assert b"".join(await cache.read(EXTENT, NODES, 0, 10, MIB)) == source.data[:10]


steps = st.lists(
    st.tuples(
        st.sampled_from(["read", "prefetch"]),
        st.integers(0, 700_000),
        st.integers(1, 300_000),
        st.sampled_from([BLOCK_BYTES, 4 * BLOCK_BYTES]),
    ),
    max_size=30,
)


@pytest.mark.parametrize("cached_bytes_max", [200_000, math.inf])
@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_whatever_is_read_and_prefetched_the_bytes_are_right(cached_bytes_max: int, steps: list) -> None:
    """Any order of reads at once, with a cache that is too small or large enough; the books stay balanced."""

    async def main() -> None:
        source = Source(700_000)
        cache = BlockCache(source, cached_bytes_max=cached_bytes_max)

        async def read(start: int, end: int, unit: int) -> None:
            if end <= len(source.data):
                assert b"".join(await cache.read(EXTENT, NODES, start, end, unit)) == source.data[start:end]
            else:
                with pytest.raises(ExtentDamaged):
                    await cache.read(EXTENT, NODES, start, end, unit)

        async with trio.open_nursery() as nursery:
            for what, start, length, unit in steps:
                if what == "read":
                    nursery.start_soon(read, start, start + length, unit)
                else:
                    cache.prefetch(nursery, EXTENT, NODES, start, start + length, unit)
        held = sum(run.end - run.start + RUN_OVERHEAD_BYTES for run in cache._held)
        assert cache.statistics()["cached_bytes"] == held <= cached_bytes_max
        assert set(cache._blocks.values()) == set(cache._held)

    trio.run(main)


async def test_what_was_put_is_read_without_a_fetch() -> None:
    """An extent of one and a half blocks, in the middle and up to its end."""

    async def never(*_: object, **__: object) -> memoryview:
        raise AssertionError("it is there already")

    data = bytes(range(256)) * 384
    cache = BlockCache(never)
    cache.put(EXTENT, data)
    cache.put(EXTENT, data)
    assert b"".join(await cache.read(EXTENT, [], 70_000, len(data), BLOCK_BYTES)) == data[70_000:]
    assert b"".join(await cache.read(EXTENT, [], 5, 70_000, BLOCK_BYTES)) == data[5:70_000]
