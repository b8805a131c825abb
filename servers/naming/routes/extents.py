"""What metadata knows of extents: which files show them, which replicas are damaged, which are not needed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from servers.naming.damage_checks import DamageChecks
from servers.naming.keyspace import glob_literal, prefix
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.ids import ExtentId, NodeNumber, extent_text, parse_extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.naming_api import DAMAGE_PATH, HEALED_PATH, unpack_attributes, unpack_nodes


class Damage(BaseModel):
    extent: str = Field(examples=["2a-1f"])
    node: int = Field(ge=1, lt=65536, examples=[1])
    why: str = Field("", max_length=200)
    verified: bool = Field(False, description="the node itself says so: it need not be asked")


class Extents(BaseModel):
    extents: list[str] = Field(max_length=EXTENTS_PER_CALL_MAX, examples=[["2a-1f"]])


class Healed(BaseModel):
    healed: list[str]
    """Those whose damaged replicas nobody can need: the metadata names good ones only, or no file shows them."""


class Known(BaseModel):
    extents: dict[str, Literal["needed", "condemned", "in flight", "garbage"]]


class Referenced(BaseModel):
    extents: list[dict[str, Any]]
    """id, inode, chunk, length at least, nodes."""
    next: str | None


VERDICTS: tuple[Literal["garbage", "needed", "condemned", "in flight"], ...] = (
    "garbage", "needed", "condemned", "in flight",
)  # fmt: skip


def extent_routes(service: Service, checks: DamageChecks) -> APIRouter:
    routes = APIRouter(tags=["extents"], responses=refusals())
    store = service.store

    @routes.post(DAMAGE_PATH)
    async def report_damage(damage: Damage) -> dict[str, int]:
        """A reader, or the node itself, found a replica damaged or missing; `new` is 1 the first time."""
        extent = extent_of(damage.extent)
        (new,) = await store.ask("damage", extent=extent, node=damage.node, why=damage.why.encode())
        if new and not damage.verified:
            checks.ask(extent, NodeNumber(damage.node))
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

    @routes.post(HEALED_PATH)
    async def healed(asked: Extents) -> Healed:
        """Of which extents a node may remove the damaged replicas that it set aside."""
        found = await store.ask("healed", extents=[extent_of(text) for text in asked.extents])
        return Healed(healed=[extent_text(extent) for extent in found])

    @routes.post("/v1/extents/known")
    async def known(asked: Extents) -> Known:
        """What metadata says of each extent: whether a file shows it, or why not."""
        extents = [extent_of(text) for text in asked.extents]
        verdicts = await store.ask("known", extents=extents)
        return Known(extents={text: VERDICTS[v] for text, v in zip(asked.extents, verdicts, strict=True)})

    @routes.get("/v1/extents", responses=refusals(409))
    async def referenced(after: Annotated[str, Query(pattern=r"^[0-9]{1,19}(-[0-9a-f]{1,40})?$")] = "0") -> Referenced:
        """The extents that files show, in pages: every one that is there all the while comes at least once.

        `after`: what the page before calls `next`; 409 when Redis was started again meanwhile, or another has taken its
        place: then begin anew. Without those of files that nobody can read yet, because they are not finalized."""
        return await _page(service, after)

    return routes


async def _page(service: Service, after: str) -> Referenced:
    key, (begin, _, asked_of) = prefix(service.settings.volume) + ":m:", after.partition("-")
    process = service.store.process
    cursor, keys = await service.store.command("SCAN", begin, "MATCH", glob_literal(key) + "*", "COUNT", "1000")
    found: dict[tuple[ExtentId, int], dict[str, Any]] = {}
    for name in keys:
        inode = int(name[len(key) :])
        if not await _is_readable(service, inode):
            continue
        async for rows in service.parts_of_map(name):
            for index, blob in zip(rows[::2], rows[1::2], strict=True):
                flat = msgpack.unpackb(blob, raw=True)
                for i in range(0, len(flat), 5):
                    _note(found, flat[i : i + 5], inode, int(index))
    # Also when it was another at any moment since: the cursor, or a part of this page, would be of that one.
    if service.store.process != process or asked_of not in ("", process):
        raise HTTPException(409, "this is not the Redis any more that gave the page before: begin anew")
    following = "" if cursor == b"0" else f"{cursor.decode()}-{process}"
    return Referenced(extents=list(found.values()), next=following or None)


async def _is_readable(service: Service, inode: int) -> bool:
    """Whether it has a name, is open or in the trash; a file that is being filled over REST is neither."""
    key = prefix(service.settings.volume)
    blob = await service.store.command("GET", f"{key}:i:{inode}")
    if blob is None:
        return False
    if unpack_attributes(inode, blob).nlink > 0 or await service.store.command("EXISTS", f"{key}:o:{inode}") == 1:
        return True
    return await service.store.command("ZSCORE", f"{key}:trash", str(inode)) is not None


def _note(found: dict[tuple[ExtentId, int], dict[str, Any]], segment: list[Any], inode: int, chunk: int) -> None:
    _, extent, within, length, nodes = segment
    row = found.setdefault(
        (extent, chunk),
        {"id": extent_text(extent), "inode": inode, "chunk": chunk, "length": 0, "nodes": list(unpack_nodes(nodes))},
    )
    row["length"] = max(row["length"], within + length)


def extent_of(text: str) -> ExtentId:
    """Raises HTTPException."""
    try:
        return parse_extent_text(text)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
