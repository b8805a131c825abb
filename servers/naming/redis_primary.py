"""Which Redis is the primary of the volume: asked of Sentinels, or of the nodes of a Redis Cluster.

All that REDIS_URL names are asked at once, and what was decided last counts: the answer with the
highest configuration epoch. One that was cut off while the others agreed on another primary does
not know; that it may be the only one that answers is why its word alone is never enough to
write by (see redis_changes) or to read by (`Primary.is_by_majority`).

Called by the store, once a second and whenever it connects. Keeps nothing.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Mapping
from dataclasses import dataclass

from servers.naming.redis_connection import Command, RedisError, UnsafeRedis, connect
from servers.naming.redis_url import Endpoint, RedisPlace
from servers.protocol.errors import TryAgain

LOOK_SECONDS = 0.8
"""For all questions together: a new look is taken once a second."""
SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one Sentinel or cluster node says."""

    primary: Endpoint
    epoch: int
    voters: int
    """How many decide together who is the primary."""


@dataclass(frozen=True, slots=True)
class Primary:
    endpoint: Endpoint
    is_by_majority: bool
    """More than half of those who decide answered, and all who know the latest decision name it."""


async def find_primary(place: RedisPlace, key: bytes) -> Primary:
    """Raises TryAgain when nobody knows, UnsafeRedis when those who answer know nothing of the service."""
    answers = await asyncio.gather(
        *(_ask(place, endpoint, key) for endpoint in place.endpoints), return_exceptions=True
    )
    sightings = [answer for answer in answers if isinstance(answer, Sighting)]
    if sightings:
        return judge(sightings)
    problems = [answer for answer in answers if isinstance(answer, BaseException)]
    for problem in problems:
        if not isinstance(problem, OSError | TryAgain | RedisError):
            raise problem
    whom = "Sentinel" if place.kind == "sentinel" else "node of the Redis Cluster"
    words = "; ".join(f"{e}: {str(p) or type(p).__name__}" for e, p in zip(place.endpoints, problems, strict=True))
    raise TryAgain(f"no {whom} tells the primary: {words}")


def judge(sightings: list[Sighting]) -> Primary:
    """Of at least one."""
    latest = max(sightings, key=lambda s: s.epoch)
    agreeing = sum(s.primary == latest.primary and s.epoch == latest.epoch for s in sightings)
    return Primary(latest.primary, agreeing > max(s.voters for s in sightings) / 2)


async def _ask(place: RedisPlace, endpoint: Endpoint, key: bytes) -> Sighting:
    command: Command = ("SENTINEL", "MASTER", place.service) if place.kind == "sentinel" else ("CLUSTER", "NODES")
    async with asyncio.timeout(LOOK_SECONDS):
        connection = await connect(endpoint.host, endpoint.port)
        try:
            try:
                answer = await connection.send(*command)
            except RedisError as error:
                if not str(error).startswith("NOAUTH") or not place.password:
                    raise
                await connection.send("AUTH", *([place.username] if place.username else []), place.password)
                answer = await connection.send(*command)
        except RedisError as error:
            if "No such master" in str(error):
                raise UnsafeRedis(
                    f"REDIS_URL: the Sentinel at {endpoint} watches no service called {place.service}"
                ) from error
            raise
        finally:
            connection.abort()
    if place.kind == "sentinel":
        fields = {answer[i].decode(): answer[i + 1].decode() for i in range(0, len(answer), 2)}
        return read_sentinel(fields)
    return read_cluster(answer.decode(), slot_of(key), endpoint.host)


def read_sentinel(fields: Mapping[str, str]) -> Sighting:
    """Of SENTINEL MASTER."""
    primary = Endpoint(fields["ip"], int(fields["port"]))
    return Sighting(primary, int(fields["config-epoch"]), int(fields["num-other-sentinels"]) + 1)


def read_cluster(nodes: str, slot: int, asked_host: str) -> Sighting:
    """Of CLUSTER NODES. Raises TryAgain when no node has the slot."""
    voters, owner = 0, None
    for line in nodes.splitlines():
        _, address, flags, _, _, _, epoch, _, *ranges = line.split(" ")
        if not ranges or "master" not in flags.split(","):
            continue
        voters += 1
        # A range in brackets is a slot on its way elsewhere, or to here: whose it is until then, the other ranges say.
        if any(slot in _range(text) for text in ranges if not text.startswith("[")):
            host, _, port = address.partition("@")[0].rpartition(":")
            owner = Endpoint(host.strip("[]") or asked_host, int(port)), int(epoch)
    if owner is None:
        raise TryAgain(f"no node of the Redis Cluster has slot {slot}")
    return Sighting(*owner, voters)


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def slot_of(key: bytes) -> int:
    """The cluster's slot of a key with a hash tag."""
    return crc_hqx(key[key.index(b"{") + 1 : key.index(b"}")], 0) % SLOTS
