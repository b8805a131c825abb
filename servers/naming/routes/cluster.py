"""Routes for storage nodes and operators: registration, nodes, status, damage, what metadata knows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from servers.naming.keyspace import prefix
from servers.naming.membership import read_nodes
from servers.naming.service import Service
from servers.protocol.ids import ExtentId, extent_text, parse_extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.naming_api import DAMAGE_PATH, NODES_PATH, unpack_nodes
from servers.protocol.placement import cluster_space

UINT = Annotated[int, Field(ge=0, le=2**53)]


class Registration(BaseModel):
    """What a storage node says of itself, at start and every 2 s."""

    uuid: str = Field(pattern=r"^[0-9a-f]{32}$", examples=["8c6c3e1ad9b54d1b8b2b0a1f4f0e7a11"])
    address: str = Field(pattern=r"^[A-Za-z0-9_.:\[\]-]{3,255}$", examples=["storage1:5001"])
    used_bytes: UINT = Field(examples=[0])
    free_bytes: UINT = Field(examples=[100000000000])
    total_bytes: UINT = Field(examples=[100000000000])
    space: str = Field(max_length=200, examples=["boot-1:fs-1"])
    rack: str = Field("", max_length=100, examples=[""])


class Registered(BaseModel):
    node: int
    volume: str


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


class Nodes(BaseModel):
    nodes: list[Node]


class Status(BaseModel):
    nodes: list[Node]
    volume: str
    redis: str
    safe_mode: bool
    files: int
    directories: int
    extents: int
    bytes: int
    sessions: int
    under_replicated: int
    missing: int
    damaged: int
    deletions_pending: int
    orphans: int
    chunk_size: int
    replication_factor: int
    total_bytes: int
    free_bytes: int
    """Of the cluster, as files can use it: raw bytes divided by the replication factor."""


class Damage(BaseModel):
    extent: str = Field(examples=["2a-1f"])
    node: int = Field(ge=1, lt=65536, examples=[1])
    why: str = Field("", max_length=200)


class Extents(BaseModel):
    extents: list[str] = Field(max_length=EXTENTS_PER_CALL_MAX, examples=[["2a-1f"]])


class Known(BaseModel):
    extents: dict[str, Literal["needed", "condemned", "in flight", "garbage"]]


class Referenced(BaseModel):
    extents: list[dict[str, Any]]
    """id, inode, chunk, length at least, nodes."""
    next: str | None


VERDICTS: tuple[Literal["garbage", "needed", "condemned", "in flight"], ...] = (
    "garbage", "needed", "condemned", "in flight",
)  # fmt: skip


def cluster_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["cluster"])
    store = service.store

    @routes.post("/register_storage")
    async def register_storage(node: Registration) -> Registered:
        """A storage node is there, or still there: registration and heartbeat are one."""
        (number,) = await store.ask(
            "heartbeat", uuid=node.uuid, address=node.address, rack=node.rack, space=node.space,
            used=node.used_bytes, free=node.free_bytes, total=node.total_bytes,
        )  # fmt: skip
        (status,) = await store.ask("status")
        return Registered(node=number, volume=status[b"uuid"].decode())

    @routes.get(NODES_PATH)
    async def nodes() -> Nodes:
        """All storage nodes ever seen, with their state by their heartbeats."""
        return Nodes(nodes=await _nodes(service))

    @routes.get("/v1/status")
    async def status() -> Status:
        views = read_nodes(await store.ask("nodes"))
        (held,) = await store.ask("status")
        v = {name.decode(): value for name, value in held.items()}
        space = cluster_space(views)
        return Status(
            nodes=await _nodes(service), volume=v["uuid"].decode(), redis="ok", safe_mode=bool(v["safe"]),
            missing=0, total_bytes=space.total_bytes // v["replicas"], free_bytes=space.free_bytes // v["replicas"],
            chunk_size=v["chunk_size"], replication_factor=v["replicas"],
            **{name: v[name] for name in (
                "files", "directories", "extents", "bytes", "sessions", "under_replicated", "damaged",
                "deletions_pending", "orphans",
            )},
        )  # fmt: skip

    @routes.post(DAMAGE_PATH)
    async def report_damage(damage: Damage) -> dict[str, int]:
        """A reader found a replica damaged or missing; `new` is 1 the first time."""
        extent = _extent(damage.extent)
        (new,) = await store.ask("damage", extent=extent, node=damage.node, why=damage.why.encode())
        return {"new": new}

    @routes.get("/v1/damage")
    async def damaged() -> dict[str, list[dict[str, Any]]]:
        """The replicas reported damaged."""
        rows = await store.command("HGETALL", prefix(service.settings.volume) + ":damaged")
        found = []
        for field, value in zip(rows[::2], rows[1::2], strict=True):
            seconds, why = msgpack.unpackb(value)
            node = int.from_bytes(field[16:], "big")
            found.append({"extent": extent_text(field[:16]), "node": node, "seen_s": seconds, "why": why})
        return {"damaged": found}

    @routes.post("/v1/extents/known")
    async def known(asked: Extents) -> Known:
        """What metadata says of each extent: whether a file shows it, or why not."""
        extents = [_extent(text) for text in asked.extents]
        verdicts = await store.ask("known", extents=extents)
        return Known(extents={text: VERDICTS[v] for text, v in zip(asked.extents, verdicts, strict=True)})

    @routes.get("/v1/extents")
    async def referenced(after: Annotated[str, Query(pattern=r"^[0-9]{1,20}$")] = "0") -> Referenced:
        """The extents that files show, in pages: every one that is there all the while comes at least once."""
        key = prefix(service.settings.volume) + ":m:"
        cursor, keys = await store.command("SCAN", after, "MATCH", _literal(key) + "*", "COUNT", "1000")
        found: dict[tuple[ExtentId, int], dict[str, Any]] = {}
        for name in keys:
            inode = int(name[len(key) :])
            rows = await store.command("HGETALL", name)
            for index, blob in zip(rows[::2], rows[1::2], strict=True):
                flat = msgpack.unpackb(blob, raw=True)
                for i in range(0, len(flat), 5):
                    _note(found, flat[i : i + 5], inode, int(index))
        return Referenced(extents=list(found.values()), next=None if cursor == b"0" else cursor.decode())

    return routes


def _note(found: dict[tuple[ExtentId, int], dict[str, Any]], segment: list[Any], inode: int, chunk: int) -> None:
    _, extent, within, length, nodes = segment
    row = found.setdefault(
        (extent, chunk),
        {"id": extent_text(extent), "inode": inode, "chunk": chunk, "length": 0, "nodes": list(unpack_nodes(nodes))},
    )
    row["length"] = max(row["length"], within + length)


async def _nodes(service: Service) -> list[Node]:
    fields = ("number", "uuid", "address", "state", "used_bytes", "free_bytes", "total_bytes", "space", "rack")
    return [Node(id=n.number, **{f: getattr(n, f) for f in fields}) for n in await service.nodes()]


def _extent(text: str) -> ExtentId:
    try:
        return parse_extent_text(text)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _literal(text: str) -> str:
    """The text as a glob pattern of Redis that matches it alone."""
    return "".join("\\" + c if c in "*?[]\\" else c for c in text)
