"""The bytes of a replica on disk. Pure: packs and parses, opens nothing.

    offset          bytes  what
    0               L      the data; so `head -c L` rescues it and a range of it is a range of the file
    L               4*B    CRC32C of each 64 KiB block of the data, the last one short; big-endian; B = ceil(L / 64 KiB)
    L + 4*B         M      msgpack map, enough to rebuild files if all metadata is lost:
                             id        16 bytes, the extent's id
                             volume    the volume's uuid, "" when the writer did not say
                             inode, chunk, mtime_ns   whose data it was, which chunk, the file's mtime
                             name      bytes, a hint: the file's name then
                             chunk_size, places   of the file; and where in the chunk the data belongs: offset, length,
                                       offset, length, ... of the ranges that lie end to end; both left out where the
                                       writer did not say
    L + 4*B + M     32     the trailer, big-endian:
                             8s  magic  "DCSEXT", carriage return, line feed
                             H   version, 1
                             H   0, reserved
                             I   4*B
                             I   M
                             Q   L
                             I   CRC32C of everything from L to here: the footer but for this field

The file ends there: L + 4*B + M + 32 is its size exactly. An unknown key in the map is ignored,
an unknown version is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgpack
from crc32c import crc32c

from servers.protocol.checksum import table_bytes
from servers.protocol.errors import ExtentDamaged
from servers.protocol.ids import EXTENT_ID_BYTES, ExtentId
from servers.protocol.limits import CHUNK_BYTES_MAX
from servers.protocol.storage_api import ExtentHeader, unpack_places

MAGIC = b"DCSEXT\r\n"
VERSION = 1
MAP_BYTES_MAX = 8 * 1024
_FIELDS = struct.Struct(">8sHHIIQ")
_CHECK = struct.Struct(">I")
TRAILER_BYTES = _FIELDS.size + _CHECK.size
FOOTER_BYTES_MAX = table_bytes(CHUNK_BYTES_MAX) + MAP_BYTES_MAX + TRAILER_BYTES
"""Read this much from the end of a file, and the whole footer is in it."""


@dataclass(frozen=True, slots=True)
class Footer:
    extent: ExtentId
    length: int
    header: ExtentHeader
    """What the writer said, with the sums of the data."""

    @property
    def sums(self) -> bytes:
        return self.header.sums


def pack_footer(footer: Footer) -> bytes:
    """Raises ValueError for a header too large to keep."""
    header = footer.header
    row = {
        "id": footer.extent,
        "volume": header.volume,
        "inode": header.inode,
        "chunk": header.chunk,
        "mtime_ns": header.mtime_ns,
        "name": header.name,
    }
    where = {"chunk_size": header.chunk_size, "places": header.places}
    packed: bytes = msgpack.packb(row | {name: value for name, value in where.items() if value})
    if len(packed) > MAP_BYTES_MAX:
        raise ValueError(f"the extent's header has {len(packed)} bytes; at most {MAP_BYTES_MAX} are kept")
    fields = _FIELDS.pack(MAGIC, VERSION, 0, len(header.sums), len(packed), footer.length)
    body = b"".join((header.sums, packed, fields))
    return body + _CHECK.pack(crc32c(body))


def parse_footer(tail: bytes, file_bytes: int) -> Footer:
    """The footer of a file of `file_bytes` whose last bytes, at least its footer, are `tail`. Raises ExtentDamaged."""
    if len(tail) < TRAILER_BYTES:
        raise ExtentDamaged(f"{file_bytes} bytes are too few for a trailer")
    magic, version, reserved, sums_bytes, map_bytes, length = _FIELDS.unpack_from(tail, len(tail) - TRAILER_BYTES)
    if magic != MAGIC:
        raise ExtentDamaged("no trailer at the end of the file")
    footer_bytes = sums_bytes + map_bytes + TRAILER_BYTES
    if footer_bytes > len(tail) or length + footer_bytes != file_bytes:
        raise ExtentDamaged(f"the lengths in the trailer do not add up to the {file_bytes} bytes of the file")
    footer = memoryview(tail)[len(tail) - footer_bytes :]
    (check,) = _CHECK.unpack_from(footer, footer_bytes - _CHECK.size)
    if crc32c(footer[: -_CHECK.size]) != check:
        raise ExtentDamaged("the footer has a wrong CRC32C")
    if (version, reserved) != (VERSION, 0):
        raise ExtentDamaged(f"format version {version} is not known here")
    if sums_bytes != table_bytes(length):
        raise ExtentDamaged(f"{sums_bytes} bytes of sums do not fit {length} bytes of data")
    return _footer(bytes(footer[:sums_bytes]), bytes(footer[sums_bytes : sums_bytes + map_bytes]), length)


def _footer(sums: bytes, packed: bytes, length: int) -> Footer:
    try:
        row = msgpack.unpackb(packed)
        extent = row["id"]
        header = ExtentHeader(
            row["volume"], row["inode"], row["chunk"], row["mtime_ns"], row["name"], sums,
            row.get("chunk_size", 0), unpack_places(row.get("places", ())),
        )  # fmt: skip
    except (msgpack.UnpackException, ValueError, TypeError, KeyError) as error:
        raise ExtentDamaged(f"the footer's map cannot be read: {error!r}") from error
    if not isinstance(extent, bytes) or len(extent) != EXTENT_ID_BYTES:
        raise ExtentDamaged("the footer's map has no extent id")
    return Footer(ExtentId(extent), length, header)
