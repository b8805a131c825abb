"""Which nodes a transfer asks, and in which order."""

from __future__ import annotations

import asyncio
import random

from servers.admin.node_table import NodeTable
from servers.client.asyncio_transport import AsyncioTransport
from servers.client.naming import NamingClient
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeState, NodeView

N = [NodeNumber(number) for number in range(6)]


class KnownNodes(NamingClient):
    """A naming server's table that needs no server."""

    def __init__(self, **states: NodeState) -> None:
        super().__init__(AsyncioTransport("secret"), "http://nobody:1")
        self.views = [
            NodeView(NodeNumber(int(name[1:])), name, f"{name}:1", state, 100, 0, 100, "")
            for name, state in states.items()
        ]

    async def nodes(self) -> list[NodeView]:
        return self.views


def table(**states: NodeState) -> NodeTable:
    made = NodeTable(KnownNodes(**states))
    asyncio.run(made.load())
    return made


def test_readers_ask_the_likeliest_first() -> None:
    """Living ones, then suspects, then the dead; last whoever failed just now. Unknown numbers are left out."""
    nodes = table(n1="dead", n2="suspect", n3="alive", n4="alive")
    nodes.failed(N[4])
    assert [node.number for node in nodes.by_promise((N[1], N[2], N[3], N[4], N[5]), 0)] == [3, 2, 1, 4]


def test_readers_spread_over_equals() -> None:
    nodes = table(n1="alive", n2="alive", n3="alive")
    firsts = {nodes.by_promise((N[1], N[2], N[3]), random.randrange(1000)).pop(0).number for _ in range(100)}
    assert firsts == {1, 2, 3}


def test_writers_avoid_who_failed_just_now() -> None:
    nodes = table(n1="alive", n2="alive", n3="suspect")
    nodes.failed(N[2])
    assert [node.number for node in nodes.alive()] == [1]
