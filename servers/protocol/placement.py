"""Where replicas go: a pure function of what is known of the nodes, and of chance."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import NodeNumber

NodeState = Literal["alive", "suspect", "dead"]

SLOWER_BY = 4
"""Times what a store usually takes: from here on a node is slow. Less is chance, and who got the larger extents."""
SLOW_MS_MIN = 50
"""What takes no longer than this is not slow, whatever others do."""
SLOW_SHARE_MIN = 1 / 8
"""Of what it would get otherwise, for the slowest: enough for it to show that it is quick again."""


@dataclass(frozen=True)
class NodeView:
    """A storage node as the naming server tells it to those who place and read replicas."""

    number: NodeNumber
    uuid: str
    address: str
    """host:port"""
    state: NodeState
    free_bytes: int
    used_bytes: int
    total_bytes: int
    space: str
    """The file system below its data directory: nodes that share one share its free bytes."""
    rack: str = ""
    draining: bool = False
    """Being emptied: it is read from, and takes nothing new."""
    store_ms: int = 0
    """What a store took lately."""

    @property
    def place(self) -> str:
        """For calls: where to ask, and whom. See servers/client/storage.py."""
        return f"{self.uuid}@{self.address}"

    @property
    def takes_copies(self) -> bool:
        return self.state == "alive" and not self.draining


def choose_nodes(
    nodes: Iterable[NodeView],
    count: int,
    length: int,
    chance: random.Random,
    *,
    avoid: Collection[NodeNumber] = (),
    local: NodeNumber | None = None,
    beside: Iterable[NodeView] = (),
) -> list[NodeView]:
    """`count` distinct live nodes with room for `length` bytes, the first to be written first.

    Chosen with a probability that grows with free space and is less for slow nodes, on distinct racks
    while racks last, also from those of the nodes that have it already, `beside`; a live node on the client's
    own machine comes first, unless it shares a rack with one of those. Raises TooFewNodes.
    """
    able = [n for n in nodes if n.takes_copies and n.number not in avoid]
    free = {n.number: n for n in able if n.free_bytes > length}
    if len(free) < count:
        full = f": {len(able) - len(free)} have no room" if len(able) >= count else ""
        raise TooFewNodes(f"Fewer than {count} storage servers available{full}")
    usual_ms = sorted(n.store_ms for n in free.values())[(len(free) - 1) // 2] if free else 0
    chosen: list[NodeView] = []
    racks = {n.rack for n in beside if n.rack}
    if local is not None and local in free and count and free[local].rack not in racks:
        chosen.append(free.pop(local))
    while len(chosen) < count:
        racks |= {n.rack for n in chosen if n.rack}
        elsewhere = [n for n in free.values() if n.rack not in racks] or list(free.values())
        pick = chance.choices(elsewhere, weights=[n.free_bytes * share(n.store_ms, usual_ms) for n in elsewhere])[0]
        chosen.append(free.pop(pick.number))
    return chosen


def share(store_ms: float, usual_ms: float) -> float:
    """Of what a node would get by its free space, how much it gets by its speed."""
    patience_ms = max(SLOW_MS_MIN, SLOWER_BY * usual_ms)
    return 1.0 if store_ms <= patience_ms else max(SLOW_SHARE_MIN, patience_ms / store_ms)


@dataclass(frozen=True)
class Space:
    """Raw bytes of all nodes together; divide by the replication factor for what files can use."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


def cluster_space(nodes: Iterable[NodeView]) -> Space:
    """The cluster's space, each file system counted once however many nodes sit on it."""
    total = used = free = 0
    seen: set[str] = set()
    for node in nodes:
        if node.state == "dead":
            continue
        used += node.used_bytes
        if node.space not in seen and not node.draining:
            seen.add(node.space)
            free += node.free_bytes
    total = used + free
    return Space(total, used, free)
