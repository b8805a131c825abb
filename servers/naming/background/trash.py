"""The trash gives its room back before the disks are full: the oldest files first, no more than is wanted.

What is let go of comes back as free space only after its extents were deleted, so the keeper waits that
long before it looks again.
"""

from __future__ import annotations

import logging
import time

from servers.naming.service import Service
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.placement import Space, cluster_space

log = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0
"""Beside the grace: until the nodes have deleted it and said so in their heartbeats."""


def bytes_wanted(space: Space, replicas: int, free_share_min: float) -> int:
    """How many bytes of files, counted once, have to go for so much of the space to be free."""
    lacking = space.total_bytes * free_share_min - space.free_bytes
    return max(0, int(lacking / replicas))


class TrashKeeper:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._settled_at = 0.0
        self.emptied = 0
        """Files let go of before their time."""

    async def run(self) -> None:
        if time.monotonic() < self._settled_at:
            return
        service = self._service
        (held,) = await service.store.ask("status")
        if not held[b"trash_bytes"]:
            return
        wanted = bytes_wanted(
            cluster_space(await service.nodes()), held[b"replicas"], service.settings.trash_free_share_min
        )
        if not wanted:
            return
        files, freed = await service.store.ask("empty_trash", count=EXTENTS_PER_CALL_MAX, bytes=wanted)
        self.emptied += files
        if not freed:
            return  # Empty ones: the next turn goes on with those behind them.
        self._settled_at = time.monotonic() + service.settings.condemned_grace_seconds + SETTLE_SECONDS
        log.warning("%d removed files, %d bytes, left the trash early: the disks are getting full", files, freed)
