"""An extent client over given nodes, with what a mount would give it made up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from fusefs.chunks.client import ExtentClient, StoredExtent
from fusefs.chunks.limits import Limits
from fusefs.chunks.replicas import Replicas
from fusefs.transport import TrioTransport
from servers.client.storage import StorageClient
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber, SessionNumber, extent_id
from servers.protocol.placement import NodeView


class ExtentUser:
    def __init__(self, views: Sequence[NodeView], secret: str, limits: Limits) -> None:
        self.replicas = Replicas()
        self.replicas.update(views)
        self.transport = TrioTransport(secret)
        self.damage: list[tuple[ExtentId, NodeNumber, str]] = []
        counter = itertools.count(1)
        self.client = ExtentClient(
            StorageClient(self.transport, self.transport.request_at_once),
            self.replicas,
            new_id=lambda: extent_id(SessionNumber(7), next(counter)),
            volume="vol",
            report_damage=lambda *what: self.damage.append(what),
            limits=limits,
            chance=random.Random(1),
        )

    async def store(self, data: bytes = b"hello", replicas: int = 3, sync: bool = False) -> StoredExtent:
        return await self.client.store(
            [data], inode=InodeNumber(5), chunk=2, name=b"a.txt", mtime_ns=99, replicas=replicas, sync=sync
        )

    async def fetch(self, stored: StoredExtent, start: int = 0, end: int | None = None) -> bytes:
        end = stored.length if end is None else end
        return bytes(await self.client.fetch(stored.extent, stored.nodes, start, end))
