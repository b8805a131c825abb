"""Tells the naming servers of damaged replicas, and lets those go that nobody can need any more.

What is set aside is on the disk under a name that says whether it was reported, so nothing is
forgotten by a restart. A damaged replica is removed when its grace is over and a naming server
says that the extent is healed, or that no file shows it; no answer is no permission.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from servers.client.http import Transport
from servers.protocol.errors import AccessDenied, TryAgain
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.naming_api import DAMAGE_PATH, HEALED_PATH
from servers.storage.disks import Disk, Disks
from servers.storage.set_aside import SetAside

REPORT_SECONDS = 1.0
RETRY_SECONDS = 10.0
RELEASE_SECONDS = 3600.0
ASKED_AT_ONCE_MAX = 256
CALL_SECONDS = 10.0

logger = logging.getLogger(__name__)


class DamageReports:
    def __init__(
        self,
        transport: Transport,
        naming: Sequence[str],
        node_number: Callable[[], int | None],
        disks: Disks,
        grace_seconds: float,
    ) -> None:
        self._transport = transport
        self._naming = naming
        self._node_number = node_number
        self._disks = disks
        self._grace_seconds = grace_seconds

    async def run(self) -> None:
        """Until cancelled."""
        release_at = 0.0
        loop = asyncio.get_running_loop()
        pause = min(RELEASE_SECONDS, max(REPORT_SECONDS, self._grace_seconds / 4))
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            try:
                await self._report()
                if loop.time() >= release_at:
                    release_at = loop.time() + pause
                    await self._release()
            except (TryAgain, AccessDenied, OSError) as error:
                logger.info("damage is reported later: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _report(self) -> None:
        number = self._node_number()
        if number is None:
            return
        for disk in self._disks:
            for one in disk.damaged.unreported():
                await self._report_one(number, one.extent)
                try:
                    await asyncio.to_thread(disk.damaged.reported, one)
                except OSError as error:
                    disk.health.note(error)
            for extent in disk.damaged.unmoved_unreported():
                await self._report_one(number, extent)
                disk.damaged.unmoved_reported(extent)

    async def _report_one(self, number: int, extent: ExtentId) -> None:
        damage = {"extent": extent_text(extent), "node": number, "why": "the node says so", "verified": True}
        await self._ask(DAMAGE_PATH, damage)

    async def _release(self) -> None:
        for disk in self._disks:
            old = await asyncio.to_thread(disk.damaged.older_than, self._grace_seconds)
            while part := list(islice(old, ASKED_AT_ONCE_MAX)):
                await self._release_part(disk, part)
                del old[:ASKED_AT_ONCE_MAX]

    async def _release_part(self, disk: Disk, old: Sequence[SetAside]) -> None:
        answer = await self._ask(HEALED_PATH, {"extents": sorted({extent_text(one.extent) for one in old})})
        healed = set(answer.get("healed", ()))
        for one in old:
            if extent_text(one.extent) in healed:
                try:
                    await asyncio.to_thread(disk.damaged.remove, one)
                except OSError as error:
                    disk.health.note(error)

    async def _ask(self, path: str, content: object) -> dict[str, Any]:  # Any: values of JSON.
        """The answer of the first naming server that has one. Raises TryAgain, AccessDenied."""
        trouble: Exception = TryAgain("there is no naming server to ask")
        for address in list(self._naming):
            try:
                answer = await self._transport.request(
                    address, "POST", path, headers={"content-type": "application/json"},
                    body=[json.dumps(content).encode()], first_byte_seconds=CALL_SECONDS, deadline_seconds=CALL_SECONDS,
                )  # fmt: skip
                if answer.status == 200:
                    reply: dict[str, Any] = json.loads(bytes(answer.body))
                    return reply
                trouble = TryAgain(f"{address}: {answer.status} {bytes(answer.body[:200]).decode('utf-8', 'replace')}")
            except (TryAgain, AccessDenied, ValueError) as error:
                trouble = TryAgain(str(error))
        raise trouble
