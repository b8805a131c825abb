"""When the background jobs run, and on which naming server.

A naming server that holds the lease `:leader` runs them; the lease ends by itself when it dies or
sleeps. Each leader has an epoch of its own, in which its jobs act: Redis refuses what one of an older
epoch still wants to do. A job that fails is logged and tried again at its next turn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from servers.naming.leadership import acting_epoch
from servers.naming.service import Service
from servers.protocol.errors import DcsError

log = logging.getLogger(__name__)

LEADER_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    name: str
    interval_seconds: float
    run: Callable[[], Awaitable[None]]


class Schedule:
    def __init__(self, service: Service, jobs: list[Job]) -> None:
        self._service = service
        self._jobs = jobs
        self._me = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"
        self._epoch = 0
        self._leads_until = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(self._repeat(job), name=job.name)

    async def _repeat(self, job: Job) -> None:
        while True:
            await asyncio.sleep(job.interval_seconds)
            if not self._service.store.connected:
                continue
            try:
                if await self._lead():
                    await self._run(job)
            except DcsError as error:
                log.info("%s waits: %s", job.name, error)
            except Exception:  # A job's mistake is loud; it stops neither the other jobs nor its own next turn.
                log.exception("%s failed", job.name)

    async def _run(self, job: Job) -> None:
        began, failed = time.monotonic(), True
        try:
            await job.run()
            failed = False
        finally:
            self._service.jobs.observe(job.name, time.monotonic() - began, failed=failed)

    async def _lead(self) -> bool:
        """Whether this server leads. Asks Redis only now and then: each renewal is a synced write."""
        now = time.monotonic()
        if now >= self._leads_until:
            acting_epoch.set(0)
            (epoch,) = await self._service.store.ask("lead", who=self._me, ms=int(LEADER_SECONDS * 1000))
            if not epoch:
                return False
            if epoch != self._epoch:
                log.info("this naming server runs the background jobs from here on, in epoch %d", epoch)
            self._epoch, self._leads_until = epoch, now + LEADER_SECONDS / 2
        acting_epoch.set(self._epoch)
        return True

    async def resign(self) -> None:
        """Lets another naming server lead at once."""
        if self._service.store.connected:
            await self._service.store.ask("resign", who=self._me)
