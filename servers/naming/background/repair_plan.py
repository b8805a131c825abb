"""What is to be done so that each extent lies where it should: decided from values alone.

    fewer good copies than wanted    Copy   to a node that has none, on a rack that has none; or over a damaged one
    more, or one on a node that      Drop   once the others were read and found good
    is being emptied or damaged

Good is a copy on a node that is heard of and that nobody found damaged. A dead node's copies
count as good for a while, because it may come back: but never for the last good one. Most
endangered first. The last good copy is never dropped.

Called by the repair and rebalance jobs; asks nobody and knows no clock but the ages it is given.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servers.naming.membership import Member, Patience
from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.naming_api import unpack_nodes
from servers.protocol.placement import NodeView, choose_nodes

VANISHED_SHARE_MAX = 0.3
VANISHED_COUNT_MIN = 2
"""One node that dies is what repair is for, whatever its share of a small cluster."""
VANISHED_TOGETHER_SECONDS = 60.0
PAUSE_SECONDS = 600.0
"""For so long repair waits for nodes that vanished together: more likely a switch or a mains fuse than their disks."""


@dataclass(frozen=True, slots=True)
class Held:
    """An extent and who is said to have it."""

    extent: ExtentId
    nodes: tuple[NodeNumber, ...]
    length: int
    """At least."""
    target: int
    """So many copies are asked for."""


def held_of(rows: Sequence[Any]) -> list[Held]:
    """The rows that lua/repair.lua gives; an extent that several chunks show is there once, with the longest part."""
    found: dict[ExtentId, Held] = {}
    for extent, nodes, length, target in zip(rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True):
        known = found.get(extent)
        longest = max(length, known.length) if known else length
        found[ExtentId(extent)] = Held(ExtentId(extent), unpack_nodes(nodes), longest, target)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Copy:
    held: Held
    to: NodeView
    sources: tuple[NodeView, ...]

    @property
    def in_place(self) -> bool:
        """Over a damaged one."""
        return self.to.number in self.held.nodes


@dataclass(frozen=True, slots=True)
class Drop:
    held: Held
    node: NodeNumber
    kept: tuple[NodeView, ...]
    """Those that must be found good first."""


Step = Copy | Drop
Replica = tuple[ExtentId, NodeNumber]


@dataclass(frozen=True)
class Outlook:
    """The nodes at one moment, as repair sees them."""

    views: Mapping[NodeNumber, NodeView]
    readable: frozenset[NodeNumber]
    staying: frozenset[NodeNumber]
    """Whose copies count: readable and not being emptied."""
    awaited: frozenset[NodeNumber]
    """Dead, but their copies still count, unless for the last one."""
    is_paused: bool
    """So many vanished together that only last copies are copied."""
    takers: tuple[NodeView, ...] = field(default=())

    @property
    def draining(self) -> frozenset[NodeNumber]:
        return frozenset(number for number, view in self.views.items() if view.draining)


def look_out(members: Iterable[Member], patience: Patience, wait_seconds: float, observed_seconds: float) -> Outlook:
    """`wait_seconds`: how long after its death a node's copies still count. `observed_seconds`: for how long
    heartbeats were listened to; before, silence says nothing."""
    members = list(members)
    views = {m.view.number: m.view for m in members}
    readable = frozenset(n for n, view in views.items() if view.state != "dead")
    is_paused = vanished_together(members)
    awaited = frozenset(
        m.view.number
        for m in members
        if m.view.state == "dead"
        and not m.view.draining
        and (is_paused or min(m.silent_seconds - patience.dead_after_seconds, observed_seconds) < wait_seconds)
    )
    staying = frozenset(n for n in readable if not views[n].draining)
    takers = tuple(view for view in views.values() if view.takes_copies)
    return Outlook(views, readable, staying, awaited, is_paused, takers)


def vanished_together(members: Sequence[Member]) -> bool:
    """Whether, not long ago, too large a part of the nodes was last heard within one minute and is still away."""
    ages = sorted(m.silent_seconds for m in members if m.view.state == "dead")
    alive = sum(m.view.state != "dead" for m in members)
    for first in ages:
        if first > PAUSE_SECONDS:
            return False
        together = sum(first <= age <= first + VANISHED_TOGETHER_SECONDS for age in ages)
        there_before = alive + sum(age <= first + VANISHED_TOGETHER_SECONDS for age in ages)
        if together >= VANISHED_COUNT_MIN and together > VANISHED_SHARE_MAX * there_before:
            return True
    return False


def good_copies(held: Held, outlook: Outlook, damaged: Collection[Replica]) -> list[NodeNumber]:
    """The nodes that can be read from and have it, as far as is known."""
    return [n for n in held.nodes if n in outlook.readable and (held.extent, n) not in damaged]


def lacking(held: Held, outlook: Outlook, damaged: Collection[Replica]) -> int:
    """How many good copies that stay are missing, awaited ones too; less than 0 for surplus."""
    good = good_copies(held, outlook, damaged)
    return held.target - sum(n in outlook.staying for n in good)


def next_step(
    held: Held,
    outlook: Outlook,
    damaged: Collection[Replica],
    chance: random.Random,
    refused: Collection[Replica] = (),
) -> Step | None:
    """What to do for this extent now; None when nothing is to be done, or nothing can be. `refused`: copies that
    were tried in vain of late."""
    good = good_copies(held, outlook, damaged)
    if not good:
        return None
    staying = [n for n in good if n in outlook.staying]
    counted = len(staying)
    if len(good) > 1:
        counted += sum(n in outlook.awaited and (held.extent, n) not in damaged for n in held.nodes)
    if counted < held.target:
        return _copy(held, outlook, good, staying, chance, refused)
    return _drop(held, outlook, staying)


def _copy(
    held: Held,
    outlook: Outlook,
    good: list[NodeNumber],
    staying: list[NodeNumber],
    chance: random.Random,
    refused: Collection[Replica],
) -> Copy | None:
    able = [v for v in outlook.takers if (held.extent, v.number) not in refused and v.number not in good]
    # What replaces a damaged copy is stored beside it: that needs room like any other.
    again = [v for v in able if v.number in held.nodes and v.free_bytes > held.length]
    if again:
        to = again[0]
    else:
        try:
            (to,) = choose_nodes(able, 1, held.length, chance, beside=[outlook.views[n] for n in staying])
        except TooFewNodes:
            return None
    return Copy(held, to, _best_first(good, outlook, chance))


def _best_first(numbers: Iterable[NodeNumber], outlook: Outlook, chance: random.Random) -> tuple[NodeView, ...]:
    """Nodes to read from, shuffled so that all of them give."""
    views = [outlook.views[n] for n in numbers]
    chance.shuffle(views)
    return tuple(sorted(views, key=lambda view: view.state != "alive"))


def _drop(held: Held, outlook: Outlook, staying: list[NodeNumber]) -> Drop | None:
    """One copy that is not wanted any more, if enough good ones that stay are alive."""
    alive = [n for n in staying if outlook.views[n].state == "alive"]
    unwanted = [n for n in held.nodes if n not in staying and not _may_come_back(n, outlook)]
    if unwanted:
        node = unwanted[0]
    elif len(alive) > held.target:
        node = least_useful(alive, outlook)
        alive.remove(node)
    else:
        return None
    if not alive or len(alive) < held.target:
        return None
    return Drop(held, node, tuple(outlook.views[n] for n in alive))


def _may_come_back(number: NodeNumber, outlook: Outlook) -> bool:
    """It is dead, but nobody said that it is gone for good: then what it has is of use again."""
    view = outlook.views.get(number)
    return view is not None and view.state == "dead" and not view.draining


def least_useful(numbers: list[NodeNumber], outlook: Outlook) -> NodeNumber:
    """One that shares a rack with another, and of those the one on the fullest node."""
    racks = [outlook.views[n].rack for n in numbers]

    def order(number: NodeNumber) -> tuple[bool, float]:
        view = outlook.views[number]
        return bool(view.rack) and racks.count(view.rack) > 1, fullness(view)

    return max(numbers, key=order)


def fullness(view: NodeView) -> float:
    """Of what the node may use, the part that it does."""
    room = view.used_bytes + view.free_bytes
    return view.used_bytes / room if room else 1.0


@dataclass
class Load:
    """What one round may ask of each node."""

    count_max: int
    bytes_max: int
    counts: dict[NodeNumber, int] = field(default_factory=dict)
    bytes: dict[NodeNumber, int] = field(default_factory=dict)

    def take(self, number: NodeNumber, size: int) -> bool:
        count, taken = self.counts.get(number, 0), self.bytes.get(number, 0)
        if count >= self.count_max or (count and taken + size > self.bytes_max):
            return False
        self.counts[number], self.bytes[number] = count + 1, taken + size
        return True


@dataclass(frozen=True)
class Plan:
    steps: list[Step]
    later: list[Held]
    """There was no room for them in this round."""
    idle: list[Held]
    """Nothing is to be done for them, or nothing can be, while the nodes are as they are."""


def repair_plan(
    endangered: Iterable[Held],
    outlook: Outlook,
    damaged: Collection[Replica],
    load: Load,
    chance: random.Random,
    refused: Collection[Replica] = (),
) -> Plan:
    """The steps of one round, those for the extents with the fewest good copies first."""
    order = sorted(endangered, key=lambda held: len(good_copies(held, outlook, damaged)))
    plan = Plan([], [], [])
    for held in order:
        step = next_step(held, outlook, damaged, chance, refused)
        if step is None:
            plan.idle.append(held)
        elif load.take(step.to.number if isinstance(step, Copy) else step.node, held.length):
            plan.steps.append(step)
        else:
            plan.later.append(held)
    return plan
