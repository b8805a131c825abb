"""When the background jobs run, and on which naming server.

A naming server that holds the lease `:leader` runs them; the lease ends by itself when it
dies. A job that fails is logged and tried again at its next turn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from servers.naming.keyspace import prefix
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
        self._key = prefix(service.settings.volume) + ":leader"
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
        """Whether this server leads. Asks Redis only now and then: each renewal is a synced write, and two leaders
        do no harm, because whatever the jobs do may be done twice."""
        store, milliseconds, now = self._service.store, int(LEADER_SECONDS * 1000), time.monotonic()
        if now < self._leads_until:
            return True
        if not await store.command("SET", self._key, self._me, "NX", "PX", milliseconds):
            if await store.command("GET", self._key) != self._me.encode():
                return False
            await store.command("PEXPIRE", self._key, milliseconds)
        self._leads_until = now + LEADER_SECONDS / 2
        return True

    async def resign(self) -> None:
        """Lets another naming server lead at once."""
        store = self._service.store
        if store.connected and await store.command("GET", self._key) == self._me.encode():
            await store.command("DEL", self._key)
