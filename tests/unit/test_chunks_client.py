"""Stores and fetches over nodes of which some hang, lie, fill up or are gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio

from fusefs.chunks.limits import Limits
from fusefs.chunks.replicas import TRIAL_SECONDS
from servers.protocol.checksum import Buffer
from servers.protocol.errors import ExtentDamaged, NodeFull, Unavailable
from servers.protocol.ids import InodeNumber, NodeNumber, extent_text
from servers.protocol.limits import BLOCK_BYTES, MIB
from servers.protocol.storage_api import EXTENT_HEADER, unpack_extent_header
from tests.support.extent_user import ExtentUser
from tests.support.scripted_server import Peer
from tests.support.tiny_node import TinyNode

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Cluster(ExtentUser):
    """Tiny nodes, numbered from 1, and the client under test."""

    def __init__(self, nodes: list[TinyNode], limits: Limits) -> None:
        super().__init__([node.view for node in nodes], "s3cret", limits)
        self.nodes = nodes

    def holders(self) -> set[NodeNumber]:
        return {node.number for node in self.nodes if node.extents}

    def set(self, state: str, *numbers: int) -> None:
        for node in self.nodes:
            if node.number in numbers:
                node.state = state


@contextlib.asynccontextmanager
async def cluster_of(count: int, **limits: float | tuple[float, ...]) -> AsyncIterator[Cluster]:
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(TinyNode(n + 1)) for n in range(count)]
        cluster = Cluster(nodes, Limits(**limits))  # type: ignore[arg-type]  # Mostly numbers.
        try:
            yield cluster
        finally:
            await cluster.transport.close()


# Storing.


async def test_an_extent_is_on_all_nodes_it_is_said_to_be_on() -> None:
    """With its name, sums and the wish to sync, in as many pieces as the writer likes."""
    data = os.urandom(3 * MIB + 12345)
    async with cluster_of(4) as cluster:
        pieces: list[Buffer] = [data[:1], memoryview(data)[1:100_000], bytearray(data[100_000:])]
        stored = await cluster.client.store(
            pieces, inode=InodeNumber(5), chunk=2, name=b"a\xff", mtime_ns=99, replicas=3, sync=True
        )
        assert (stored.length, stored.synced, len(stored.nodes)) == (len(data), True, 3)
        assert cluster.holders() == set(stored.nodes)
        for node in cluster.nodes:
            for put in node.requests:
                assert put.target == f"/v1/extents/{extent_text(stored.extent)}?sync=1"
                header = unpack_extent_header(put.headers[EXTENT_HEADER])
                assert (header.volume, header.inode, header.chunk, header.name) == ("vol", 5, 2, b"a\xff")
        assert await cluster.fetch(stored) == data


async def test_an_extent_has_at_least_one_byte() -> None:
    async with cluster_of(3) as cluster:
        with pytest.raises(ValueError, match="at least one byte"):
            await cluster.store(b"")


async def test_every_store_has_its_own_id() -> None:
    async with cluster_of(3) as cluster:
        assert (await cluster.store()).extent != (await cluster.store()).extent


@pytest.mark.parametrize("state", ["resets", "broken", "full", "denies"])
async def test_a_node_that_fails_is_replaced(state: str) -> None:
    async with cluster_of(4) as cluster:
        cluster.set(state, 2)
        for _ in range(6):
            stored = await cluster.store()
            assert sorted(stored.nodes) == [1, 3, 4]
        assert len(cluster.nodes[1].requests) <= 1, "a node that failed is left alone for a while"


async def test_who_stores_in_the_place_of_another_is_on_a_rack_of_its_own_too() -> None:
    """Whether a node failed, or has only to be asked again because there was no connection to it yet."""
    async with cluster_of(6) as cluster:
        cluster.replicas.update([replace(n.view, rack="east" if n.number <= 3 else "west") for n in cluster.nodes])
        cluster.set("broken", 2, 5)
        for _ in range(20):
            stored = await cluster.store(replicas=2)
            assert {number <= 3 for number in stored.nodes} == {True, False}


async def test_a_dead_process_is_replaced() -> None:
    async with cluster_of(4) as cluster:
        cluster.nodes[0].__exit__()
        began = trio.current_time()
        assert sorted((await cluster.store()).nodes) == [2, 3, 4]
        assert trio.current_time() - began < 1.9


async def test_a_hung_node_costs_one_stall_and_then_nothing() -> None:
    """Contract 10: two seconds once; afterwards the node is not tried for ten."""
    async with cluster_of(3) as cluster:
        cluster.set("hangs", 3)
        began = trio.current_time()
        assert sorted((await cluster.store()).nodes) == [1, 2]
        assert 1.9 < trio.current_time() - began < 3.5
        began = trio.current_time()
        assert sorted((await cluster.store()).nodes) == [1, 2]
        assert trio.current_time() - began < 1.5
        assert cluster.client.statistics()["stored_with_fewer_replicas"] == 2


async def test_a_node_that_is_well_again_gets_its_copy_soon_when_nobody_else_can() -> None:
    """A blip leaves copies out for two seconds, not for as long as the node is not trusted."""
    async with cluster_of(3) as cluster:
        cluster.set("resets", 3)
        assert sorted((await cluster.store()).nodes) == [1, 2]
        cluster.set("up", 3)
        await trio.sleep(TRIAL_SECONDS)
        assert not cluster.replicas.is_trusted(NodeNumber(3), trio.current_time())
        assert sorted((await cluster.store()).nodes) == [1, 2, 3]
        assert cluster.replicas.is_trusted(NodeNumber(3), trio.current_time())


async def test_a_trial_of_a_node_that_still_hangs_is_short_and_rare() -> None:
    async with cluster_of(3, straggler_seconds=0.3, trial_seconds=0.2) as cluster:
        cluster.set("hangs", 3)
        await cluster.store()
        await trio.sleep(TRIAL_SECONDS)
        began = trio.current_time()
        for _ in range(5):
            assert sorted((await cluster.store()).nodes) == [1, 2]
        assert len(cluster.nodes[2].requests) <= 3
        assert trio.current_time() - began < 1.5


async def test_a_hung_node_is_replaced_when_there_is_another() -> None:
    async with cluster_of(4, straggler_seconds=0.3) as cluster:
        cluster.set("hangs", 1)
        for _ in range(8):
            assert sorted((await cluster.store()).nodes) == [2, 3, 4]


async def test_a_straggler_that_makes_it_counts() -> None:
    """Nobody gives up on a slow node while there is no other and they are too few without it."""
    async with cluster_of(2, straggler_seconds=0.1) as cluster:
        cluster.nodes[1].slow_seconds = 0.5
        cluster.set("slow", 2)
        assert sorted((await cluster.store(replicas=2)).nodes) == [1, 2]


async def test_nodes_that_are_all_slow_are_not_given_up_on() -> None:
    async with cluster_of(3, straggler_seconds=0.2) as cluster:
        for node in cluster.nodes:
            node.slow_seconds = 0.6
        cluster.set("slow", 1, 2, 3)
        assert sorted((await cluster.store()).nodes) == [1, 2, 3]


async def test_fewer_nodes_than_wanted_but_enough_is_success() -> None:
    async with cluster_of(2) as cluster:
        assert sorted((await cluster.store()).nodes) == [1, 2]


async def test_too_few_nodes_is_an_error_at_the_deadline_that_says_why() -> None:
    async with cluster_of(3, write_deadline_seconds=1.0) as cluster:
        cluster.set("resets", 2, 3)
        began = trio.current_time()
        with pytest.raises(Unavailable, match=r"on 1 nodes, 2 are needed: node [23]: .*127\.0\.0\.1"):
            await cluster.store()
        assert trio.current_time() - began < 3
        assert len(cluster.nodes[0].requests) == 1, "what has been stored is not sent again"


async def test_no_known_node_is_an_error_at_the_deadline() -> None:
    async with cluster_of(0, write_deadline_seconds=0.3) as cluster:
        with pytest.raises(Unavailable, match="no node is known"):
            await cluster.store()


async def test_a_store_goes_on_when_a_node_is_back_in_time() -> None:
    async with cluster_of(3) as cluster:
        cluster.set("resets", 2, 3)

        async def bring_back() -> None:
            await trio.sleep(1.0)
            cluster.set("up", 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_back)
            began = trio.current_time()
            stored = await cluster.store()
        assert sorted(stored.nodes) == [1, 2]
        assert trio.current_time() - began < 3.5


async def test_a_store_that_all_nodes_failed_has_all_its_copies_when_they_are_back() -> None:
    """Whoever's fault it was: that each is asked in its turn only would leave copies out that are to be had."""
    async with cluster_of(3) as cluster:
        cluster.set("resets", 1, 2, 3)

        async def bring_back() -> None:
            # Between two trials, which come soon after the start and every TRIAL_SECONDS then.
            await trio.sleep(TRIAL_SECONDS + 1.0)
            cluster.set("up", 1, 2, 3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_back)
            assert sorted((await cluster.store()).nodes) == [1, 2, 3]


async def test_nodes_that_nobody_could_hear_get_all_copies() -> None:
    """While the naming server was away; the first table afterwards calls all of them suspect."""
    async with cluster_of(3) as cluster:
        cluster.replicas.update([replace(node.view, state="suspect") for node in cluster.nodes])
        assert sorted((await cluster.store()).nodes) == [1, 2, 3]


async def test_nodes_that_are_called_dead_are_the_last_resort() -> None:
    """The table may be old; a node that takes the extent is alive."""
    async with cluster_of(3) as cluster:
        cluster.replicas.update([cluster.nodes[0].view, *(node.dead_view() for node in cluster.nodes[1:])])
        assert len((await cluster.store()).nodes) == 2


async def test_full_nodes_are_full_at_once_and_not_at_the_deadline() -> None:
    async with cluster_of(3) as cluster:
        cluster.set("full", 1, 2)
        began = trio.current_time()
        with pytest.raises(NodeFull):
            await cluster.store()
        assert trio.current_time() - began < 1.9
        cluster.set("up", 1)
        assert sorted((await cluster.store()).nodes) == [1, 3], "room that was made is found"


async def test_a_minimum_above_the_replicas_wanted_is_the_replicas_wanted() -> None:
    async with cluster_of(1) as cluster:
        assert (await cluster.store(replicas=1)).nodes == (1,)


# Fetching.


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, BLOCK_BYTES), (65_535, 65_537), (100_000, 300_001), (0, 300_001)]
)
async def test_any_part_comes_back_exact(start: int, end: int) -> None:
    data = os.urandom(300_001)
    async with cluster_of(3) as cluster:
        stored = await cluster.store(data)
        assert await cluster.fetch(stored, start, end) == data[start:end]


async def test_until_brings_what_there_is_and_not_more() -> None:
    data = os.urandom(300_001)
    async with cluster_of(3) as cluster:
        stored = await cluster.store(data)
        for end, until, last in ((10, BLOCK_BYTES, BLOCK_BYTES), (10, 4 * MIB, len(data)), (200_000, 10, 200_000)):
            view = await cluster.client.fetch(stored.extent, stored.nodes, 0, end, until=until)
            assert view == data[:last]


async def test_a_damaged_replica_is_reported_and_another_read() -> None:
    data = os.urandom(200_000)
    async with cluster_of(3) as cluster:
        stored = await cluster.store(data)
        cluster.nodes[0].flip_a_bit(70_000)
        cluster.nodes[1].extents.clear()
        for _ in range(10):
            assert await cluster.fetch(stored) == data
        assert {number for _, number, _ in cluster.damage} <= {1, 2}
        assert cluster.damage
        assert all(extent == stored.extent for extent, _, _ in cluster.damage)


async def test_no_good_replica_is_damage_at_once() -> None:
    """Every replica answered: flipped, missing, too short. Waiting would not help."""
    async with cluster_of(3) as cluster:
        stored = await cluster.store(os.urandom(200_000))
        cluster.nodes[0].flip_a_bit(0)
        cluster.nodes[0].flip_a_bit(150_000)
        cluster.nodes[1].extents.clear()
        cluster.nodes[2].shorten(65_536)
        began = trio.current_time()
        with pytest.raises(ExtentDamaged):
            await cluster.fetch(stored, 0, 65_537)
        with pytest.raises(ExtentDamaged):
            await cluster.fetch(stored, 131_072, 131_073)
        assert trio.current_time() - began < 1.5
        assert {number for _, number, _ in cluster.damage} == {1, 2, 3}


@pytest.mark.parametrize("state", ["hangs", "resets", "broken", "denies"])
async def test_a_read_goes_on_while_one_node_is_away(state: str) -> None:
    """Half a second of silence at most, and the next reads know better."""
    async with cluster_of(3) as cluster:
        stored = await cluster.store(b"x" * 1000)
        for number in (1, 2, 3):
            cluster.set("up", 1, 2, 3)
            cluster.set(state, number)
            for _ in range(3):
                began = trio.current_time()
                assert await cluster.fetch(stored) == b"x" * 1000
                assert trio.current_time() - began < 1.9
        assert cluster.damage == []


async def test_a_read_goes_on_with_one_of_three() -> None:
    async with cluster_of(3) as cluster:
        stored = await cluster.store(b"x" * 1000)
        cluster.set("hangs", 1)
        cluster.nodes[1].__exit__()
        began = trio.current_time()
        assert await cluster.fetch(stored) == b"x" * 1000
        assert trio.current_time() - began < 1.9


async def test_a_hedged_read_takes_the_first_answer_and_cancels_the_other() -> None:
    async with cluster_of(2, hedge_seconds=0.3) as cluster:
        stored = await cluster.store(b"x" * 1000, replicas=2)
        for node in cluster.nodes:
            node.slow_seconds = 0.6
        cluster.set("slow", 1, 2)
        began = trio.current_time()
        assert await cluster.fetch(stored) == b"x" * 1000
        assert 0.6 <= trio.current_time() - began < 0.88, "the one asked first answers first"
        assert cluster.client.statistics()["hedged"] == 1


@contextlib.asynccontextmanager
async def listening(cluster: Cluster) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.client.listen)
        yield
        nursery.cancel_scope.cancel()


async def until_heard(cluster: Cluster, number: int) -> None:
    with trio.fail_after(10):
        while cluster.replicas.is_silent(NodeNumber(number)):
            await trio.sleep(0.01)


async def test_no_read_waits_for_a_hung_node_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon the memory of its slowness fades; it is asked in the background, and read again when it answers."""
    monkeypatch.setattr("fusefs.chunks.replicas.LATENCY_HALF_LIFE_SECONDS", 0.01)
    async with cluster_of(2, hedge_seconds=0.4, unheard_seconds=(0.2, 0.3)) as cluster, listening(cluster):
        extents = [await cluster.store(bytes([n]) * 1000, replicas=2) for n in range(40)]
        hung = cluster.nodes[0]
        cluster.set("hangs", hung.number)
        waits = 0
        for stored in extents:
            began = trio.current_time()
            assert len(await cluster.fetch(stored)) == 1000
            waits += trio.current_time() - began > 0.35
            await trio.sleep(0.06)  # Time for the memory to fade.
        assert waits == 1
        asked = sum(request.method == "GET" for request in hung.requests)
        assert 3 < asked < 20, "now and then"
        cluster.set("up", hung.number)
        await until_heard(cluster, hung.number)
        hung.requests.clear()
        for stored in extents:
            assert len(await cluster.fetch(stored)) == 1000
        assert hung.requests, "it is read again"


async def test_a_node_that_is_slow_with_much_is_not_silent() -> None:
    """It loses against another one, and answers at once when it is asked for little."""
    async with cluster_of(2, hedge_seconds=0.3) as cluster, listening(cluster):
        stored = await cluster.store(bytes(4 * BLOCK_BYTES), replicas=2)
        slow = cluster.nodes[0]
        send_part = slow._answer_part

        def send_much_slowly(peer: Peer, name: str, wanted: str) -> None:
            if not wanted.endswith(f"-{BLOCK_BYTES - 1}"):
                slow._let_go.wait(2)
            send_part(peer, name, wanted)

        slow._answer_part = send_much_slowly  # type: ignore[method-assign]
        cluster.replicas.measured(NodeNumber(2), 0.1, trio.current_time())
        assert len(await cluster.fetch(stored)) == 4 * BLOCK_BYTES
        assert cluster.client.statistics()["hedged"] == 1
        assert cluster.replicas.is_silent(slow.number)
        await until_heard(cluster, slow.number)


async def test_all_nodes_away_is_an_error_at_the_deadline() -> None:
    async with cluster_of(3, read_deadline_seconds=1.0) as cluster:
        stored = await cluster.store()
        cluster.set("resets", 1, 2, 3)
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await cluster.fetch(stored)
        assert trio.current_time() - began < 3


async def test_who_waited_out_the_deadline_does_not_wait_it_out_again_at_once() -> None:
    """As the kernel does, page by page, when its read-ahead has failed."""
    async with cluster_of(3, read_deadline_seconds=2.5) as cluster:
        stored = await cluster.store()
        cluster.set("resets", 1, 2, 3)
        with pytest.raises(Unavailable):
            await cluster.fetch(stored)
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await cluster.fetch(stored)
        assert trio.current_time() - began < 1.5
        cluster.set("up", 2)
        assert await cluster.fetch(stored) == b"hello"


async def test_a_read_goes_on_when_a_node_is_back_in_time() -> None:
    async with cluster_of(3) as cluster:
        stored = await cluster.store()
        cluster.set("resets", 1, 2, 3)

        async def bring_back() -> None:
            await trio.sleep(1.0)
            cluster.set("up", 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_back)
            assert await cluster.fetch(stored) == b"hello"


async def test_damage_on_some_and_silence_of_the_others_is_not_damage() -> None:
    """The node that is away may have the bytes."""
    async with cluster_of(2, read_deadline_seconds=0.8) as cluster:
        stored = await cluster.store(replicas=2)
        cluster.nodes[0].flip_a_bit(0)
        cluster.set("resets", 2)
        with pytest.raises(Unavailable):
            await cluster.fetch(stored)
        assert len(cluster.damage) == 1, "reported once a read, however often it goes round"


async def test_no_bytes_of_elsewhere_in_the_extent() -> None:
    """A range that changed on its way is noticed, though the sums are right for what came."""
    async with cluster_of(1, min_write_replicas=1) as cluster:
        stored = await cluster.store(os.urandom(4 * BLOCK_BYTES), replicas=1)
        node = cluster.nodes[0]
        send_part = node._answer_part
        node._answer_part = lambda peer, name, wanted: send_part(peer, name, "bytes=65536-131071")  # type: ignore[method-assign]
        with pytest.raises(ExtentDamaged):
            await cluster.fetch(stored, 0, BLOCK_BYTES)


# Barriers.


async def test_a_barrier_names_those_that_confirmed() -> None:
    async with cluster_of(3) as cluster:
        cluster.set("resets", 2)
        nodes = [NodeNumber(n) for n in (1, 2, 3, 77)]
        assert await cluster.client.barrier(nodes, enough=lambda confirmed: len(confirmed) >= 2) == {1, 3}


async def test_a_barrier_waits_for_a_node_that_starts_and_not_for_one_that_lost_something() -> None:
    async with cluster_of(3) as cluster:
        cluster.set("resets", 2)
        cluster.set("broken", 3)

        async def bring_back() -> None:
            await trio.sleep(1.0)
            cluster.set("up", 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_back)
            began = trio.current_time()
            assert await cluster.client.barrier([NodeNumber(n) for n in (1, 2, 3)]) == {1, 2}
        assert 0.9 < trio.current_time() - began < 3.5


async def test_a_barrier_that_has_enough_gives_a_hung_node_two_seconds_once() -> None:
    async with cluster_of(3) as cluster:
        cluster.set("hangs", 2)
        nodes = [NodeNumber(n) for n in (1, 2, 3)]
        began = trio.current_time()
        assert await cluster.client.barrier(nodes, enough=lambda confirmed: len(confirmed) >= 2) == {1, 3}
        assert 1.9 < trio.current_time() - began < 3.5
        began = trio.current_time()
        assert await cluster.client.barrier(nodes, enough=lambda confirmed: len(confirmed) >= 2) == {1, 3}
        assert trio.current_time() - began < 1.5


async def test_a_barrier_that_never_has_enough_ends_at_the_deadline() -> None:
    async with cluster_of(2, write_deadline_seconds=0.5) as cluster:
        cluster.set("hangs", 2)
        assert await cluster.client.barrier([NodeNumber(1), NodeNumber(2)]) == {1}
