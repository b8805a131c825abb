"""Strays of one node: whatever becomes of the others that are asked for them."""

from __future__ import annotations

from typing import Any

import pytest

from servers.naming.background.strays import drop_strays
from servers.protocol.errors import AccessDenied, DcsError, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.naming_api import pack_nodes
from servers.protocol.placement import NodeView

pytestmark = pytest.mark.anyio
ONE, TWO = ExtentId(bytes(15) + b"\1"), ExtentId(bytes(15) + b"\2")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Cluster:
    """Node 4 has two strays: the maps name node 1 for the first, node 2 for the second. Node 1 gives `error`."""

    def __init__(self, error: DcsError) -> None:
        self.store, self.storage = self, self
        self.error = error
        self.dropped: list[ExtentId] = []

    async def nodes(self) -> list[NodeView]:
        return [NodeView(NodeNumber(n), f"u{n}", f"h:{n}", "alive", 1, 1, 2, f"d{n}") for n in (1, 2, 4)]

    async def ask_gently(self, verb: str, **_: Any) -> list[Any]:
        assert verb == "strays"
        return [[ONE, pack_nodes([NodeNumber(1)]), 10, 1, TWO, pack_nodes([NodeNumber(2)]), 10, 1]]

    async def ask(self, verb: str, extents: list[ExtentId], **_: Any) -> list[Any]:
        assert verb == "drop_strays"
        self.dropped += extents
        return []

    async def check(self, place: str, extents: list[ExtentId], **_: Any) -> dict[ExtentId, int]:
        if "h:1" in place:
            raise self.error
        return dict.fromkeys(extents, 10)


@pytest.mark.parametrize("error", [TryAgain("x"), NodeFailed("x"), AccessDenied("x")], ids=repr)
async def test_a_node_that_cannot_be_asked_keeps_what_only_it_could_confirm(error: DcsError) -> None:
    """And does not end the look through the node that has the strays."""
    cluster: Any = Cluster(error)
    await drop_strays(cluster, NodeNumber(4), [ONE, TWO], grace_ms=0)
    assert cluster.dropped == [TWO]
