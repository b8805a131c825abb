"""What the mount knows of the storage nodes, and which it would rather ask.

Fed from two sides: the naming server's table, through `update`, and the mount's own
experience, through `answered`, `failed`, `full` and `silent`. Used by the extent client. Decides from
values and the time it is given; asks nobody and never waits.

    trusted ──failed──▶ ejected for 10 s ──fails again──▶ ejected for 60 s
       ▲                       │                                │
       └─answered, new address─┴────────────────────────────────┘

    heard ──kept a reader waiting──▶ silent, read last ──gave bytes, new address──▶ heard

A node that is not trusted is the last resort, never nothing: the mount may be wrong. One that only this
mount does not trust is tried now and then where a copy would be left out without it, and at once where a store
would fail without it: when all have failed together, it was hardly they. A silent one is not forgiven by time,
nor for what it takes from writers: silent_nodes.py asks it, so that no reader has to find out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeView

EJECTED_SECONDS = 10.0
EJECTED_AGAIN_SECONDS = 60.0
FULL_SECONDS = 10.0
TRIAL_SECONDS = 2.0
"""Between two trials of an ejected node: should it still hang, a writer waits a trial's time this often at most."""
LATENCY_WEIGHT = 0.2
"""Of a new measurement in the moving average."""
LATENCY_HALF_LIFE_SECONDS = 10.0
"""An old measurement fades, so that a node that was slow once is asked again."""


@dataclass(slots=True)
class _Experience:
    failures: int = 0
    ejected_until: float = 0.0
    full_until: float = 0.0
    tried_at: float = -math.inf
    latency_seconds: float = 0.0
    measured_at: float = 0.0
    silent: bool = False

    def latency(self, now: float) -> float:
        age: float = 0.5 ** ((now - self.measured_at) / LATENCY_HALF_LIFE_SECONDS)
        return self.latency_seconds * age


class Replicas:
    """The storage nodes as this mount sees them."""

    def __init__(self) -> None:
        self.local: NodeNumber | None = None
        """The node on this machine, where there is exactly one; it is written to first."""
        self._nodes: dict[NodeNumber, NodeView] = {}
        self._experience: dict[NodeNumber, _Experience] = {}

    def update(self, nodes: Iterable[NodeView]) -> None:
        """The naming server's table as it is now. A node that came back or moved is trusted again."""
        table = {node.number: node for node in nodes}
        for number, before in self._nodes.items():
            after = table.get(number)
            came_back = after is not None and after.state == "alive" and before.state != "alive"
            if after is None or came_back or after.address != before.address:
                self._experience.pop(number, None)
        self._nodes = table

    def node(self, number: NodeNumber) -> NodeView | None:
        return self._nodes.get(number)

    def known(self, numbers: Iterable[NodeNumber]) -> list[NodeView]:
        """Those of the nodes that are in the table."""
        return [node for number in numbers if (node := self._nodes.get(number)) is not None]

    def nodes(self) -> list[NodeView]:
        return list(self._nodes.values())

    def draining(self) -> set[NodeNumber]:
        """Those that are to be emptied."""
        return {node.number for node in self._nodes.values() if node.draining}

    def reachable_count(self) -> int:
        """How many nodes there are, leaving out those that are dead."""
        return sum(node.state != "dead" for node in self._nodes.values())

    def is_trusted(self, number: NodeNumber, now: float) -> bool:
        node = self._nodes.get(number)
        return node is not None and node.state == "alive" and now >= self._of(number).ejected_until

    def answered(self, number: NodeNumber) -> None:
        """The node did what it was asked to: it is trusted."""
        own = self._of(number)
        own.failures = 0
        own.ejected_until = 0.0

    def measured(self, number: NodeNumber, seconds: float, now: float) -> None:
        """The node took this long, or longer; whether it would have helped is not known."""
        own = self._of(number)
        before = own.latency(now)
        own.latency_seconds = seconds if not own.measured_at else before + LATENCY_WEIGHT * (seconds - before)
        own.measured_at = now

    def silent(self, number: NodeNumber) -> None:
        """The node kept a reader waiting for longer than another one would have: it is read last until it is heard."""
        self._of(number).silent = True

    def heard(self, number: NodeNumber) -> None:
        """The node gave somebody who reads an answer in time."""
        self._of(number).silent = False

    def is_silent(self, number: NodeNumber) -> bool:
        return number in self._nodes and self._of(number).silent

    def failed(self, number: NodeNumber, now: float) -> None:
        """The node did not answer or could not help. What fails together counts as one failure."""
        own = self._of(number)
        if now < own.ejected_until:
            return
        own.failures += 1
        own.ejected_until = now + (EJECTED_SECONDS if own.failures == 1 else EJECTED_AGAIN_SECONDS)

    def full(self, number: NodeNumber, now: float) -> None:
        """The node had no room; it may still be read."""
        self._of(number).full_until = now + FULL_SECONDS

    def order_for_reading(self, numbers: Sequence[NodeNumber], now: float) -> list[NodeView]:
        """Those of the nodes whose address is known, best first: trusted ones by latency, then the others,
        and the silent last: they cost time."""
        known = self.known(numbers)
        known.sort(key=lambda node: self._reading_rank(node, now))
        return known

    def candidates_for_writing(self, length: int, now: float) -> list[NodeView]:
        """The nodes that should be able to take so many bytes; what `choose_nodes` chooses from."""
        return [node for node in self._nodes.values() if self._should_take(node, length, now)]

    def take_trials(
        self, count: int, length: int, now: float, *, without: Collection[NodeNumber] = (), in_need: bool = False
    ) -> list[NodeView]:
        """Up to `count` of those that only this mount does not trust, and whose turn for a trial it is; it is taken
        now. Who is `in_need` waits for no turn, and takes suspects too: after the naming server was away all are."""
        others = [node for node in self._nodes.values() if node.number not in without]
        trials = [node for node in others if self._may_try(node, length, now, in_need)]
        trials.sort(key=lambda node: self._of(node.number).tried_at)
        for node in trials[:count]:
            self._of(node.number).tried_at = now
        return trials[:count]

    def last_resorts_for_writing(self, length: int, now: float) -> list[NodeView]:
        """All other nodes, best first: to be asked when those that should be able are too few."""
        others = [node for node in self._nodes.values() if not self._should_take(node, length, now)]
        others.sort(key=lambda node: (node.state == "dead", node.draining, self._of(node.number).ejected_until))
        return others

    def statistics(self, now: float) -> dict[str, int]:
        return {
            "nodes": len(self._nodes),
            "alive": sum(node.state == "alive" for node in self._nodes.values()),
            "ejected": sum(now < own.ejected_until or own.silent for own in self._experience.values()),
        }

    def _of(self, number: NodeNumber) -> _Experience:
        return self._experience.setdefault(number, _Experience())

    def _should_take(self, node: NodeView, length: int, now: float) -> bool:
        return node.takes_copies and self._has_room(node, length, now) and self.is_trusted(node.number, now)

    def _may_try(self, node: NodeView, length: int, now: float, in_need: bool) -> bool:
        own = self._of(node.number)
        if node.draining or not self._has_room(node, length, now):
            return False
        if in_need:
            return node.state != "dead" and not self.is_trusted(node.number, now)
        return node.state == "alive" and own.tried_at + TRIAL_SECONDS <= now < own.ejected_until

    def _has_room(self, node: NodeView, length: int, now: float) -> bool:
        return node.free_bytes > length and now >= self._of(node.number).full_until

    def _reading_rank(self, node: NodeView, now: float) -> tuple[bool, bool, bool, bool, float]:
        own = self._of(node.number)
        return node.state == "dead", own.silent, now < own.ejected_until, node.state == "suspect", own.latency(now)
