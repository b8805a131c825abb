"""The naming server's application: routes, errors, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from servers.client.naming import TOO_OLD
from servers.naming.background.compaction import Compaction
from servers.naming.background.doubts import Doubts
from servers.naming.background.dropped import Dropped
from servers.naming.background.expiry import expire_sessions
from servers.naming.background.garbage import GarbageCollector, delete_condemned, reap
from servers.naming.background.rebalance import Rebalance
from servers.naming.background.repair import Repair
from servers.naming.background.schedule import Job, Schedule
from servers.naming.background.snapshots import Snapshots
from servers.naming.background.trash import TrashKeeper
from servers.naming.damage_checks import DamageChecks
from servers.naming.metrics import naming_metrics
from servers.naming.redis_store import VolumeLost
from servers.naming.routes.cluster import cluster_routes
from servers.naming.routes.deletions import deletion_routes
from servers.naming.routes.extents import extent_routes
from servers.naming.routes.files import file_routes
from servers.naming.routes.nodes import node_routes
from servers.naming.routes.trash import trash_routes
from servers.naming.service import Service
from servers.protocol.errors import DcsError, Refused, TooFewNodes, TryAgain
from servers.protocol.metrics import CONTENT_TYPE, METRICS_PATH, exposition
from servers.protocol.storage_api import HEALTH_PATH

log = logging.getLogger(__name__)

STATUS_OF_ERRNO = {
    1: 403, 2: 404, 5: 503, 11: 409, 17: 409, 18: 409, 20: 404, 21: 409, 27: 422, 28: 507, 30: 503, 36: 422, 39: 409,
    116: 404, TOO_OLD: 503,
}  # fmt: skip

SNAPSHOTS_LOOK_SECONDS = 1.0
END_SECONDS = 5.0

DESCRIPTION = """Names, attributes and chunk maps of a Distributed Chunk Storage volume.

Every route but `/health` wants `Authorization: Bearer <cluster secret>`."""


def make_app(service: Service) -> FastAPI:
    checks = DamageChecks(service)
    app = FastAPI(
        title="Distributed Chunk Storage: naming server", description=DESCRIPTION, lifespan=_lifespan(service, checks)
    )
    app.include_router(file_routes(service))
    app.include_router(node_routes(service))
    app.include_router(cluster_routes(service))
    app.include_router(extent_routes(service, checks))
    app.include_router(deletion_routes(service))
    app.include_router(trash_routes(service))

    @app.get(HEALTH_PATH)
    async def health() -> JSONResponse:
        """200 while Redis answers and has the volume; 503 otherwise."""
        fault = service.store.fault
        if service.store.connected and fault is None:
            warning = service.store.warning
            return JSONResponse({"status": "ok", **({"detail": warning} if warning else {})})
        status = "the volume is not as it was" if isinstance(fault, VolumeLost) else "redis is away"
        return JSONResponse({"status": status, "detail": str(fault or "")}, 503)

    @app.get(METRICS_PATH, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus; deploy/metrics.md tells what each means."""
        return Response(exposition(await naming_metrics(service)), media_type=CONTENT_TYPE)

    @app.exception_handler(DcsError)
    async def refuse(request: Request, error: DcsError) -> Response:
        if isinstance(error, TooFewNodes):
            service.count_error("too_few_nodes")
        return _refusal(_status_of(error), str(error))

    @app.exception_handler(HTTPException)
    async def refuse_plainly(request: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_the_wrong_kind(request: Request, error: RequestValidationError) -> Response:
        return _refusal(422, [{name: wrong[name] for name in ("loc", "msg", "type")} for wrong in error.errors()])

    return app


def _refusal(status: int, detail: object, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, and without what was sent: that may be no text at all."""
    return Response(json.dumps({"detail": detail}), status, headers, media_type="application/json")


def _status_of(error: DcsError) -> int:
    if isinstance(error, Refused):
        return STATUS_OF_ERRNO.get(error.errno, 400)
    if isinstance(error, TryAgain | VolumeLost):
        return 503
    if isinstance(error, TooFewNodes):
        return 500  # As the first users' scripts expect it: "Fewer than 3 storage servers available".
    return 502


def _jobs(service: Service, checks: DamageChecks) -> list[Job]:
    pace = service.settings.background_interval_seconds
    dropped, snapshots = Dropped(service), Snapshots(service)
    repair = Repair(service, dropped, checks.ask)
    return [
        Job("expiry", pace, lambda: expire_sessions(service)),
        Job("reap", pace, lambda: reap(service)),
        Job("delete", pace, lambda: delete_condemned(service)),
        Job("doubts", pace, Doubts(service).run),
        Job("repair", pace, repair.run),
        Job("survey", pace, repair.survey),
        Job("dropped", pace, dropped.delete),
        Job("rebalance", service.settings.rebalance_interval_seconds, Rebalance(service, repair).run),
        Job("garbage", service.settings.garbage_interval_seconds, GarbageCollector(service).run),
        Job("trash", max(1.0, pace), TrashKeeper(service).run),
        Job("snapshots", SNAPSHOTS_LOOK_SECONDS, snapshots.run),
        Job("tail", service.settings.tail_interval_seconds, snapshots.run_tail),
        Job("compaction", service.settings.compaction_interval_seconds, Compaction(service).run),
    ]


def _lifespan(
    service: Service, checks: DamageChecks
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        schedule = Schedule(service, _jobs(service, checks))
        store = _lasting(service.store.run(), "redis")
        work = [
            _lasting(schedule.run(), "schedule"),
            _lasting(service.keep_session(), "session"),
            _lasting(checks.run(), "damage checks"),
        ]
        try:
            yield
            await _end(*work)  # While there is a store to work with; and then nothing leads again.
            with contextlib.suppress(DcsError):
                await schedule.resign()
            await service.close()
        finally:
            await _end(*work, store)

    return lifespan


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancels them, and waits for their end for END_SECONDS."""
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(tasks, timeout=END_SECONDS)
    if left:
        log.error("still at work as the naming server ends: %s", ", ".join(task.get_name() for task in left))


def _lasting(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that ends with the server; should it end before, the server ends too, rather than be half there."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("%s ended; so does the naming server", name, exc_info=task.exception())
            os.kill(os.getpid(), signal.SIGTERM)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    return task
