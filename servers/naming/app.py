"""The naming server's application: routes, errors, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from servers.naming.background.expiry import expire_sessions
from servers.naming.background.garbage import GarbageCollector, delete_condemned, reap
from servers.naming.background.schedule import Job, Schedule
from servers.naming.redis_store import UnsafeRedis
from servers.naming.routes.cluster import cluster_routes
from servers.naming.routes.files import file_routes
from servers.naming.service import Service
from servers.protocol.errors import DcsError, Refused, TooFewNodes, TryAgain
from servers.protocol.storage_api import HEALTH_PATH

log = logging.getLogger(__name__)

FIRST_CONNECTION_SECONDS = 30.0
STATUS_OF_ERRNO = {1: 403, 2: 404, 17: 409, 20: 404, 21: 409, 28: 507, 30: 503, 36: 422, 39: 409, 116: 404}

DESCRIPTION = """Names, attributes and chunk maps of a Distributed Chunk Storage volume.

Every route but `/health` wants `Authorization: Bearer <cluster secret>`."""


def make_app(service: Service) -> FastAPI:
    app = FastAPI(
        title="Distributed Chunk Storage: naming server", description=DESCRIPTION, lifespan=_lifespan(service)
    )
    app.include_router(file_routes(service))
    app.include_router(cluster_routes(service))

    @app.get(HEALTH_PATH)
    async def health() -> JSONResponse:
        """200 while Redis answers; 503 otherwise."""
        if service.store.connected:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "redis is away", "detail": str(service.store.fault or "")}, 503)

    @app.exception_handler(DcsError)
    async def refuse(request: Request, error: DcsError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, _status_of(error))

    return app


def _status_of(error: DcsError) -> int:
    if isinstance(error, Refused):
        return STATUS_OF_ERRNO.get(error.errno, 400)
    if isinstance(error, TryAgain):
        return 503
    if isinstance(error, TooFewNodes):
        return 500  # As the first users' scripts expect it: "Fewer than 3 storage servers available".
    return 502


def _jobs(service: Service) -> list[Job]:
    pace = service.settings.background_interval_seconds
    return [
        Job("expiry", pace, lambda: expire_sessions(service)),
        Job("reap", pace, lambda: reap(service)),
        Job("delete", pace, lambda: delete_condemned(service)),
        Job("garbage", service.settings.garbage_interval_seconds, GarbageCollector(service).run),
    ]


def _lifespan(service: Service) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        schedule = Schedule(service, _jobs(service))
        connection = asyncio.create_task(service.store.run(), name="redis")
        tasks = [connection]
        try:
            await _first_connection(service, connection)
            tasks += [asyncio.create_task(schedule.run()), asyncio.create_task(service.keep_session())]
            yield
            with contextlib.suppress(DcsError, TimeoutError):
                await schedule.resign()
            await service.close()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return lifespan


async def _first_connection(service: Service, connection: asyncio.Task[None]) -> None:
    """Returns when Redis is there, or after a while without it: then requests wait for it.

    Raises UnsafeRedis when Redis is there and would lose what it acknowledges."""
    connected = asyncio.create_task(service.store.wait_connected())
    await asyncio.wait({connection, connected}, timeout=FIRST_CONNECTION_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    connected.cancel()
    if connection.done():
        await connection
        raise UnsafeRedis("the connection to Redis ended")
    if not service.store.connected:
        log.warning("redis does not answer yet; requests will wait for it")
