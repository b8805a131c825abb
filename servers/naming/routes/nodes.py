"""Routes for storage nodes, which report for duty, and for operators who want to see, empty or forget them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, Field

from servers.naming.copies import survey_of
from servers.naming.membership import CALM_SECONDS, Member
from servers.naming.node_facts import UINT, DiskFacts, Known, NodeFacts, RequestFigures, read_facts
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.errors import Refused
from servers.protocol.ids import NodeNumber
from servers.protocol.naming_api import NODES_PATH

log = logging.getLogger(__name__)

ENOENT, EBUSY, EXDEV, ESTALE = 2, 16, 18, 116
REFUSALS = {
    EXDEV: "this is not volume {volume}, whose extents the node keeps",
    ESTALE: "it was forgotten, with what it holds: empty its DATA_DIR, and it is a new node",
}


class Registration(NodeFacts):
    """What a storage node says of itself, at start and every 2 s."""

    uuid: str = Field(pattern=r"^[0-9a-f]{32}$", examples=["8c6c3e1ad9b54d1b8b2b0a1f4f0e7a11"])
    address: str = Field(
        pattern=r"^([A-Za-z0-9_.-]{1,249}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$", examples=["storage1:5001"]
    )
    used_bytes: UINT = Field(examples=[0])
    free_bytes: UINT = Field(examples=[100000000000])
    total_bytes: UINT = Field(examples=[100000000000])
    space: str = Field(max_length=200, examples=["boot-1:fs-1"])
    rack: str = Field("", max_length=100, examples=[""])
    volume: str = Field("", pattern=r"^([0-9a-f]{32})?$", description="whose extents it keeps, if it knows")
    seq: UINT = Field(0, description="the latest change it was told of: metadata that ends before is not all there")


class Registered(BaseModel):
    node: int
    volume: str
    seq: int
    """The volume's latest change. What the node knows of both it says in its next heartbeats."""
    safe_mode: bool
    now_ms: int
    """Redis's time, which delete orders expire by."""


class Node(BaseModel):
    id: int
    number: int
    uuid: str
    address: str
    state: Literal["alive", "suspect", "dead"]
    used_bytes: int
    free_bytes: int
    total_bytes: int
    space: str
    rack: str
    draining: bool
    """It is being emptied, and takes nothing new."""
    drained: bool
    """It holds nothing any more that anybody needs: it may be switched off."""
    in_doubt: bool
    """It may have lost replicas and is being asked for each."""
    store_ms: int
    """What a store took lately."""
    disks: list[DiskFacts]
    stored_bytes: int
    """Since the node's start, as are all below."""
    read_bytes: int
    errors: dict[str, int]
    requests: list[RequestFigures]
    """The slowest."""


class Nodes(BaseModel):
    nodes: list[Node]


def node_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["nodes"], responses=refusals())
    store = service.store

    @routes.post("/register_storage", responses=refusals(409))
    async def register_storage(node: Registration) -> Registered:
        """A storage node is there, or still there: registration and heartbeat are one.

        409 for another volume's, and for one that was forgotten."""
        return await _register(service, node)

    @routes.get(NODES_PATH)
    async def nodes() -> Nodes:
        """All storage nodes, but for those that were forgotten, with their state by their heartbeats."""
        members, known = await service.members(), read_facts(await store.ask("facts"))
        (held,) = await store.ask("status")
        return Nodes(nodes=node_rows(members, known, survey_of(held)))

    @routes.post(NODES_PATH + "/{node}/drain", responses=refusals(404))
    async def drain(node: Annotated[int, Path(ge=1, lt=65536)]) -> dict[str, bool]:
        """The node takes nothing new from now on, and what it has is copied elsewhere."""
        await _set_draining(service, node, True)
        return {"draining": True}

    @routes.delete(NODES_PATH + "/{node}/drain", responses=refusals(404))
    async def undrain(node: Annotated[int, Path(ge=1, lt=65536)]) -> dict[str, bool]:
        """The node is one like any other again."""
        await _set_draining(service, node, False)
        return {"draining": False}

    @routes.delete(NODES_PATH + "/{node}", responses=refusals(404, 409))
    async def forget(node: Annotated[int, Path(ge=1, lt=65536)]) -> dict[str, bool]:
        """The node is gone for good: nobody waits for it, and it is refused should it come back.

        409 unless it is drained, and dead."""
        await _forget(service, node)
        return {"forgotten": True}

    return routes


async def _register(service: Service, node: Registration) -> Registered:
    try:
        number, volume, seq, safe, now_ms = await service.store.ask(
            "heartbeat", uuid=node.uuid, address=node.address, rack=node.rack, space=node.space,
            used=node.used_bytes, free=node.free_bytes, total=node.total_bytes, volume=node.volume, seq=node.seq,
            silence_ms=int(service.patience.suspect_after_seconds * 1000), calm_ms=int(CALM_SECONDS * 1000),
            store_ms=node.store_ms,
        )  # fmt: skip
    except Refused as error:
        if error.errno not in REFUSALS:
            raise
        service.count_error("foreign_node")
        why = REFUSALS[error.errno].format(volume=node.volume)
        log.error("storage node %s at %s is refused: %s", node.uuid, node.address, why)
        raise HTTPException(409, why) from error
    if node.start:
        facts = node.model_dump_json(include=set(NodeFacts.model_fields)).encode()
        await service.store.ask(
            "holds", node=number, start=node.start, held=node.held, lost=node.lost, ended=node.ended, facts=facts
        )  # fmt: skip
    return Registered(node=number, volume=volume.decode(), seq=seq, safe_mode=bool(safe), now_ms=now_ms)


async def _forget(service: Service, node: int) -> None:
    (held,) = await service.store.ask("status")
    member = next((member for member in await service.members() if member.view.number == node), None)
    if member is None:
        raise _no_such(node)
    if not _is_drained(member, survey_of(held)):
        raise HTTPException(409, f"node {node} has what may be needed: empty it first, dcs drain {node} --wait")
    silent_ms = int(service.patience.dead_after_seconds * 1000)
    try:
        await service.store.ask("forget", node=node, silent_ms=silent_ms, since_ms=member.draining_since_ms)
    except Refused as error:
        if error.errno != EBUSY:
            raise _no_such(node) from error
        raise HTTPException(409, f"node {node} is there: switch it off, and wait until it is dead") from error
    log.warning("node %d is forgotten", node)


async def _set_draining(service: Service, node: int, wish: bool) -> None:
    try:
        await service.store.ask("drain", node=node, drain=wish)
    except Refused as error:
        if error.errno != ENOENT:
            raise
        raise _no_such(node) from error


def _no_such(node: int) -> HTTPException:
    return HTTPException(404, f"there is no node {node}: `dcs nodes` shows those that there are")


def _is_drained(member: Member, survey: dict[str, Any]) -> bool:
    """Found empty since it was last asked to be emptied."""
    return member.view.draining and [member.view.number, member.draining_since_ms] in survey.get("drained", ())


def node_rows(members: Iterable[Member], known: Mapping[NodeNumber, Known], survey: dict[str, Any]) -> list[Node]:
    rows = []
    for member in members:
        view = member.view
        row = known.get(view.number, Known())
        rows.append(
            Node(
                id=view.number,
                **vars(view),
                drained=_is_drained(member, survey),
                in_doubt=row.in_doubt,
                **{
                    name: getattr(row.facts, name)
                    for name in ("disks", "stored_bytes", "read_bytes", "errors", "requests")
                },
            )
        )
    return rows
