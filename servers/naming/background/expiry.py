"""Sessions whose lease ran out are forgotten; what they had open is closed."""

from __future__ import annotations

from servers.naming.service import Service

SESSIONS_PER_RUN = 100


async def expire_sessions(service: Service) -> None:
    await service.store.ask("expire_sessions", count=SESSIONS_PER_RUN)
