"""Removed files: what can be restored, and letting go of it."""

from __future__ import annotations

import msgpack
from fastapi import APIRouter
from pydantic import BaseModel

from servers.naming.keyspace import prefix
from servers.naming.routes.refusals import refusals
from servers.naming.service import Service
from servers.protocol.ids import ROOT_INODE
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.names import escape
from servers.protocol.naming_api import unpack_attributes

DEPTH_MAX = 4096


class Removed(BaseModel):
    inode: int
    path: str
    """Where it was; begins with `?` where that is not known any more."""
    is_directory: bool
    bytes: int
    removed_s: int
    due_seconds: float
    """Until it is gone for good."""


class Trash(BaseModel):
    removed: list[Removed]


class Emptied(BaseModel):
    files: int
    bytes: int


def trash_routes(service: Service) -> APIRouter:
    routes = APIRouter(tags=["trash"], responses=refusals())
    store = service.store

    @routes.get("/v1/trash")
    async def trash() -> Trash:
        """What was removed and can be restored, the oldest first."""
        now_ms = (await store.ask("deletions"))[0]
        rows = await _rows(service)
        paths = _Paths(service, {ino: (parent, name) for ino, _, (parent, name, *_) in rows})
        removed = [
            Removed(inode=ino, path=escape(await paths.path(parent, name)), is_directory=bool(is_directory), bytes=size,
                    removed_s=seconds, due_seconds=max(0.0, (due_ms - now_ms) / 1000))
            for ino, due_ms, (parent, name, seconds, size, is_directory) in rows
        ]  # fmt: skip
        return Trash(removed=removed)

    @routes.post("/v1/trash/empty")
    async def empty() -> Emptied:
        """All of it is gone for good."""
        files = size = 0
        while True:
            count, freed = await store.ask("empty_trash", count=EXTENTS_PER_CALL_MAX, bytes=2**52)
            if not count:
                return Emptied(files=files, bytes=size)
            files, size = files + count, size + freed

    return routes


Row = tuple[int, int, tuple[int, bytes, int, int, int]]


async def _rows(service: Service) -> list[Row]:
    found: dict[int, Row] = {}
    after_ms = 0
    while True:
        rows = await service.store.ask("trash", after_ms=after_ms, count=EXTENTS_PER_CALL_MAX)
        before = len(found)
        for ino, due_ms, blob in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            if blob:
                found[ino] = (ino, due_ms, tuple(msgpack.unpackb(blob, raw=True)))
            after_ms = due_ms
        if len(found) == before:
            return list(found.values())


class _Paths:
    """Where removed files were, by the names of the directories above, removed or not."""

    def __init__(self, service: Service, removed: dict[int, tuple[int, bytes]]) -> None:
        self._service = service
        self._key = prefix(service.settings.volume)
        self._removed = removed
        self._known: dict[int, bytes] = {ROOT_INODE: b""}

    async def path(self, parent: int, name: bytes) -> bytes:
        return await self._directory(parent, 0) + b"/" + name

    async def _directory(self, ino: int, depth: int) -> bytes:
        if ino not in self._known:
            place = (self._removed.get(ino) or await self._place_of(ino)) if depth < DEPTH_MAX else None
            self._known[ino] = b"?" if place is None else await self._directory(place[0], depth + 1) + b"/" + place[1]
        return self._known[ino]

    async def _place_of(self, ino: int) -> tuple[int, bytes] | None:
        """The parent of a directory that is there, and its name; looks through the names of the parent."""
        store = self._service.store
        blob = await store.command("GET", f"{self._key}:i:{ino}")
        if blob is None:
            return None
        parent, cursor = unpack_attributes(ino, blob).parent, b"0"
        while True:
            cursor, rows = await store.command("HSCAN", f"{self._key}:d:{parent}", cursor, "COUNT", "1000")
            for name, entry in zip(rows[::2], rows[1::2], strict=True):
                if msgpack.unpackb(entry)[0] == ino:
                    return parent, name
            if cursor == b"0":
                return None
