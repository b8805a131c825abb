"""Which nodes are too full beside the others, and what they give: decided from values alone.

A node gives when it is fuller than the mean by ten points, until it is within five; to nodes
that are emptier than the mean. Copies come first: what is then one too many, repair drops from
the fullest.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from servers.naming.background.repair_plan import (
    Copy,
    Held,
    Outlook,
    Replica,
    choose_away_from,
    fullness,
    good_copies,
    next_step,
)
from servers.protocol.errors import TooFewNodes
from servers.protocol.ids import NodeNumber

FULLER_BY = 0.10
UNTIL_WITHIN = 0.05


def mean_fullness(outlook: Outlook) -> float:
    used = sum(view.used_bytes for view in outlook.takers)
    room = sum(view.used_bytes + view.free_bytes for view in outlook.takers)
    return used / room if room else 0.0


def surplus_bytes(outlook: Outlook) -> dict[NodeNumber, int]:
    """The nodes that are too full, and how many bytes each should give. None while anything is wrong with the
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
) -> Copy | None:
    """A copy on an emptier node, for an extent that lies on a node of `surplus` and of which nothing is wrong."""
    good = good_copies(held, outlook, damaged)
    if len(good) != held.target or next_step(held, outlook, damaged, chance) is not None:
        return None
    giver = max(good, key=lambda n: fullness(outlook.views[n]))
    if giver not in surplus:
        return None
    mean = mean_fullness(outlook)
    able = [v for v in outlook.takers if v.number not in held.nodes and fullness(v) < mean]
    try:
        to = choose_away_from(able, [outlook.views[n] for n in good if n != giver], held.length, chance)
    except TooFewNodes:
        return None
    return Copy(held, to, tuple(outlook.views[n] for n in good))
