"""The one way to have a storage node delete: signed orders, each with a number of its own.

Called by every job that deletes; decides nothing. A node refuses an order that is older than one it
has obeyed, so orders to one node go one after the other. Should another naming server be quicker
meanwhile, ours is refused: the extents stay where they are, and whoever wanted them gone asks again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from servers.client.storage import StorageClient
from servers.naming.redis_store import RedisStore
from servers.protocol.ids import ExtentId
from servers.protocol.orders import ORDER_SECONDS, DeleteOrder
from servers.protocol.placement import NodeView


class Deletions:
    def __init__(self, store: RedisStore, storage: StorageClient, secret: str) -> None:
        self._store = store
        self._storage = storage
        self._secret = secret
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By node: there are few of them, and their names are kept."""

    async def order(self, node: NodeView, extents: Sequence[ExtentId]) -> set[ExtentId]:
        """Those of the extents (at most EXTENTS_PER_CALL_MAX) that the node certainly does not have any more.

        Raises TryAgain, NodeFailed; Refused when nothing may be deleted now. Without any extent it has the node end
        earlier orders, also while deletions are held.
        """
        async with self._turns[node.uuid]:
            number, seq, now_ms = await self._store.ask("order", empty=not extents)
            expires_ms = now_ms + int(ORDER_SECONDS * 1000)
            order = DeleteOrder(self._store.volume_uuid, node.uuid, number, seq, expires_ms, tuple(extents))
            return await self._storage.delete(node.place, order, order.sign(self._secret))
