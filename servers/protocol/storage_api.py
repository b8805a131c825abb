"""What everybody says to storage nodes: extents over HTTP.

    PUT    /v1/extents/{id}?sync=1   store the body; sync=1: on stable storage before the answer
    GET    /v1/extents/{id}          the data, or the part that `Range: bytes=a-b` names
    HEAD   /v1/extents/{id}          its length
    GET    /v1/extents/{id}/description   where the replica lies, its footer and sums (JSON)
    POST   /v1/extents/check         {"extents": [...]}: the length of each, null for what is not there, -1 for damaged;
                                     with "data": true all of it is read and compared with its sums,
                                     and set aside when it is damaged
    POST   /v1/copies                {"copies": [...]}: fetch extents from other nodes; answers when they are on
                                     stable storage
    POST   /v1/compositions          makes one extent of parts of others; answers when it is on stable storage
    POST   /v1/extents/delete        a signed order, see servers.protocol.orders: many at once
    POST   /v1/extents/undelete      {"extents": [...] or null}: brings back what was deleted, as far as it is kept
    GET    /v1/inventory?after=&limit=    what the node holds, in pages; length -1 for damaged; &names_only=1: no length
    POST   /v1/barrier               answers when all that was taken before is on stable storage; may name some that the
                                     caller stored, {"extents": [...]}: the node may have lost power since
    GET    /v1/space                 bytes used, free and total
    GET    /health                   the one route without the secret

A PUT should carry `dcs-extent`, the base64 of a packed `ExtentHeader` with the sums that the
writer computed; without it (curl) the node computes them. A GET or HEAD answer carries the
sums of the blocks it touches in `dcs-crc32c` (base64 of the table); ask for whole blocks
of 64 KiB, counted from the start of the extent, to be able to check them. A GET that has a
`dcs-extent` header, whatever it says, is answered with the one that the writer gave.

Any request may name the node that it means, by its uuid, in `dcs-node`: another node that has come to its address
answers 421 and does nothing.

PUT: 201 stored, 200 had it already, 409 has other bytes under this id, 400 short or a wrong
sum, 413 too large, 507 no room. GET: 404 not there, 416 beyond the end, 500 damaged. A barrier
answers 500 when extents could not be synced, or named ones are not there; it names them.
Anything: 503 when the disk fails in other ways or the node is too busy; take another node. A request
may be sealed, see seal.py.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from servers.protocol.limits import CHUNK_BYTES_MAX

PLACES_MAX = 256
EXTENTS_PATH = "/v1/extents/"
EXTENT_HEADER = "dcs-extent"
NODE_HEADER = "dcs-node"
SUMS_HEADER = "dcs-crc32c"
LENGTH_HEADER = "dcs-length"
"""The length of the whole extent in bytes, on every GET and HEAD answer."""
DELETE_PATH = "/v1/extents/delete"
COMPOSE_PATH = "/v1/compositions"
COPIES_PATH = "/v1/copies"
UNDO_PATH = "/v1/extents/undelete"
CHECK_PATH = "/v1/extents/check"
INVENTORY_PATH = "/v1/inventory"
BARRIER_PATH = "/v1/barrier"
BARRIER_EXTENTS_MAX = 10_000
"""So many may be named in one request."""
SPACE_PATH = "/v1/space"
HEALTH_PATH = "/health"


@dataclass(frozen=True, slots=True)
class ExtentHeader:
    """What a writer says of an extent: enough to rebuild the file if all metadata is lost."""

    volume: str
    """The volume's uuid."""
    inode: int
    chunk: int
    mtime_ns: int
    name: bytes
    """A hint: the file's name when the extent was written."""
    sums: bytes
    """The table of CRC32C, one per 64 KiB block."""
    chunk_size: int = 0
    """Of the file; 0 where the writer did not say."""
    places: tuple[int, ...] = ()
    """Offset in the chunk and length of each of the ranges that lie end to end in the extent; empty where the writer
    did not know them (appends), or they are too many."""

    def pack(self) -> str:
        packed = msgpack.packb(
            [self.volume, self.inode, self.chunk, self.mtime_ns, self.name, self.sums, self.chunk_size, self.places]
        )
        return base64.b64encode(packed).decode("ascii")


def unpack_extent_header(text: str) -> ExtentHeader:
    """Raises ValueError."""
    try:
        volume, inode, chunk, mtime_ns, name, sums, *where = msgpack.unpackb(base64.b64decode(text, validate=True))
        chunk_size, places = where or (0, ())
    except (binascii.Error, msgpack.UnpackException, ValueError, TypeError) as error:
        raise ValueError(f"{EXTENT_HEADER} is not a packed extent header: {error}") from error
    kinds = (str, int, int, int, bytes, bytes, int)
    fields = (volume, inode, chunk, mtime_ns, name, sums, chunk_size)
    if not all(isinstance(value, kind) for value, kind in zip(fields, kinds, strict=True)):
        raise ValueError(f"{EXTENT_HEADER} has fields of the wrong type")
    return ExtentHeader(volume, inode, chunk, mtime_ns, name, sums, chunk_size, unpack_places(places))


def unpack_places(row: object) -> tuple[int, ...]:
    """Raises ValueError."""
    places = tuple(row) if isinstance(row, list | tuple) else (0,)
    if len(places) % 2 or not all(type(number) is int and 0 <= number <= CHUNK_BYTES_MAX for number in places):
        raise ValueError("places are an offset and a length each")
    return places


def flat_places(ranges: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """`ExtentHeader.places` of the ranges [start, end) of a chunk; empty when they are too many to be kept."""
    flat = tuple(number for start, end in itertools.islice(ranges, PLACES_MAX + 1) for number in (start, end - start))
    return flat if len(flat) <= 2 * PLACES_MAX else ()
