"""Who is alive: a pure function of when a node was last heard and of now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeState, NodeView

SUSPECT_AFTER_SECONDS = 6.0
DEAD_AFTER_SECONDS = 30.0


def judge(last_seen_s: float, now_s: float) -> NodeState:
    silence = now_s - last_seen_s
    if silence < SUSPECT_AFTER_SECONDS:
        return "alive"
    return "suspect" if silence < DEAD_AFTER_SECONDS else "dead"


def read_nodes(rows: Sequence[Any]) -> list[NodeView]:
    """The reply of the `nodes` function: now in milliseconds, then number and record by turns."""
    now_s = rows[0] / 1000
    nodes = []
    for number, record in zip(rows[1::2], rows[2::2], strict=True):
        uuid, address, rack, space, used, free, total, seen_ms = msgpack.unpackb(record)
        state = judge(seen_ms / 1000, now_s)
        nodes.append(NodeView(NodeNumber(int(number)), uuid, address, state, free, used, total, space, rack))
    return sorted(nodes, key=lambda node: node.number)
