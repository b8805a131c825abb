"""Which nodes are too full beside the others, and what they give: decided from values alone.

A node gives while it is fuller than the mean by ten points, to nodes that are emptier than the
mean: of what it says it uses, so what is under way still may bring it lower, but not nearer than
five. A node with a lot ends just under ten. Copies come first, and repair drops what is then one
too many. It does not drop the only copy on a rack: so only such copies are made for which it takes
that of a node which is to give. Where racks leave none, a node stays fuller than the others.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from servers.naming.background.repair_plan import (
    Copy,
    Held,
    Outlook,
    Replica,
    fullness,
    good_copies,
    least_useful,
    next_step,
)
from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import NodeNumber
from servers.protocol.placement import choose_nodes

FULLER_BY = 0.10
UNTIL_WITHIN = 0.05


@dataclass(frozen=True)
class Gift:
    copy: Copy
    giver: NodeNumber
    """Whose copy is not needed any more then."""


def mean_fullness(outlook: Outlook) -> float:
    used = sum(view.used_bytes for view in outlook.takers)
    room = sum(view.used_bytes + view.free_bytes for view in outlook.takers)
    return used / room if room else 0.0


def surplus_bytes(outlook: Outlook) -> dict[NodeNumber, int]:
    """The nodes that are too full, and how many bytes each should give at most. None while anything is wrong with the
    cluster: then repair goes first."""
    if outlook.is_paused or outlook.awaited or len(outlook.staying) != len(outlook.takers):
        return {}
    mean = mean_fullness(outlook)
    return {
        view.number: int((fullness(view) - mean - UNTIL_WITHIN) * (view.used_bytes + view.free_bytes))
        for view in outlook.takers
        if fullness(view) > mean + FULLER_BY
    }


def rebalance_step(
    held: Held, outlook: Outlook, damaged: Collection[Replica], surplus: Collection[NodeNumber], chance: random.Random
) -> Gift | None:
    """For an extent of which nothing is wrong: a copy on an emptier node that lets one of `surplus` drop its own."""
    good = good_copies(held, outlook, damaged)
    if len(good) != held.target or not any(n in surplus for n in good):
        return None
    if next_step(held, outlook, damaged, chance) is not None:
        return None
    mean = mean_fullness(outlook)
    # Of a copy that was damaged there once, and is not known to be gone, repair would take the new one for it.
    emptier = [
        v for v in outlook.takers
        if v.number not in held.nodes and (held.extent, v.number) not in damaged and fullness(v) < mean
    ]  # fmt: skip
    # Who is to give is fuller than all of these, so it makes no difference which node of a rack has the copy.
    dropped = {v.rack: least_useful([*good, v.number], outlook) for v in {v.rack: v for v in emptier}.values()}
    able = [v for v in emptier if dropped[v.rack] in surplus]
    try:
        others = [outlook.views[n] for n in good if n not in surplus]
        (to,) = choose_nodes(able, 1, held.length, chance, beside=others)
    except TooFewNodes:
        return None
    return Gift(Copy(held, to, tuple(outlook.views[n] for n in good)), dropped[to.rack])
