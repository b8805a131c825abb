"""The REST API for people and scripts: files by name, without a mount.

A file is made in three steps: `init` makes a stub that nobody sees, `chunks` says where each
chunk's bytes go, `finalize` publishes it under its name in one atomic step. A name is a path
in the tree that mounts show, escaped as `servers.protocol.names` has it. A `file_id` holds
the inode and the path it was asked for by; it stops working when the file is renamed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel, Field

from servers.naming.routes.refusals import refusals
from servers.naming.service import Service, alive
from servers.protocol.errors import NodeFailed, Refused, TryAgain
from servers.protocol.geometry import Segment, is_chunk_size
from servers.protocol.ids import ROOT_INODE, ExtentId, InodeNumber, NodeNumber, extent_text
from servers.protocol.limits import CHUNKS_PER_CALL_MAX, EXTENTS_PER_CALL_MAX, FILE_BYTES_MAX, PATH_BYTES_MAX
from servers.protocol.names import escape, split_path, unescape
from servers.protocol.naming_api import (
    Attributes,
    pack_segments,
    unpack_attributes,
    unpack_segments,
)
from servers.protocol.placement import NodeView, choose_nodes
from servers.protocol.storage_api import EXTENTS_PATH

LOCATE_CHUNKS = CHUNKS_PER_CALL_MAX
STUB_LASTS_SECONDS = 24 * 3600
"""A file that was not finalized by then is forgotten."""
ENOENT, EEXIST = 2, 17
FINALIZED = "the file is finalized: its chunks do not change any more"

NAME = Annotated[str, Field(min_length=1, max_length=4 * PATH_BYTES_MAX, examples=["reports/2026.txt"])]


class Init(BaseModel):
    name: NAME
    overwrite: bool = False
    mode: int = Field(0o644, ge=0, le=0o7777)
    uid: int = Field(0, ge=0, lt=2**32)
    gid: int = Field(0, ge=0, lt=2**32)
    chunk_size: int | None = Field(
        None, description="a power of two from 1 KiB to 64 MiB; that of the name's directory now if not given"
    )


class Initialised(BaseModel):
    file_id: str
    chunk_size: int


class ChunkRequest(BaseModel):
    index: int = Field(ge=0, le=2**42, examples=[0])
    length: int = Field(gt=0, examples=[11], description="bytes; only the last chunk may be shorter than chunk_size")


class Server(BaseModel):
    node: int
    address: str
    url: str
    """Where to PUT the chunk's bytes, or GET them."""


class ChunkPlace(BaseModel):
    index: int
    extent: str
    length: int
    servers: list[Server]


class Finalize(BaseModel):
    size: int | None = Field(None, ge=0, le=FILE_BYTES_MAX, description="bytes; by default where the last chunk ends")
    overwrite: bool = False


class File(BaseModel):
    file_id: str
    name: str
    size: int
    chunk_size: int


class ChunkPart(BaseModel):
    offset: int
    length: int
    extent: str
    extent_offset: int
    servers: list[Server]


class ChunkMap(BaseModel):
    index: int
    parts: list[ChunkPart]
    """What none of them covers is a hole and reads as zeros."""


class Size(BaseModel):
    size: int


class Deleted(BaseModel):
    deleted: str


@dataclass(frozen=True)
class _FileId:
    ino: InodeNumber
    path: bytes

    def __str__(self) -> str:
        return f"{self.ino:x}.{base64.urlsafe_b64encode(self.path).decode().rstrip('=')}"


def _parse_id(text: str) -> _FileId:
    number, dot, packed = text.partition(".")
    try:
        path = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        ino = int(number, 16)
        if not dot or not 0 < ino < 2**53 or not split_path(path):
            raise ValueError(text)
        return _FileId(InodeNumber(ino), path)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(404, "no such file_id: get one from POST /files/init or GET /files?name=") from error


def _parse_name(text: str) -> list[bytes]:
    try:
        parts = split_path(unescape(text))
    except (ValueError, UnicodeError) as error:
        raise HTTPException(422, f"name: {error}") from error
    if not parts:
        raise HTTPException(422, "name: the root directory is not a file")
    return parts


@contextlib.contextmanager
def _about(path: bytes) -> Iterator[None]:
    """A refusal names the path, not the verb."""
    try:
        yield
    except Refused as error:
        raise Refused(error.errno, escape(path)) from error


FILE_ID = Annotated[str, Path(max_length=8 * PATH_BYTES_MAX, examples=["2.cmVxcw"])]


def file_routes(service: Service) -> APIRouter:  # noqa: C901 - a list of routes, each short
    routes = APIRouter(prefix="/files", tags=["files"], responses=refusals(404, 409, 507))
    store, change = service.store, service.change

    async def resolve(path: list[bytes]) -> Attributes:
        with _about(b"/".join(path)):
            ino, blob = await store.ask("resolve", path=path)
        return unpack_attributes(ino, blob)

    async def named(file: _FileId) -> Attributes:
        """The file behind a file_id, while it has the name it was asked for by."""
        attributes = await resolve(split_path(file.path))
        if attributes.ino != file.ino:
            raise Refused(ENOENT, escape(file.path))
        return attributes

    async def directory_of(path: list[bytes]) -> InodeNumber:
        """The top directory where there is none of that name."""
        if len(path) > 1:
            with contextlib.suppress(Refused):
                return (await resolve(path[:-1])).ino
        return ROOT_INODE

    async def stub(file: _FileId) -> Attributes:
        with _about(file.path):
            (blob,) = await store.ask("getattr", ino=file.ino)
        return unpack_attributes(file.ino, blob)

    async def segments(attributes: Attributes, first: int, count: int) -> dict[int, list[Segment]]:
        _, _, rows = await store.ask("locate", ino=attributes.ino, first=first, count=count)
        return {index: unpack_segments(blob) for index, blob in zip(rows[::2], rows[1::2], strict=True)}

    @routes.post("/init", status_code=201)
    async def init(wanted: Init) -> Initialised:
        """Makes a file that nobody sees until it is finalized. 409 when the name is taken.

        Its chunk size is fixed here: as given, else that of the directory of its name, or of the top directory while
        there is none of that name. Copies are as the directory asks for; again when it is finalized."""
        path = _parse_name(wanted.name)
        if wanted.chunk_size is not None and not is_chunk_size(wanted.chunk_size):
            raise HTTPException(422, "chunk_size: a power of two from 1 KiB to 64 MiB is wanted")
        if not wanted.overwrite:
            await _expect_free(resolve, path)
        given = {"chunk_size": wanted.chunk_size} if wanted.chunk_size else {}
        ino, blob = await change(
            "stub", mode=wanted.mode, uid=wanted.uid, gid=wanted.gid, lasts_ms=STUB_LASTS_SECONDS * 1000,
            parent=await directory_of(path), **given,
        )  # fmt: skip
        attributes = unpack_attributes(ino, blob)
        return Initialised(file_id=str(_FileId(attributes.ino, b"/".join(path))), chunk_size=attributes.chunk_size)

    @routes.post("/{file_id}/chunks", status_code=201, responses=refusals(500))
    async def allocate(file_id: FILE_ID, wanted: ChunkRequest) -> ChunkPlace:
        """Where to PUT a chunk's bytes: on each of the servers, before `finalize`."""
        attributes = await stub(_parse_id(file_id))
        if attributes.nlink != 0:
            raise HTTPException(409, FINALIZED)
        end = wanted.index * attributes.chunk_size + wanted.length
        if wanted.length > attributes.chunk_size or end > FILE_BYTES_MAX:
            raise HTTPException(422, f"length: a chunk of this file has at most {attributes.chunk_size} bytes")
        if any(s.end > wanted.length for s in (await segments(attributes, wanted.index, 1)).get(wanted.index, ())):
            raise HTTPException(409, f"chunk {wanted.index} is longer already: make another file for other content")
        nodes = choose_nodes(alive(await service.nodes()), attributes.replicas, wanted.length, service.chance)
        extent = await service.new_extent()
        segment = Segment(0, extent, 0, wanted.length, tuple(node.number for node in nodes))
        chunks = [wanted.index, pack_segments([segment])]
        try:
            await change("commit", ino=attributes.ino, chunks=chunks, end=end, synced=False, unpublished=True)
        except Refused as error:
            if error.errno == EEXIST:
                raise HTTPException(409, FINALIZED) from error
            raise
        return ChunkPlace(
            index=wanted.index, extent=extent_text(extent), length=wanted.length,
            servers=[_server(node, extent) for node in nodes],
        )  # fmt: skip

    @routes.post("/{file_id}/finalize")
    async def finalize(file_id: FILE_ID, wanted: Finalize) -> File:
        """Publishes the file under its name, once every server says that it has every chunk; 409 until then.

        Asked again after it was done, it says so again."""
        file = _parse_id(file_id)
        attributes = await stub(file)
        size = attributes.size if wanted.size is None else wanted.size
        if size < attributes.size:
            raise HTTPException(422, f"size: the last chunk ends at {attributes.size}")
        if attributes.nlink == 0:
            await publish(file, attributes, size, wanted.overwrite)
        elif (await named(file)).size != size:
            raise HTTPException(409, FINALIZED)
        return File(file_id=file_id, name=escape(file.path), size=size, chunk_size=attributes.chunk_size)

    async def publish(file: _FileId, attributes: Attributes, size: int, overwrite: bool) -> None:
        await expect_stored(attributes)
        path = split_path(file.path)
        parent = (await resolve(path[:-1])).ino if len(path) > 1 else ROOT_INODE
        with _about(file.path):
            await change(
                "publish", ino=file.ino, parent=parent, name=path[-1], size=size, overwrite=overwrite,
                version=attributes.data_version,
            )  # fmt: skip

    async def expect_stored(attributes: Attributes) -> None:
        """Asks the nodes whether they have what was announced: nothing is published on trust."""
        places = {node.number: node.place for node in await service.nodes()}
        chunks = -(-attributes.size // attributes.chunk_size)
        for first in range(0, chunks, LOCATE_CHUNKS):
            wanted: dict[NodeNumber, dict[ExtentId, int]] = {}
            for found in (await segments(attributes, first, LOCATE_CHUNKS)).values():
                for segment in found:
                    for node in segment.nodes:
                        wanted.setdefault(node, {})[segment.extent] = segment.extent_offset + segment.length
            for node, lengths in wanted.items():
                await _expect_on_node(service, places[node], lengths)

    @routes.get("/{file_id}/chunks/{index}")
    async def chunk(file_id: FILE_ID, index: Annotated[int, Path(ge=0, le=2**42)]) -> ChunkMap:
        """Which extents, on which servers, make up a chunk."""
        file = _parse_id(file_id)
        attributes = await named(file)
        if index * attributes.chunk_size >= max(attributes.size, 1):
            raise HTTPException(404, f"chunk {index} is beyond the end of the file")
        nodes = {node.number: node for node in await service.nodes()}
        parts = [
            ChunkPart(
                offset=s.offset, length=s.length, extent=extent_text(s.extent), extent_offset=s.extent_offset,
                servers=[_server(nodes[number], s.extent) for number in s.nodes if number in nodes],
            )
            for s in (await segments(attributes, index, 1)).get(index, [])
        ]  # fmt: skip
        return ChunkMap(index=index, parts=parts)

    @routes.get("")
    async def find(name: Annotated[str, Query(min_length=1, max_length=4 * PATH_BYTES_MAX)]) -> File:
        """The file of that name."""
        path = _parse_name(name)
        attributes = await resolve(path)
        if not attributes.is_file:
            raise HTTPException(409, f"{escape(b'/'.join(path))} is not a file")
        file = _FileId(attributes.ino, b"/".join(path))
        return File(file_id=str(file), name=escape(file.path), size=attributes.size, chunk_size=attributes.chunk_size)

    @routes.get("/{file_id}/size")
    async def size(file_id: FILE_ID) -> Size:
        return Size(size=(await named(_parse_id(file_id))).size)

    @routes.delete("/{file_id}")
    async def delete(file_id: FILE_ID) -> Deleted:
        """Takes the name away; the bytes go once nobody has the file open. One that is not finalized is given up."""
        file = _parse_id(file_id)
        path = split_path(file.path)
        if (await stub(file)).nlink == 0:
            await change("abandon", ino=file.ino)
            return Deleted(deleted=escape(file.path))
        parent = (await resolve(path[:-1])).ino if len(path) > 1 else ROOT_INODE
        await change("unlink", parent=parent, name=path[-1], ino=file.ino)
        return Deleted(deleted=escape(file.path))

    return routes


async def _expect_free(resolve: Callable[[list[bytes]], Awaitable[Attributes]], path: list[bytes]) -> None:
    try:
        await resolve(path)
    except Refused as error:
        if error.errno == ENOENT:
            return
        raise
    raise Refused(EEXIST, escape(b"/".join(path)))


async def _expect_on_node(service: Service, address: str, lengths: dict[ExtentId, int]) -> None:
    wanted = list(lengths)
    for at in range(0, len(wanted), EXTENTS_PER_CALL_MAX):
        try:
            found = await service.storage.check(address, wanted[at : at + EXTENTS_PER_CALL_MAX])
        except (NodeFailed, TryAgain) as error:
            raise HTTPException(409, f"{address} cannot be asked whether it has every chunk: {error}") from error
        for extent, length in found.items():
            if length is None or length < lengths[extent]:
                lacks = f"{address} has {length or 0} of the {lengths[extent]} bytes of {extent_text(extent)}"
                raise HTTPException(409, f"{lacks}: PUT them first")


def _server(node: NodeView, extent: ExtentId) -> Server:
    return Server(
        node=node.number, address=node.address, url=f"http://{node.address}{EXTENTS_PATH}{extent_text(extent)}"
    )
