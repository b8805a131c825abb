"""What `dcs fsck` says while nodes come and go, and Redis is started again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from servers.admin.connection import Connection
from servers.admin.fsck import WALKS_MAX, Findings, fsck
from servers.client.naming import ServerRefused
from servers.client.storage import InventoryPage
from servers.protocol.errors import TryAgain
from servers.protocol.ids import ExtentId, NodeNumber, SessionNumber, extent_id, extent_text
from servers.protocol.placement import NodeView

SHOWN, NEEDLESS = (extent_id(SessionNumber(7), counter) for counter in (1, 2))


@dataclass
class Volume:
    """Fake of all servers: one file with one extent, on the nodes that `shown_on` says."""

    node_lists: list[list[int]]
    """What is said each time the nodes are asked for; in the end again and again."""
    shown_on: list[int] = field(default_factory=lambda: [1])
    held: dict[ExtentId, int] = field(default_factory=lambda: {SHOWN: 10})
    """By every node."""
    pages: list[ServerRefused] = field(default_factory=list)
    """Refused first."""
    collected: int = 0

    @property
    def naming(self) -> Volume:
        return self

    @property
    def storage(self) -> Volume:
        return self

    async def nodes(self) -> list[NodeView]:
        numbers = self.node_lists.pop(0) if len(self.node_lists) > 1 else self.node_lists[0]
        return [NodeView(NodeNumber(n), f"uuid{n}", f"n{n}:1", "alive", 100, 0, 100, "") for n in numbers]

    async def inventory(self, place: str, after: str | None, limit: int) -> InventoryPage:
        return InventoryPage(dict(self.held), None)

    async def check(self, place: str, extents: list[ExtentId]) -> dict[ExtentId, int | None]:
        return {extent: self.held.get(extent) for extent in extents}

    async def json(self, method: str, path: str, content: Any = None) -> dict[str, Any]:
        if path == "/v1/extents/known":
            verdicts = {extent_text(SHOWN): "needed", extent_text(NEEDLESS): "garbage"}
            return {"extents": {text: verdicts[text] for text in content["extents"]}}
        if path == "/v1/deletions/collect":
            self.collected += 1
            return {"deleted": []}
        assert path.startswith("/v1/extents?")
        if self.pages:
            raise self.pages.pop()
        row = {"id": extent_text(SHOWN), "inode": 2, "chunk": 0, "length": 10, "nodes": self.shown_on}
        return {"extents": [row], "next": None}


def look(volume: Volume, *, repair: bool = False) -> Findings:
    return asyncio.run(fsck(cast(Connection, volume), wait_seconds=0, verify=False, repair=repair))


def test_a_node_that_came_in_meanwhile_is_unknown_and_misses_nothing() -> None:
    """Its inventory was not taken; a number that is no node's at all is another matter."""
    found = look(Volume([[1], [1, 2]], shown_on=[1, 2]))
    assert (found.missing_replicas, found.exit_status) == ([], 2)
    assert found.unknown == ["node 2 (alive): it came in meanwhile; look again"]
    found = look(Volume([[1]], shown_on=[1, 2]))
    assert [(finding.node, finding.what) for finding in found.missing_replicas] == [
        (2, "no such node (inode 2, chunk 0)")
    ]
    assert found.exit_status == 1


def test_the_garbage_of_a_node_that_was_forgotten_meanwhile_is_let_be() -> None:
    volume = Volume([[1, 2], [1, 2], [1]], held={SHOWN: 10, NEEDLESS: 10})
    found = look(volume, repair=True)
    assert {finding.node for finding in found.garbage} == {1, 2}
    assert volume.collected == 1


def test_a_redis_that_is_started_again_and_again_leaves_it_unknown() -> None:
    """A few times the walk begins anew."""
    again = ServerRefused(409, "begin anew")
    assert look(Volume([[1]], pages=[again] * (WALKS_MAX - 1))).exit_status == 0
    with pytest.raises(TryAgain, match="begin anew"):
        look(Volume([[1]], pages=[again] * WALKS_MAX))
    with pytest.raises(ServerRefused):
        look(Volume([[1]], pages=[ServerRefused(404, "no such route")]))
