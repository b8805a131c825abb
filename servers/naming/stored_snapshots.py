"""Snapshots of the metadata, read back from the storage nodes: the newest that can be had whole, with its own tail.

Called by recover.py. A tail begins where its snapshot was taken: made after any other, some changes would be missing
and others made twice. So an older snapshot goes with its own tail, which ends where the newer one was followed instead.

Only what is proved to be damaged or gone makes room for something older: a node that does not answer, or cannot read it
now, may have it, so then nothing is chosen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from servers.client.storage import StorageClient
from servers.naming.redis_stream import ChangeStream, NotAStream
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId
from servers.protocol.snapshots import (
    MANIFEST,
    Manifest,
    begun,
    complete,
    is_tail,
    part_id,
    tail_parts,
    unpack_manifest,
)

log = logging.getLogger(__name__)

READ_SECONDS = 60.0

Held = Mapping[str, AbstractSet[ExtentId]]
"""What each node said that it holds, by address."""


class Unusable(DcsError):
    """A snapshot, or all of them: the message says why and what to do."""


@dataclass(frozen=True)
class Fetched:
    manifest: Manifest
    parts: int
    """Of its tail: so many were fetched."""
    passed_over: tuple[str, ...]
    """Why each newer snapshot was not used."""


async def fetch_newest(storage: StorageClient, held: Held, rdb: Path, changes: Path) -> Fetched | None:
    """Both files are written; None when the nodes have no complete snapshot. Raises Unusable when none of those they
    have can be read, TryAgain when a node that has a part does not answer or fails."""
    everything = frozenset().union(*held.values())
    passed_over = []
    for number in begun(everything):
        try:
            manifest = await _fetch(storage, held, number, rdb)
        except (ExtentMissing, ExtentDamaged, Unusable) as error:
            passed_over.append(f"the snapshot of change {number} cannot be used: {error}")
            log.warning("%s", passed_over[-1])
            continue
        parts = await _fetch_tail(storage, held, number, changes)
        return Fetched(manifest, parts, tuple(passed_over))
    if complete(everything):
        raise Unusable("none of the snapshots that the nodes have can be used; try --no-snapshot")
    return None


async def _fetch(storage: StorageClient, held: Held, number: int, rdb: Path) -> Manifest:
    if not any(part_id(number, MANIFEST) in names for names in held.values()):
        raise Unusable("it was not finished, or what ends it is damaged or on no node of --nodes")
    try:
        manifest = unpack_manifest(await _read(storage, held, part_id(number, MANIFEST)))
    except ValueError as error:
        raise Unusable(str(error)) from error
    digest = hashlib.sha256()
    with rdb.open("wb") as file:
        for part in range(manifest.parts):
            data = await _read(storage, held, part_id(number, part))
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != manifest.sha256:
        raise Unusable("it is not what was stored")
    return manifest


async def _fetch_tail(storage: StorageClient, held: Held, number: int, changes: Path) -> int:
    """Writes what is there of the snapshot's tail, up to the first part that is missing. Returns how many parts."""
    everything = frozenset().union(*held.values())
    parts = tail_parts(number, everything)
    stored = sum(is_tail(extent, number) for extent in everything)
    stream = ChangeStream()
    with changes.open("wb") as file:
        for at, part in enumerate(parts):
            try:
                stream.feed(await _read(storage, held, part))
                file.write(stream.take())
            except (ExtentMissing, ExtentDamaged, NotAStream) as error:
                log.warning("%s", error)
                parts = parts[:at]
                break
    if len(parts) < stored:
        log.warning("of %d parts of changes after the snapshot only the first %d are there", stored, len(parts))
    return len(parts)


async def _read(storage: StorageClient, held: Held, extent: ExtentId) -> bytes:
    """Raises TryAgain when a node that has it does not answer or fails, and no other gives it; else ExtentMissing,
    ExtentDamaged."""
    problem: DcsError = ExtentMissing("a part of it is on no node of --nodes")
    for address in [address for address, names in held.items() if extent in names]:
        try:
            _, data = await storage.get_whole(
                address, extent, deadline_seconds=READ_SECONDS, first_byte_seconds=READ_SECONDS
            )
            return bytes(data)
        except (ExtentMissing, ExtentDamaged) as error:
            problem = problem if isinstance(problem, TryAgain) else error
        except (TryAgain, NodeFailed) as error:
            problem = TryAgain(f"{error}; it has a part of a snapshot: start it again, or leave it out of --nodes")
    raise problem
