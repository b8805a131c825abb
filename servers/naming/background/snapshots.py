"""The metadata is kept on the storage nodes too: a snapshot every hour, for the day on which Redis is lost.

See servers/protocol/snapshots.py for how it lies there, and servers/naming/recover.py for the way back. A
snapshot is noted before its first part is stored, so none of its parts is garbage; one that fails, or that
three later ones have replaced, is forgotten, and its parts are.
"""

from __future__ import annotations

import hashlib
import logging
import time

from servers.naming.service import Service, alive
from servers.protocol.checksum import block_sums
from servers.protocol.errors import DcsError
from servers.protocol.limits import CHUNK_BYTES_DEFAULT
from servers.protocol.placement import choose_nodes
from servers.protocol.snapshots import MANIFEST, Manifest, part_id
from servers.protocol.storage_api import ExtentHeader

log = logging.getLogger(__name__)

KEPT = 3
PUT_SECONDS = 60.0
FIRST_BYTE_SECONDS = 30.0


class Snapshots:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._interval_ms = int(service.settings.snapshot_interval_seconds * 1000)
        self.taken = 0

    async def run(self) -> None:
        if not self._interval_ms:
            return
        store = self._service.store
        now_ms, seq, replicas, *known = await store.ask("snapshots")
        if known and now_ms - known[-1] < self._interval_ms:
            return
        await store.ask("snapshot", seq=seq)
        if known and known[-2] == seq:
            return  # Nothing has changed: the last one is as good now.
        try:
            size = await self._store_parts(seq, now_ms // 1000, replicas)
        except BaseException:
            await store.ask("snapshot_over", seq=seq, keep=0)
            raise
        await store.ask("snapshot_over", seq=0, keep=KEPT)
        self.taken += 1
        log.info("took a snapshot of the metadata at change %d: %d bytes", seq, size)

    async def _store_parts(self, seq: int, taken_s: int, replicas: int) -> int:
        held, parts, size, digest = bytearray(), 0, 0, hashlib.sha256()
        async for piece in self._service.store.snapshot():
            digest.update(piece)
            size += len(piece)
            held += piece
            while len(held) >= CHUNK_BYTES_DEFAULT:
                await self._put(seq, parts, bytes(held[:CHUNK_BYTES_DEFAULT]), replicas)
                del held[:CHUNK_BYTES_DEFAULT]
                parts += 1
        if held:
            await self._put(seq, parts, bytes(held), replicas)
            parts += 1
        service = self._service
        manifest = Manifest(
            service.store.volume_uuid, service.settings.volume, seq, taken_s, parts, size, digest.hexdigest()
        )
        await self._put(seq, MANIFEST, manifest.pack(), replicas)
        return size

    async def _put(self, seq: int, part: int, data: bytes, replicas: int) -> None:
        """On as many nodes as are wanted, or at least on two, or on all there are."""
        service = self._service
        nodes = alive(await service.nodes())
        header = ExtentHeader(
            service.store.volume_uuid, 0, part, time.time_ns(), b"snapshot of the metadata", block_sums([data])
        )
        stored, problems = 0, []
        for node in choose_nodes(nodes, min(replicas, len(nodes)), len(data), service.chance):
            try:
                await service.storage.put(
                    node.address, part_id(seq, part), [data], header, sync=True,
                    deadline_seconds=PUT_SECONDS, first_byte_seconds=FIRST_BYTE_SECONDS,
                )  # fmt: skip
                stored += 1
            except DcsError as error:
                problems.append(error)
        if stored < min(2, replicas):
            raise problems[0] if problems else DcsError("no storage node takes a snapshot of the metadata")
