"""The metadata is kept on the storage nodes too: a snapshot every hour and, every other second, what changed since.
For the day on which Redis is lost.

See servers/protocol/snapshots.py for how it lies there, and servers/naming/recover.py for the way back. A
snapshot is noted before its first part is stored, so none of its parts is garbage; one that fails, or that
three later ones have replaced, is forgotten, and its parts are. While another is taken, the tail of the last one goes
on; and the new one is complete only when its own tail has reached what there was by then. Where changes cannot be
followed any more (Redis or the leader is another, the connection broke) another snapshot is taken. So it is when a
node died or is drained that has a part, and there is another node for it: parts are not repaired.

Two jobs of the leader: one takes snapshots, the other stores tails. Each has its turns one after the other.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from servers.naming.background.metadata_tail import Tail
from servers.naming.redis_feed import Feed, FeedBroken
from servers.naming.service import Service
from servers.protocol.checksum import block_sums
from servers.protocol.errors import DcsError
from servers.protocol.ids import NodeNumber
from servers.protocol.limits import CHUNK_BYTES_DEFAULT
from servers.protocol.placement import NodeView, choose_nodes
from servers.protocol.snapshots import MANIFEST, TAIL, TAIL_PARTS_MAX, Manifest, part_id
from servers.protocol.storage_api import ExtentHeader

log = logging.getLogger(__name__)

KEPT = 3
COPIES_MIN = 2
MARK_BYTES = 16
PUT_SECONDS = 60.0
FIRST_BYTE_SECONDS = 30.0

Holders = frozenset[NodeNumber]


class Snapshots:
    def __init__(self, service: Service) -> None:
        self._service = service
        settings = service.settings
        self._interval_ms = int(settings.snapshot_interval_seconds * 1000)
        self._apart_ms = min(int(settings.snapshots_apart_seconds * 1000), self._interval_ms)
        self._not_before = 0.0
        self._holders: defaultdict[int, set[Holders]] = defaultdict(set)
        """Of the snapshot that is followed, and one under way: which nodes took a part together."""
        self._under_way = 0
        self._tail: Tail | None = None
        """Of the last snapshot, if this process took it and nothing came between."""

    # Snapshots.

    async def run(self) -> None:
        if not self._interval_ms or self._service.store.fault is not None:
            return
        store = self._service.store
        now_ms, _, replicas, _, *known = await store.ask("snapshots")
        nodes = await self._service.nodes()
        wait_ms = self._interval_ms if self._is_followed(known, nodes) else self._apart_ms
        if (known and now_ms - known[-1] < wait_ms) or time.monotonic() < self._not_before:
            return
        if len(takers(nodes)) < min(COPIES_MIN, replicas):
            return  # Redis need not fork for what nobody could take.
        self._not_before = time.monotonic() + self._apart_ms / 1000
        (number,) = await store.ask("snapshot")
        self._under_way = number
        try:
            tail = await self._take(number, now_ms // 1000, replicas)
        except Exception:  # Cancelled, it waits for nothing: as after a crash the next one takes its place.
            self._holders.pop(number, None)
            await store.ask("snapshot_over", seq=number, keep=0)
            raise
        finally:
            self._under_way = 0
        self._follow(tail)
        await store.ask("snapshot_over", seq=0, keep=KEPT)
        await store.ask("stored", seq=tail.stored)

    def _is_followed(self, known: Sequence[int], nodes: Sequence[NodeView]) -> bool:
        """What changes after the last snapshot is stored, and no dead or drained node is missed for any of it."""
        tail = self._tail
        if tail is None or tail.snapshot != known[-2] or tail.is_long:
            return False
        return not are_too_few(self._holders[tail.snapshot], nodes)

    def _follow(self, tail: Tail | None) -> None:
        if self._tail is not None:
            self._tail.close()
        self._tail = tail
        kept = {self._under_way, tail.snapshot if tail else 0}
        self._holders = defaultdict(set, {number: h for number, h in self._holders.items() if number in kept})

    async def _take(self, number: int, taken_s: int, replicas: int) -> Tail:
        feed = await self._service.store.feed()
        try:
            parts, size, digest = await self._store_parts(number, feed, replicas)
            tail = Tail(number, size, feed)
            await self._store_tail(tail, replicas)
            uuid, name = self._service.store.volume_uuid, self._service.settings.volume
            manifest = Manifest(uuid, name, number, taken_s, parts, size, digest)
            await self._put(number, MANIFEST, manifest.pack(), replicas)
        except BaseException:
            feed.close()
            raise
        log.info("took a snapshot of the metadata at change %d: %d bytes", number, size)
        return tail

    async def _store_parts(self, number: int, feed: Feed, replicas: int) -> tuple[int, int, str]:
        """Returns how many parts and bytes it has, and its SHA-256."""
        held, parts, size, digest = bytearray(), 0, 0, hashlib.sha256()
        async for piece in feed.snapshot():
            digest.update(piece)
            size += len(piece)
            held += piece
            while len(held) >= CHUNK_BYTES_DEFAULT:
                await self._put(number, parts, bytes(held[:CHUNK_BYTES_DEFAULT]), replicas)
                del held[:CHUNK_BYTES_DEFAULT]
                parts += 1
        if held:
            await self._put(number, parts, bytes(held), replicas)
            parts += 1
        return parts, size, digest.hexdigest()

    # Their tails.

    async def run_tail(self) -> None:
        if not self._interval_ms:
            return
        began, store = time.monotonic(), self._service.store
        _, seq, replicas, stored, *known = await store.ask("snapshots")
        if self._service.unstored_since is None and stored < seq:
            self._service.unstored_since = began
        tail = self._tail
        if tail is not None and known[-2] not in (tail.snapshot, self._under_way):
            self._follow(None)  # Another server has led meanwhile.
        elif tail is not None:
            try:
                await tail.keep_up()
                if tail.is_due(seq):
                    await self._store_tail(tail, replicas)
            except FeedBroken as error:
                log.warning("the changes after the snapshot of change %d end: %s", tail.snapshot, error)
                if self._tail is tail:
                    self._follow(None)
            if tail is self._tail and tail.stored != stored:
                await store.ask("stored", seq=tail.stored)
                stored = tail.stored
        if stored >= seq:
            self._service.unstored_since = None

    async def _store_tail(self, tail: Tail, replicas: int) -> None:
        """The nodes have all that Redis had changed when this was called, if nothing older was waiting."""
        if not tail.waiting:
            store, mark = self._service.store, secrets.token_hex(MARK_BYTES).encode()
            _, seq, *_ = await store.ask(
                "snapshots"
            )  # Before: the mark may be written twice, and later changes between.
            await store.ask("mark", mark=mark)
            await tail.fill(mark, seq)
        while tail.waiting and tail.parts < TAIL_PARTS_MAX:
            await self._put(tail.snapshot, TAIL + tail.parts, tail.waiting[0], replicas)
            tail.is_stored()

    async def _put(self, number: int, part: int, data: bytes, replicas: int) -> None:
        """On as many nodes as are wanted, or at least on two, or on all there are."""
        service = self._service
        nodes = [node for node in takers(await service.nodes()) if node.free_bytes > len(data)]
        header = ExtentHeader(
            service.store.volume_uuid, 0, part, time.time_ns(), b"snapshot of the metadata", block_sums([data])
        )
        stored: set[NodeNumber] = set()
        problems: list[DcsError] = []
        for node in choose_nodes(nodes, min(replicas, len(nodes)), len(data), service.chance):
            try:
                await service.storage.put(
                    node.place, part_id(number, part), [data], header, sync=True,
                    deadline_seconds=PUT_SECONDS, first_byte_seconds=FIRST_BYTE_SECONDS,
                )  # fmt: skip
                stored.add(node.number)
            except DcsError as error:
                problems.append(error)
        if len(stored) < min(COPIES_MIN, replicas):
            raise problems[0] if problems else DcsError("no storage node takes a snapshot of the metadata")
        self._holders[number].add(frozenset(stored))


def are_too_few(holders: Iterable[Holders], nodes: Sequence[NodeView]) -> bool:
    """Whether some part has lost a copy to a node that is dead, or may soon be gone because it is drained, and there is
    a node that could take another."""
    there = {node.number for node in nodes if node.state != "dead" and not node.draining}
    return any(len(took & there) < min(len(took), len(takers(nodes))) for took in holders)


def takers(nodes: Iterable[NodeView]) -> list[NodeView]:
    return [node for node in nodes if node.takes_copies]
