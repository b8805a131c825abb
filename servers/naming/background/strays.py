"""Copies that a node has and no map looks for there: it stored them when their writer had given it up.

They are as surplus copies: dropped once those that the map names were read and found good, and deleted by
`Dropped` after the grace. Called by the garbage collector, which has the nodes tell all that they hold.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from servers.naming.background.repair_plan import Held, held_of
from servers.naming.service import Service, alive
from servers.protocol.errors import AccessDenied, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

LOOKED_AT_ONCE = 16
"""The chunk of each is read for it, while Redis does nothing else."""
VERIFY_SECONDS = 120.0


async def drop_strays(service: Service, node: NodeNumber, names: Sequence[ExtentId], grace_ms: int) -> None:
    """Of the extents, which are on the node, those that it is not to have. Raises as the calls do."""
    for at in range(0, len(names), LOOKED_AT_ONCE):
        (rows,) = await service.ask_gently("strays", node=node, extents=names[at : at + LOOKED_AT_ONCE])
        sound = await _sound(service, held_of(rows))
        if sound:
            await service.store.ask("drop_strays", node=node, extents=sound, grace_ms=grace_ms)


async def _sound(service: Service, found: Sequence[Held]) -> list[ExtentId]:
    """Those that all nodes of their maps have read just now, and found good."""
    views = {view.number: view for view in alive(await service.nodes())} if found else {}
    wanted: dict[NodeNumber, list[ExtentId]] = {}
    for held in found:
        for number in held.nodes:
            wanted.setdefault(number, []).append(held.extent)
    lengths = {
        number: await _lengths_on(service, views[number], extents)
        for number, extents in wanted.items()
        if number in views
    }
    return [
        held.extent
        for held in found
        if all((lengths.get(number, {}).get(held.extent) or -1) >= held.length for number in held.nodes)
    ]


async def _lengths_on(service: Service, view: NodeView, extents: Sequence[ExtentId]) -> dict[ExtentId, int | None]:
    """Of those that the node has read and found good; of none when it cannot be asked: that is its own trouble, and
    not of the node that is looked through."""
    try:
        return await service.storage.check(view.place, extents, data=True, deadline_seconds=VERIFY_SECONDS)
    except (TryAgain, NodeFailed, AccessDenied) as error:
        log.info("node %d cannot be asked now: %s", view.number, error)
        return {}
