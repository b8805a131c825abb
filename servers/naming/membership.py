"""Who is alive: a pure function of when nodes were heard and of now.

    alive ──silent 6 s──▶ suspect ──silent 30 s──▶ dead          a heartbeat makes it alive again
      ▲                                                           at once, but for one that comes
      └── steady for the probation ── suspect ◀── and goes too often: it stays suspect for a while

A suspect node is read from and written to after all others, and its copies count; a dead one's
copies are replaced after a while. Knows no Redis; the heartbeat function (lua/nodes.lua) keeps
the times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from servers.protocol.ids import NodeNumber
from servers.protocol.placement import NodeState, NodeView

SUSPECT_AFTER_SECONDS = 6.0
DEAD_AFTER_SECONDS = 30.0
RETURNS_TOLERATED = 3
PROBATION_SECONDS = 30.0
"""For the first return too many; twice as long for each further one."""
PROBATION_SECONDS_MAX = 480.0
CALM_SECONDS = 600.0
"""A node that was steady for so long has its earlier returns forgotten."""


@dataclass(frozen=True)
class Patience:
    suspect_after_seconds: float = SUSPECT_AFTER_SECONDS
    dead_after_seconds: float = DEAD_AFTER_SECONDS
    returns_tolerated: int = RETURNS_TOLERATED


@dataclass(frozen=True)
class Member:
    """A storage node and what its heartbeats tell of its life."""

    view: NodeView
    silent_seconds: float
    """Since its last heartbeat."""
    draining_seconds: float = 0.0
    """Since an operator asked to empty it."""
    draining_since_ms: int = 0
    """When that was, by Redis's clock: it tells one such wish from the next."""


def judge(silent_seconds: float, steady_seconds: float, returns: int, patience: Patience) -> NodeState:
    """`steady_seconds`: since it was heard again after its last silence, `returns`: how often that happened of late."""
    if silent_seconds >= patience.dead_after_seconds:
        return "dead"
    if silent_seconds >= patience.suspect_after_seconds or steady_seconds < probation_seconds(returns, patience):
        return "suspect"
    return "alive"


def probation_seconds(returns: int, patience: Patience) -> float:
    """How long a node must be steady after so many returns before it is trusted again."""
    too_many = returns - patience.returns_tolerated
    if too_many <= 0:
        return 0.0
    return min(PROBATION_SECONDS * 2.0 ** min(too_many - 1, 10), PROBATION_SECONDS_MAX)


def read_members(rows: Sequence[Any], patience: Patience) -> list[Member]:
    """The reply of the `nodes` function: now, then number, record and when its draining began, by turns, in ms."""
    now_ms, members = rows[0], []
    for number, record, draining_ms in zip(rows[1::3], rows[2::3], rows[3::3], strict=True):
        uuid, address, rack, space, used, free, total, seen_ms, *life = msgpack.unpackb(record)
        since_ms, returns, store_ms = (*life, 0, 0, 0)[:3]
        silent_seconds = (now_ms - seen_ms) / 1000
        state = judge(silent_seconds, (now_ms - since_ms) / 1000, returns, patience)
        view = NodeView(
            NodeNumber(int(number)), uuid, address, state, free, used, total, space, rack, draining=draining_ms > 0,
            store_ms=store_ms,
        )  # fmt: skip
        draining_seconds = (now_ms - draining_ms) / 1000 if draining_ms else 0.0
        members.append(Member(view, silent_seconds, draining_seconds, draining_ms))
    return sorted(_without_ghosts(members), key=lambda member: member.view.number)


def _without_ghosts(members: list[Member]) -> list[Member]:
    """Of those with one address only the last that was heard can be there: the others had their disks taken away."""
    heard: dict[str, float] = {}
    for m in members:
        heard[m.view.address] = min(m.silent_seconds, heard.get(m.view.address, m.silent_seconds))
    return [
        m if m.silent_seconds == heard[m.view.address] else replace(m, view=replace(m.view, state="dead"))
        for m in members
    ]
