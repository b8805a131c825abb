"""Delete orders for a node that a NamingStub told what time it is."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import httpx

from servers.protocol.ids import extent_text, parse_extent_text
from servers.protocol.orders import DeleteOrder
from tests.support.naming_stub import VOLUME
from tests.support.storage_node import SECRET, StorageNode

NOW_MS, SEQ = 1_000_000, 7
"""What the stub tells with every heartbeat."""
_NUMBERS = itertools.count(1)


def order_of(node: StorageNode, *extents: str) -> DeleteOrder:
    uuid = node.http.get("/v1/space").json()["uuid"]
    ids = tuple(parse_extent_text(extent) for extent in extents)
    return DeleteOrder(VOLUME.decode(), uuid, next(_NUMBERS), SEQ, NOW_MS + 30_000, ids)


def give(node: StorageNode, order: DeleteOrder, signature: str | None = None) -> httpx.Response:
    fields: dict[str, Any] = {
        **asdict(order), "extents": [extent_text(e) for e in order.extents],
        "signature": order.sign(SECRET) if signature is None else signature,
    }  # fmt: skip
    return node.http.post("/v1/extents/delete", json=fields)
