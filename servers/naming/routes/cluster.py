"""Routes for storage nodes and operators: registration, nodes, status."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgpack
from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, Field

from servers.naming.membership import CALM_SECONDS
from servers.naming.node_facts import UINT, DiskFacts, Known, NodeFacts, read_facts
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.errors import Refused
from servers.protocol.ids import NodeNumber
from servers.protocol.naming_api import NODES_PATH
from servers.protocol.placement import NodeView, cluster_space
from servers.protocol.requests import Requests

log = logging.getLogger(__name__)

ENOENT, EXDEV = 2, 18


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


class Nodes(BaseModel):
    nodes: list[Node]


class RepairState(BaseModel):
    by_danger: dict[str, int] = {}
    """How many extents have so many good copies left, and fewer than they should."""
    paused: bool = False
    """So many nodes vanished together that only last copies are copied."""
    surveying: bool = False
    """All files are being looked at; what is counted is not yet all there is."""
    recounting: int = 0
    """Files that another number of copies is asked for, and that were not looked at since."""
    dropped: int = 0
    """Copies that are not wanted any more and wait to be deleted."""
    draining: dict[str, int | None] = {}
    """By node, how many extents were still on it at the last look; null before the first."""
    copies: int = 0
    copied_bytes: int = 0
    drops: int = 0
    failures: int = 0
    """Counted by the naming server that leads since it started."""


class RequestFigures(BaseModel):
    verb: str
    count: int
    failures: int
    half_ms: int | None
    """Half of them took so long at most; null: longer than any bound."""
    most_ms: int | None
    """99 in 100 did."""


class Status(BaseModel):
    nodes: list[Node]
    volume: str
    redis: str
    safe_mode: bool
    safe_because: str
    files: int
    directories: int
    extents: int
    bytes: int
    sessions: int
    under_replicated: int
    missing: int
    damaged: int
    repair: RepairState
    deletions_pending: int
    garbage: int
    """Extents found on nodes that no file shows and no session will commit; deleted after their grace."""
    deletions_held: str
    """Why no node is told to delete anything; "" when they are."""
    garbage_brake: str
    """Why garbage is not collected until somebody confirms it; "" when it is."""
    changes: int
    """The volume's change counter."""
    changes_stored: int
    """Up to which the storage nodes have the metadata too."""
    snapshot_age_seconds: int
    orphans: int
    """Files without a name that somebody may still have open."""
    trash: int
    """Removed files and directories that can be restored."""
    trash_bytes: int
    """Among `bytes`; of one copy."""
    purging: int
    """Files whose chunks are being let go of, in steps."""
    chunk_size: int
    replication_factor: int
    total_bytes: int
    free_bytes: int
    """Of the cluster, as files can use it: raw bytes divided by the replication factor."""
    up_seconds: int
    """Of the naming server that answers this, as are the next two."""
    requests: list[RequestFigures]
    """Since then, the slowest first."""
    errors: dict[str, int]
    """Since then, by kind: see deploy/metrics.md."""


def cluster_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["cluster"], responses=refusals())
    store = service.store

    @routes.post("/register_storage", responses=refusals(409))
    async def register_storage(node: Registration) -> Registered:
        """A storage node is there, or still there: registration and heartbeat are one. 409 for another volume's."""
        try:
            number, volume, seq, safe, now_ms = await store.ask(
                "heartbeat", uuid=node.uuid, address=node.address, rack=node.rack, space=node.space,
                used=node.used_bytes, free=node.free_bytes, total=node.total_bytes, volume=node.volume, seq=node.seq,
                silence_ms=int(service.patience.suspect_after_seconds * 1000), calm_ms=int(CALM_SECONDS * 1000),
                store_ms=node.store_ms,
            )  # fmt: skip
        except Refused as error:
            if error.errno != EXDEV:
                raise
            service.count_error("foreign_node")
            mine = f"this is not volume {node.volume}, whose extents the node keeps"
            log.error("storage node %s at %s is refused: %s", node.uuid, node.address, mine)
            raise HTTPException(409, mine) from error
        if node.start:
            facts = node.model_dump_json(include=set(NodeFacts.model_fields)).encode()
            await store.ask(
                "holds", node=number, start=node.start, held=node.held, lost=node.lost, ended=node.ended, facts=facts
            )  # fmt: skip
        return Registered(node=number, volume=volume.decode(), seq=seq, safe_mode=bool(safe), now_ms=now_ms)

    @routes.get(NODES_PATH)
    async def nodes() -> Nodes:
        """All storage nodes ever seen, with their state by their heartbeats."""
        views, known = await service.nodes(), read_facts(await store.ask("facts"))
        (held,) = await store.ask("status")
        return Nodes(nodes=_nodes(views, known, _survey(held).get("drained", ())))

    @routes.post(NODES_PATH + "/{node}/drain", responses=refusals(404))
    async def drain(node: Annotated[int, Path(ge=1, lt=65536)]) -> dict[str, bool]:
        """The node takes nothing new from now on, and what it has is copied elsewhere."""
        await _set_draining(node, True)
        return {"draining": True}

    @routes.delete(NODES_PATH + "/{node}/drain", responses=refusals(404))
    async def undrain(node: Annotated[int, Path(ge=1, lt=65536)]) -> dict[str, bool]:
        """The node is one like any other again."""
        await _set_draining(node, False)
        return {"draining": False}

    async def _set_draining(node: int, wish: bool) -> None:
        try:
            await store.ask("drain", node=node, drain=wish)
        except Refused as error:
            if error.errno != ENOENT:
                raise
            raise HTTPException(404, f"there is no node {node}: `dcs nodes` shows those that there are") from error

    @routes.get("/v1/status")
    async def status() -> Status:
        views, known = await service.nodes(), read_facts(await store.ask("facts"))
        (held,) = await store.ask("status")
        v = {name.decode(): value for name, value in held.items()}
        space, survey = cluster_space(views), _survey(held)
        return Status(
            nodes=_nodes(views, known, survey.get("drained", ())), volume=v["uuid"].decode(), redis="ok",
            safe_mode=bool(v["safe"]), safe_because=v["safe"].decode(), deletions_held=v["held"].decode(),
            garbage_brake=v["brake"].decode(),
            under_replicated=max(v["under_replicated"], survey.get("under_replicated", 0)),
            missing=survey.get("missing", 0),
            repair=RepairState(
                recounting=v["recounting"], dropped=v["dropped"],
                **{name: survey[name] for name in RepairState.model_fields if name in survey},
            ),
            total_bytes=space.total_bytes // v["replicas"], free_bytes=space.free_bytes // v["replicas"],
            changes=v["seq"], changes_stored=v["stored_seq"], snapshot_age_seconds=v["snapshot_age_s"],
            chunk_size=v["chunk_size"], replication_factor=v["replicas"],
            up_seconds=int(time.monotonic() - service.started_at), requests=_figures(service.requests),
            errors=service.errors(),
            **{name: v[name] for name in (
                "files", "directories", "extents", "bytes", "sessions", "damaged",
                "deletions_pending", "garbage", "orphans", "trash", "trash_bytes", "purging",
            )},
        )  # fmt: skip

    return routes


def _figures(requests: Requests) -> list[RequestFigures]:
    slowest = sorted(requests.verbs.items(), key=lambda row: (row[1].seconds_of(0.99), row[1].seconds), reverse=True)
    return [
        RequestFigures(
            verb=verb, count=one.count, failures=one.failures, half_ms=_ms(one.seconds_of(0.5)),
            most_ms=_ms(one.seconds_of(0.99)),
        )
        for verb, one in slowest
    ]  # fmt: skip


def _ms(seconds: float) -> int | None:
    return None if math.isinf(seconds) else round(seconds * 1000)


def _survey(held: dict[bytes, Any]) -> dict[str, Any]:  # Any: what msgpack gives.
    """What the naming server that leads has found out of the replicas; see background/repair.py."""
    return msgpack.unpackb(held[b"survey"]) if held[b"survey"] else {}


def _nodes(views: Iterable[NodeView], known: Mapping[NodeNumber, Known], drained: Collection[int]) -> list[Node]:
    rows = []
    for view in views:
        row = known.get(view.number, Known())
        rows.append(
            Node(
                id=view.number,
                **vars(view),
                drained=view.draining and view.number in drained,
                in_doubt=row.in_doubt,
                disks=row.facts.disks,
            )
        )
    return rows
