"""How a snapshot of the metadata, and its tail, lie on the storage nodes: pure.

They are extents of session 0, which no client ever has. An id's counter is a change number of the volume that
the snapshot has for itself, times 65,536, plus the part:

    0 to 32,767         the snapshot, cut into pieces: an RDB file of Redis
    32,768 to 65,534    its tail: what Redis changed since, as it tells its replicas, cut anywhere
    65,535              the manifest: stored when the snapshot's pieces are, so a snapshot with it is complete
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from servers.protocol.ids import ExtentId, SessionNumber, extent_id, extent_session

PARTS = 65_536
MANIFEST = PARTS - 1
TAIL = PARTS // 2
TAIL_PARTS_MAX = MANIFEST - TAIL
NO_SESSION = SessionNumber(0)


@dataclass(frozen=True)
class Manifest:
    volume: str
    """The volume's uuid."""
    name: str
    """Of the volume, as in the keys."""
    seq: int
    taken_s: int
    parts: int
    size: int
    """Bytes of all parts."""
    sha256: str

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def unpack_manifest(data: bytes) -> Manifest:
    """Raises ValueError."""
    try:
        return Manifest(**json.loads(data))
    except TypeError as error:
        raise ValueError(f"not the manifest of a snapshot: {error}") from error


def part_id(seq: int, part: int) -> ExtentId:
    return extent_id(NO_SESSION, seq * PARTS + part)


def is_part(extent: ExtentId) -> bool:
    return extent_session(extent) == NO_SESSION


def is_older(extent: ExtentId, seq: int) -> bool:
    """A part of a snapshot before that one."""
    return is_part(extent) and extent < part_id(seq, 0)


def begun(extents: Iterable[ExtentId]) -> list[int]:
    """The change numbers of the snapshots of which any part is among the extents, the latest first."""
    return sorted({_counter(extent) // PARTS for extent in extents if is_part(extent)}, reverse=True)


def complete(extents: Iterable[ExtentId]) -> list[int]:
    """Those of them whose manifest is there too."""
    return begun(extent for extent in extents if _counter(extent) % PARTS == MANIFEST)


def _counter(extent: ExtentId) -> int:
    return int.from_bytes(extent[8:], "big")


def is_tail(extent: ExtentId, seq: int) -> bool:
    return part_id(seq, TAIL) <= extent < part_id(seq, MANIFEST)


def tail_parts(seq: int, extents: Iterable[ExtentId]) -> list[ExtentId]:
    """What is there of the snapshot's tail, in its order: up to the first part that is not."""
    there = set(extents)
    found: list[ExtentId] = []
    while len(found) < TAIL_PARTS_MAX and (part := part_id(seq, TAIL + len(found))) in there:
        found.append(part)
    return found
