"""What is deleted in the background: why, and how an operator stops it, confirms it or has it done now."""

from __future__ import annotations

import logging
from typing import Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from servers.naming.routes.extents import VERDICTS, Extents, extent_of
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

SURPLUS: Literal["surplus"] = "surplus"
CONFIRMED_SECONDS = 3600.0
"""So long after `dcs gc --confirm` the brake is off: longer than a round of the collector."""


class Why(BaseModel):
    extent: str
    verdict: Literal["needed", "condemned", "in flight", "garbage", "surplus"]
    why: str
    due_seconds: float | None
    """Until the nodes are told to delete it; null for what stays."""


class WhyAsked(Extents):
    node: int | None = Field(None, ge=1, lt=65536, description="whose replicas are meant: some may be surplus")


class Hold(BaseModel):
    why: str = Field(max_length=200, examples=["Looking into it; ask Eve"])


class Collect(Extents):
    node: str = Field(max_length=64, description="uuid of the node that has them")


class Collected(BaseModel):
    deleted: list[str]


def deletion_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["deletions"], responses=refusals())
    store = service.store

    @routes.post("/v1/extents/why")
    async def why(asked: WhyAsked) -> dict[str, list[Why]]:
        """What would become of each extent, why, and when."""
        node = {"node": asked.node} if asked.node else {}
        rows = await store.ask("why", extents=[extent_of(text) for text in asked.extents], **node)
        now_ms = (await store.ask("deletions"))[0]
        triples = zip(asked.extents, rows[::3], rows[1::3], rows[2::3], strict=True)
        return {"extents": [_why(service, now_ms, *row) for row in triples]}

    @routes.post("/v1/deletions/hold")
    async def hold(holding: Hold) -> Hold:
        """From now on no node is told to delete anything, until this is called with an empty reason."""
        await store.ask("hold", why=holding.why.encode())
        log.warning("deletions are held: %s", holding.why) if holding.why else log.info("deletions go on")
        return holding

    @routes.post("/v1/deletions/confirm")
    async def confirm() -> dict[str, float]:
        """Garbage is collected without the brake's limit, for a while."""
        await store.ask("brake", why=b"", off_ms=int(CONFIRMED_SECONDS * 1000))
        log.warning("the garbage collector's brake is off for %.0f s", CONFIRMED_SECONDS)
        return {"seconds": CONFIRMED_SECONDS}

    @routes.post("/v1/deletions/collect")
    async def collect(order: Collect) -> Collected:
        """Has the node delete now those of the extents that are garbage, known for its grace.

        The collector's brake holds here as well, however small the order: only what the collector has counted on this
        node, when that was not suspiciously much, is deleted; 409 while garbage waits to be confirmed, and while
        nothing is deleted at all."""
        node = await _node(service, order.node)
        await _check_not_held(service)
        extents = [extent_of(text) for text in order.extents]
        rows = await store.ask("sight", extents=extents)
        now_ms, _, stopped, brake_off_ms = await store.ask("deletions")
        known_ms = now_ms - service.settings.garbage_grace_seconds * 1000
        if now_ms >= brake_off_ms:
            if stopped:
                raise HTTPException(409, f"{stopped.decode()}; see dcs gc --dry-run, then dcs gc --confirm")
            known_ms = min(known_ms, (await store.ask("judged_ms", node=node.number))[0])
        due = [ExtentId(e) for e, since in zip(rows[::2], rows[1::2], strict=True) if since <= known_ms]
        doomed = await store.ask("collect", extents=due) if due else []
        gone = await service.deletions.order(node, [ExtentId(e) for e in doomed]) if doomed else set()
        return Collected(deleted=[extent_text(e) for e in gone])

    return routes


async def _check_not_held(service: Service) -> None:
    (volume,) = await service.store.ask("status")
    if volume[b"safe"]:
        raise HTTPException(409, f"nothing is deleted in SAFE mode: {volume[b'safe'].decode()}; see dcs status")
    if volume[b"held"]:
        raise HTTPException(409, f"deletions are held: {volume[b'held'].decode()}; dcs gc --resume lets them go on")


async def _node(service: Service, uuid: str) -> NodeView:
    for node in await service.nodes():
        if node.uuid == uuid:
            if node.state == "dead":
                raise HTTPException(409, f"node {node.number} is dead: it could not be told to delete anything")
            return node
    raise HTTPException(404, f"no node {uuid} ever registered here")


def _why(service: Service, now_ms: int, extent: str, verdict: int, session: int, ms: int) -> Why:
    found, why, due_seconds = (*VERDICTS, SURPLUS)[verdict], "a file shows it", None
    if found == SURPLUS:
        why, due_seconds = "the files that show it have their copies on other nodes", max(0.0, (ms - now_ms) / 1000)
    elif found == "condemned":
        why, due_seconds = "no file shows it any more", max(0.0, (ms - now_ms) / 1000)
    elif found == "in flight":
        why = f"session {session} lives and may still commit it"
    elif found == "garbage":
        waited = (now_ms - ms) / 1000 if ms else 0.0
        why = f"no file shows it, and session {session}, which made it, is over"
        due_seconds = max(0.0, service.settings.garbage_grace_seconds - waited)
    return Why(extent=extent, verdict=found, why=why, due_seconds=due_seconds)
