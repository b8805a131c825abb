"""The storage nodes as one transfer sees them: the naming server's view, and which failed it just now."""

from __future__ import annotations

import contextlib
import time

from servers.client.naming import NamingClient
from servers.protocol.errors import DcsError
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeView

REFRESH_SECONDS = 2.0
FAILED_SECONDS = 10.0
"""A node that failed is asked last for so long."""


class NodeTable:
    def __init__(self, naming: NamingClient) -> None:
        self._naming = naming
        self._nodes: dict[NodeNumber, NodeView] = {}
        self._failed_until: dict[NodeNumber, float] = {}
        self._read_at = float("-inf")

    async def load(self) -> None:
        """Raises what NamingClient.nodes raises."""
        self._read_at = time.monotonic()
        self._nodes = {node.number: node for node in await self._naming.nodes()}

    async def refresh(self) -> None:
        """Reads the table again when it is old; keeps the old one when nobody answers."""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            with contextlib.suppress(DcsError):
                await self.load()

    def failed(self, number: NodeNumber) -> None:
        self._failed_until[number] = time.monotonic() + FAILED_SECONDS

    def alive(self) -> list[NodeView]:
        """The nodes that live, without those that failed just now."""
        return [node for node in self._nodes.values() if node.takes_copies and not self._fails(node.number)]

    def by_promise(self, numbers: tuple[NodeNumber, ...], turn: int) -> list[NodeView]:
        """The nodes with these numbers, the likeliest to answer first; `turn` spreads the load among equals."""
        shift = turn % len(numbers) if numbers else 0
        known = [self._nodes[n] for n in numbers[shift:] + numbers[:shift] if n in self._nodes]
        return sorted(known, key=lambda node: (self._fails(node.number), node.state != "alive", node.state == "dead"))

    def _fails(self, number: NodeNumber) -> bool:
        return self._failed_until.get(number, 0.0) > time.monotonic()
