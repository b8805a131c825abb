"""`python -m servers.naming.recover`, also as `dcs recover`: an empty Redis becomes the volume again.

From the latest snapshot of the metadata that the storage nodes have whole, and the changes after it that they have;
where that cannot be read, from an older one and its changes.
What they hold besides, written in the last seconds or, without any snapshot, all of it, becomes files in /lost+found,
as far as the replicas tell. Stop all naming servers first, and start them afterwards. Deletions are held until
`dcs gc --resume`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers.client.http import HttpxTransport
from servers.client.storage import StorageClient
from servers.naming.background.repair import MOVED, MOVES_PER_CALL
from servers.naming.background.repair_plan import Held, held_of
from servers.naming.keyspace import glob_literal, prefix
from servers.naming.lost_found import Found, LostFile, plan_files
from servers.naming.redis_connection import Connection, connect
from servers.naming.redis_snapshot import restore
from servers.naming.redis_url import Endpoint, RedisPlace, parse_redis_url
from servers.naming.service import Service
from servers.naming.settings import NamingSettings
from servers.naming.stored_snapshots import fetch_newest
from servers.protocol.errors import DcsError, ExtentDamaged, NodeFailed, Refused, TryAgain
from servers.protocol.ids import ROOT_INODE, ExtentId, NodeNumber, extent_session
from servers.protocol.limits import CHUNKS_PER_CALL_MAX, EXTENTS_PER_CALL_MAX, SEGMENTS_PER_COMMIT_MAX
from servers.protocol.names import unescape
from servers.protocol.naming_api import pack_nodes, pack_segments
from servers.protocol.snapshots import is_part
from servers.serving.access import SecretError, load_secret

log = logging.getLogger(__name__)

DESCRIBED_AT_ONCE_MAX = 8
SEGMENTS_MAX = SEGMENTS_PER_COMMIT_MAX // 2
CONNECTED_SECONDS = 30.0
LOST_FOUND = b"lost+found"
LOOKED_UP_PER_CALL = 256
GARBAGE, NEEDED, IN_FLIGHT = 0, 1, 3
"""What `known` says of an extent."""
EEXIST = 17


class CannotRecover(DcsError):
    """The message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="dcs recover", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--redis-url", metavar="URL", default=os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
        help="the empty Redis (REDIS_URL; redis://localhost:6379/0)",
    )  # fmt: skip
    parser.add_argument("--volume", default=os.environ.get("VOLUME", "main"), help="its name in Redis (VOLUME; main)")
    parser.add_argument("--nodes", required=True, metavar="HOST:PORT,...", help="all storage nodes that are left")
    parser.add_argument("--no-snapshot", action="store_true", help="rebuild from the replicas alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="dcs recover: %(message)s")
    try:
        file = os.environ.get("DCS_SECRET_FILE")
        secret = load_secret(Path(file) if file else None, os.environ.get("DCS_SECRET"))
        given: dict[str, Any] = {"redis_url": arguments.redis_url, "volume": arguments.volume}
        settings = NamingSettings(**given)
        nodes = [address.strip() for address in arguments.nodes.split(",") if address.strip()]
        asyncio.run(_recover(settings, secret.text, nodes, use_snapshot=not arguments.no_snapshot))
    except (DcsError, SecretError, OSError, ValueError) as error:
        print(f"dcs recover: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


async def _recover(settings: NamingSettings, secret: str, addresses: list[str], *, use_snapshot: bool) -> None:
    transport = HttpxTransport(secret)
    try:
        storage = StorageClient(transport)
        held = {address: await _names(storage, address) for address in addresses}
        place = parse_redis_url(settings.redis_url)
        if place.kind != "one" or not place.endpoints:
            raise CannotRecover("--redis-url: one Redis by host and port is wanted; add its replicas afterwards")
        key = prefix(settings.volume)
        await _check_empty(place, key)
        if use_snapshot:
            await _check_alone(place, key)
        if not (use_snapshot and await _restore_newest(storage, place, settings.volume, held)):
            await _make_volume(storage, place.endpoints[0], place, key, held, settings, secret)
            print("No snapshot was restored: the volume begins anew.")
        await _finish(settings, secret, held)
    finally:
        await transport.close()


async def _names(storage: StorageClient, address: str) -> set[ExtentId]:
    """All that the node holds. Whoever is missing here would be missing in the result: so it must answer."""
    found: set[ExtentId] = set()
    after: str | None = None
    while True:
        names, after = await storage.names(address, after, EXTENTS_PER_CALL_MAX)
        found.update(names)
        if after is None:
            return found


async def _check_empty(place: RedisPlace, key: str) -> None:
    """Raises CannotRecover where a volume is that may be worth something."""
    connection = await _open(place)
    try:
        files, directories = await connection.send("HMGET", f"{key}:volume", "files", "directories")
    finally:
        connection.abort()
    if files is not None and (int(files) or int(directories) > 1):
        raise CannotRecover(
            f"this Redis has a volume with {int(files)} files: nothing is changed. To give it up, delete its keys first"
        )


async def _check_alone(place: RedisPlace, key: str) -> None:
    """Raises CannotRecover where a snapshot would take the place of what is not this volume's."""
    connection = await _open(place)
    try:
        databases = (await connection.send("INFO", "keyspace")).decode()
        everything = sum(int(count) for count in re.findall(r"^db\d+:keys=(\d+)", databases, re.MULTILINE))
        mine = len({name async for name in _keys(connection, key)})
    finally:
        connection.abort()
    if everything > mine:
        raise CannotRecover(
            f"this Redis has {everything - mine} keys that are not this volume's, and a snapshot takes the place of "
            "all: nothing is changed. Give it a Redis of its own, or --no-snapshot"
        )


async def _keys(connection: Connection, key: str) -> AsyncIterator[bytes]:
    """Of the volume; some perhaps twice."""
    cursor = b"0"
    while True:
        cursor, names = await connection.send("SCAN", cursor, "MATCH", f"{glob_literal(key)}:*", "COUNT", 1000)
        for name in names:
            yield name
        if cursor == b"0":
            return


async def _open(place: RedisPlace) -> Connection:
    connection = await connect(place.endpoints[0].host, place.endpoints[0].port)
    if place.password:
        await connection.send("AUTH", *([place.username] if place.username else []), place.password)
    if place.db:
        await connection.send("SELECT", place.db)
    return connection


async def _restore_newest(
    storage: StorageClient, place: RedisPlace, volume: str, held: dict[str, set[ExtentId]]
) -> bool:
    """False when the nodes have no snapshot."""
    with tempfile.TemporaryDirectory(prefix="dcs-snapshot-") as directory:
        rdb, changes = Path(directory, "snapshot.rdb"), Path(directory, "changes")
        fetched = await fetch_newest(storage, held, rdb, changes)
        if fetched is None:
            return False
        name = fetched.manifest.name
        if name != volume:
            raise CannotRecover(
                f"the snapshot is of the volume {name}, not {volume}: nothing is changed. Say --volume {name}"
            )
        await restore(place, place.endpoints[0], rdb, changes)
    seq = await _volume_seq(place, volume)
    manifest = fetched.manifest
    taken = datetime.fromtimestamp(manifest.taken_s, UTC)
    print(f"Restored the snapshot of change {manifest.seq}, of {taken:%F %T} UTC: {manifest.size} bytes.")
    print(f"Made the changes after it, up to change {seq}: {fetched.parts} parts.")
    if fetched.passed_over:
        print("No newer one could be used:", *fetched.passed_over, sep="\n  ")
        print(f"What changed after change {seq} is missing. What was written then is in /lost+found; what was removed")
        print("or rewritten then may lack its data until `dcs gc --undo` brings back what the nodes still keep of it.")
    return True


async def _volume_seq(place: RedisPlace, volume: str) -> int:
    """Raises CannotRecover where the snapshot has the volume in another of Redis's databases."""
    connection = await _open(place)
    try:
        seq = await connection.send("HGET", f"{prefix(volume)}:volume", "seq")
        databases = (await connection.send("INFO", "keyspace")).decode()
    finally:
        connection.abort()
    if seq is None:
        others = ", ".join(re.findall(r"^db(\d+):", databases, re.MULTILINE))
        raise CannotRecover(
            f"the snapshot has the volume not in database {place.db} but in {others or 'none'}: empty this Redis again "
            "(FLUSHALL), and begin anew with that number at the end of --redis-url"
        )
    return int(seq)


async def _make_volume(
    storage: StorageClient, endpoint: Endpoint, place: RedisPlace, key: str, held: dict[str, set[ExtentId]],
    settings: NamingSettings, secret: str,
) -> None:  # fmt: skip
    """An empty volume with the uuid that the nodes know."""
    uuids = set()
    for address, names in held.items():
        for extent in sorted(names)[:100]:
            uuids.add((await storage.describe(address, extent))["volume"])
    uuids.discard("")
    if len(uuids) != 1:
        raise CannotRecover(f"the nodes hold extents of {len(uuids)} volumes, not of one")
    connection = await _open(place)
    try:
        for name in [name async for name in _keys(connection, key)]:
            await connection.send("DEL", name)
    finally:
        connection.abort()
    service = Service(settings, secret)
    service.store.begin_as(uuids.pop())
    await _while_connected(service, _nothing())
    await service.close()


async def _nothing() -> None:
    return


# What the metadata does not know.


async def _finish(settings: NamingSettings, secret: str, held: dict[str, set[ExtentId]]) -> None:
    service = Service(settings, secret)
    try:
        await _while_connected(service, _after_restore(service, held))
    finally:
        await service.close()


async def _while_connected(service: Service, work: Coroutine[Any, Any, None]) -> None:
    keeper = asyncio.create_task(service.store.run())
    try:
        async with asyncio.timeout(CONNECTED_SECONDS):
            await service.store.wait_connected()
        await work
    finally:
        work.close()
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def _after_restore(service: Service, held: dict[str, set[ExtentId]]) -> None:
    sessions = [extent_session(extent) for names in held.values() for extent in names]
    await service.store.ask("recovered", session=max(sessions, default=0), why="dcs recover")
    numbers = await _numbers(service, list(held))
    where = _where(held)
    unknown, needed = await _judged(service, sorted(where))
    elsewhere = await _name_holders(service, needed, where, numbers)
    if elsewhere:
        print(f"{elsewhere} extents lie on other nodes than the metadata said: now it names these, too.")
    found = await _found(service, unknown, where, numbers)
    chunk_size = (await service.store.ask("status"))[0][b"chunk_size"]
    files = plan_files(found, chunk_size)
    made = await _make_files(service, files) if files else 0
    print(f"{made} files of {len(found)} extents that the metadata does not know are in /lost+found.")
    print("Start the naming servers, look around, then let deletions go on: dcs gc --resume")


def _where(held: dict[str, set[ExtentId]]) -> dict[ExtentId, list[str]]:
    """The addresses of the nodes that hold each extent of files."""
    where: dict[ExtentId, list[str]] = {}
    for address, names in held.items():
        for extent in names:
            if not is_part(extent):
                where.setdefault(extent, []).append(address)
    return where


async def _judged(service: Service, extents: list[ExtentId]) -> tuple[list[ExtentId], list[ExtentId]]:
    """Those that the metadata does not know, and those that files show."""
    unknown: list[ExtentId] = []
    needed: list[ExtentId] = []
    for at in range(0, len(extents), EXTENTS_PER_CALL_MAX):
        batch = extents[at : at + EXTENTS_PER_CALL_MAX]
        verdicts = await service.store.ask("known", extents=batch)
        # No session lives: what one would still commit, had its mount not gone on with another Redis, is unknown too.
        unknown += [e for e, verdict in zip(batch, verdicts, strict=True) if verdict in (GARBAGE, IN_FLIGHT)]
        needed += [e for e, verdict in zip(batch, verdicts, strict=True) if verdict == NEEDED]
    return unknown, needed


async def _name_holders(
    service: Service, extents: list[ExtentId], where: dict[ExtentId, list[str]], numbers: dict[str, NodeNumber]
) -> int:
    """Where a node that a map names does not hold the extent and another does, by a repair that this metadata is
    older than, the map names the other too. None leaves a map: repair looks which are good. Returns for how many."""
    moved = 0
    for at in range(0, len(extents), LOOKED_UP_PER_CALL):
        (rows,) = await service.store.ask("whereabouts", extents=extents[at : at + LOOKED_UP_PER_CALL])
        moves = []
        for shown in held_of(rows):
            holders = {numbers[address] for address in where[shown.extent]}
            added = sorted(holders.difference(shown.nodes))
            if added and not holders.issuperset(shown.nodes):
                moves.append((shown, added))
        for first in range(0, len(moves), MOVES_PER_CALL):
            moved += await _relocate(service, moves[first : first + MOVES_PER_CALL])
    return moved


async def _relocate(service: Service, moves: list[tuple[Held, list[NodeNumber]]]) -> int:
    replicas = [shown.extent + pack_nodes([number]) for shown, added in moves for number in added]
    await service.store.ask("fetching", replicas=replicas, within_ms=0)
    flat = [
        x for shown, added in moves for x in (shown.extent, pack_nodes(shown.nodes), pack_nodes([*shown.nodes, *added]))
    ]
    grace_ms = int(service.settings.condemned_grace_seconds * 1000)
    results = await service.store.ask("relocate", moves=flat, grace_ms=grace_ms)
    return sum(result == MOVED for result in results)


async def _found(
    service: Service, unknown: list[ExtentId], where: dict[ExtentId, list[str]], numbers: dict[str, NodeNumber]
) -> list[Found]:
    """What the nodes tell of those that have a good replica."""
    found: list[Found] = []
    waiting = iter(unknown)

    async def worker() -> None:
        for extent in waiting:
            one = await _describe(service, extent, where[extent], numbers)
            if one is not None:
                found.append(one)

    await asyncio.gather(*(worker() for _ in range(DESCRIBED_AT_ONCE_MAX)))
    return found


async def _numbers(service: Service, addresses: list[str]) -> dict[str, NodeNumber]:
    """Of the nodes, by address; those that this metadata does not know are made known."""
    numbers: dict[str, NodeNumber] = {}
    for address in addresses:
        space = await service.storage.space(address)
        reply = await service.store.ask(
            "heartbeat", uuid=space["uuid"], address=address, rack=space["rack"], space=space["space"],
            used=space["used_bytes"], free=space["free_bytes"], total=space["total_bytes"], volume="", seq=0,
            silence_ms=0, calm_ms=0,
        )  # fmt: skip
        numbers[address] = NodeNumber(reply[0])
    return numbers


async def _describe(
    service: Service, extent: ExtentId, addresses: list[str], numbers: dict[str, NodeNumber]
) -> Found | None:
    """None when no good replica of it is there."""
    good: list[NodeNumber] = []
    told: dict[str, Any] = {}
    for address in addresses:
        try:
            described = await service.storage.describe(address, extent)
        except (TryAgain, NodeFailed, ExtentDamaged) as error:
            log.warning("%s", error)
            continue
        if described["verified"]:
            told = described
            good.append(numbers[address])
    if not good:
        return None
    return Found(
        extent, told["length"], told["inode"], told["chunk"], told["mtime_ns"], unescape(told["name"]), tuple(good),
        told["chunk_size"], tuple(told["places"]),
    )  # fmt: skip


async def _make_files(service: Service, files: list[LostFile]) -> int:
    try:
        await service.change("mkdir", parent=ROOT_INODE, name=LOST_FOUND, mode=0o700, uid=0, gid=0)
    except Refused as error:
        if error.errno != EEXIST:
            raise
    directory = (await service.store.ask("resolve", path=[LOST_FOUND]))[0]
    made = 0
    for file in files:
        try:
            await _make_file(service, file, directory)
            made += 1
        except Refused as error:
            log.warning("%s: %s", file.name.decode(errors="replace"), error)
    return made


async def _make_file(service: Service, file: LostFile, directory: int) -> None:
    ino = (await service.change("stub", mode=0o600, uid=0, gid=0, chunk_size=file.chunk_size))[0]
    rows = deque(sorted(file.chunks.items()))
    while rows:
        flat: list[Any] = []
        end = count = 0
        while rows and len(flat) < 2 * CHUNKS_PER_CALL_MAX and (not flat or count + len(rows[0][1]) <= SEGMENTS_MAX):
            index, segments = rows.popleft()
            flat += [index, pack_segments(segments)]
            end, count = index * file.chunk_size + segments[-1].end, count + len(segments)
        mtime = [file.mtime_ns // 10**9, file.mtime_ns % 10**9]
        await service.change("commit", ino=ino, chunks=flat, end=end, mtime=mtime, synced=True)
    await service.change("publish", ino=ino, parent=directory, name=file.name, size=file.size, overwrite=False)


if __name__ == "__main__":
    sys.exit(main())
