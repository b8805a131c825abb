"""The storage node's ASGI application: every route, its OpenAPI page, and what runs beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import PlainTextResponse

from servers.protocol.errors import DcsError
from servers.protocol.metrics import CONTENT_TYPE, METRICS_PATH, exposition
from servers.protocol.storage_api import EXTENT_HEADER, NODE_HEADER
from servers.serving.lane import Lane
from servers.serving.lane_route import lane_response, lane_route
from servers.storage.metrics import node_metrics
from servers.storage.node import StorageNode
from servers.storage.routes.composition import composition_routes
from servers.storage.routes.control import ID_PATTERN, control_routes
from servers.storage.routes.deletion import deletion_routes
from servers.storage.routes.refusals import NotMeant, refusal

_RAW = {"schema": {"type": "string", "format": "binary"}}


def create_app(node: StorageNode, lanes: Sequence[Lane]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with node.running():
            yield

    app = FastAPI(title="Distributed Chunk Storage: storage node", lifespan=lifespan)

    def meant(asked: Annotated[str | None, Header(alias=NODE_HEADER, include_in_schema=False)] = None) -> None:
        if asked not in (None, node.uuid):
            raise NotMeant(node.uuid)

    for routes in (control_routes(node), deletion_routes(node), composition_routes(node)):
        app.include_router(routes, dependencies=[Depends(meant)])
    for lane in lanes:
        _add_lane(app, lane)

    @app.get(METRICS_PATH, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus; deploy/metrics.md tells what each means."""
        text = await asyncio.to_thread(lambda: exposition(node_metrics(node)))
        return Response(text, media_type=CONTENT_TYPE)

    @app.exception_handler(DcsError)
    @app.exception_handler(OSError)
    async def refuse(_: Request, error: DcsError | OSError) -> Response:
        return lane_response(refusal(error))

    return app


def _add_lane(app: FastAPI, lane: Lane) -> None:
    many = lane.path.endswith("/")
    app.add_api_route(
        lane.path + ("{extent}" if many else ""),
        lane_route(lane),
        methods=[lane.method],
        name=lane.handler.__name__,
        description=lane.handler.__doc__,
        response_model=None,
        response_class=Response,
        openapi_extra={"parameters": _parameters(lane.method)} if many else None,
    )


def _parameters(method: str) -> list[dict[str, Any]]:
    text = {"type": "string"}
    extent = {"name": "extent", "in": "path", "required": True, "schema": {**text, "pattern": ID_PATTERN}}
    more: dict[str, list[dict[str, Any]]] = {
        "PUT": [
            {"name": "sync", "in": "query", "schema": {"enum": ["0", "1"]}},
            {"name": EXTENT_HEADER, "in": "header", "schema": text},
        ],
        "GET": [{"name": "range", "in": "header", "schema": {**text, "example": "bytes=0-65535"}}],
    }
    return [extent, *more.get(method, [])]
