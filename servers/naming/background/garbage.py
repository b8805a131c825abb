"""Space comes back: orphans are forgotten, condemned extents deleted, what crashed writers left found.

An extent is deleted on a node only when it was condemned and its grace is over, or when no file
ever showed it, its session is over, it was known in that state for the grace, and the node had told
all that it holds. The write intent of an upload under way is its session's lease: the extent's id
names the session, and while that lives its extents are no garbage, however long an upload takes.

A node that does not answer is asked again later; its extents stay on the list until it said that
they are gone. What a node deletes it keeps for a while, see servers/storage/condemned.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from servers.naming.background.strays import drop_strays
from servers.naming.keyspace import prefix
from servers.naming.service import Service, rest_after
from servers.protocol.errors import DcsError, NodeFailed, Refused, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.naming_api import pack_nodes, unpack_nodes
from servers.protocol.placement import NodeView
from servers.protocol.snapshots import is_older, is_part

log = logging.getLogger(__name__)

ORPHANS_PER_RUN = 256
DELETIONS_PER_RUN = 1024
RETRY_SECONDS = 10.0
AWAY_SECONDS = 20.0
"""After this it is looked whether a node that was dead is back. All that such a node had may wait for it."""
REAPS_PER_RUN = 64
SIGHT_EXTENTS = 512
"""Looked at in one call: Redis is held for a millisecond."""
FORGOTTEN_PER_RUN = 10_000
STRAY_TURNS = 16
"""Strays are looked for among a part of the extents in each run: their chunks have to be read for it."""


async def reap(service: Service) -> None:
    """Forgets orphans nobody has open and lets go of their chunks, in bounded steps."""
    for _ in range(REAPS_PER_RUN):
        reaped, freed = await service.store.ask("reap", count=ORPHANS_PER_RUN)
        if not reaped and not freed:
            return


async def delete_condemned(service: Service) -> None:
    """Has the nodes delete what is condemned, and notes which did not."""
    while True:
        began = time.monotonic()
        rows = await service.store.ask("condemned", count=DELETIONS_PER_RUN)
        took = time.monotonic() - began
        if not rows:
            return
        pending = {ExtentId(e): set(unpack_nodes(n)) for e, n in zip(rows[::2], rows[1::2], strict=True)}
        nodes = {node.number: node for node in await service.nodes()}
        by_node: dict[NodeNumber, list[ExtentId]] = {}
        for extent, numbers in pending.items():
            numbers.intersection_update(nodes)  # The others are forgotten, with all they had.
            for number in numbers:
                by_node.setdefault(number, []).append(extent)
        answers = await asyncio.gather(*(delete_on(service, nodes.get(n), wanted) for n, wanted in by_node.items()))
        for number, gone in zip(by_node, answers, strict=True):
            for extent in gone:
                pending[extent].discard(number)
        away = {e for e, numbers in pending.items() if numbers and all(nodes[n].state == "dead" for n in numbers)}
        soon = [part for e, n in pending.items() if n and e not in away for part in (e, pack_nodes(sorted(n)))]
        later = [part for e in away for part in (e, pack_nodes(sorted(pending[e])))]
        no_longer = [e for e, n in pending.items() if not n]
        await service.store.ask("deleted", gone=no_longer, left=soon, retry_ms=int(RETRY_SECONDS * 1000))
        if later:
            await service.store.ask("deleted", gone=[], left=later, retry_ms=int(AWAY_SECONDS * 1000))
        await asyncio.sleep(rest_after(took))


async def delete_on(service: Service, node: NodeView | None, extents: list[ExtentId]) -> set[ExtentId]:
    """Those that are certainly not on the node any more."""
    if node is None or node.state == "dead":
        return set()
    try:
        return await service.deletions.order(node, extents)
    except (TryAgain, NodeFailed, Refused) as error:
        log.info("node %d does not delete now: %s", node.number, error)
        return set()


@dataclass(frozen=True)
class Held:
    """How many extents a node has."""

    files: int
    """Of files; also of those that nobody knows any more."""
    snapshots: int
    """Parts of snapshots of the metadata. Where files are few these are many more, so they are counted apart."""

    @classmethod
    def of(cls, extents: Iterable[ExtentId]) -> Self:
        counts = Counter(map(is_part, extents))
        return cls(counts[False], counts[True])

    def __add__(self, other: Held) -> Held:
        return Held(self.files + other.files, self.snapshots + other.snapshots)


@dataclass(frozen=True)
class Brake:
    """Where a run stops that would remove suspiciously much."""

    share: float
    """Of a node's extents."""
    extents_min: int
    """So many are never suspicious, unless they are more than half of them."""

    def limit(self, held: int) -> int:
        return max(int(held * self.share), min(self.extents_min, held // 2))

    def why(self, garbage: Held, held: Held) -> str:
        """Why so much garbage is suspicious; "" when it is not."""
        if garbage.files > self.limit(held.files):
            return f"{garbage.files} of {held.files} extents are garbage: more than {self.limit(held.files)}"
        # One that was given up leaves a few, and the next ones replace it.
        limit = max(self.extents_min, int(held.snapshots * self.share))
        if garbage.snapshots > limit:
            return f"{garbage.snapshots} of {held.snapshots} parts of snapshots are garbage: more than {limit}"
        return ""


@dataclass(frozen=True)
class CollectionPlan:
    due: tuple[ExtentId, ...]
    """May be deleted now."""
    waiting: int
    """Garbage whose grace is not over."""
    stopped: str
    """Why nothing is due though it is garbage; "" when nothing was stopped."""
    is_suspicious: bool = False
    """There is more garbage than the brake lets go, due or not."""


def plan_collection(
    held: Held,
    since_ms: Mapping[ExtentId, int],
    now_ms: int,
    grace_ms: int,
    brake: Brake | None,
    oldest_snapshot: int = 0,
) -> CollectionPlan:
    """What to delete of a node that holds so many extents, these of them garbage, known since then.

    The brake looks at all of the garbage, not only at what is due, so that nothing passes it in slices; but for what
    is of no use in any case, parts of snapshots older than all that are kept. None: somebody has confirmed.
    """
    due = tuple(extent for extent, since in since_ms.items() if now_ms - since >= grace_ms)
    suspicious = Held.of(extent for extent in since_ms if not is_older(extent, oldest_snapshot))
    why = brake.why(suspicious, held) if brake is not None else ""
    if due and why:
        return CollectionPlan((), len(since_ms), why, is_suspicious=True)
    return CollectionPlan(due, len(since_ms) - len(due), "", is_suspicious=bool(why))


class GarbageCollector:
    """Finds extents that no file shows and no session will commit, and deletes them after the grace.

    Keeps nothing but counters: since when something is garbage stands in Redis, so any naming server can go on.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._key = prefix(service.settings.volume) + ":garbage"
        settings = service.settings
        self._grace_ms = int(settings.garbage_grace_seconds * 1000)
        self._brake = Brake(settings.garbage_brake_share, settings.garbage_brake_extents)
        self._turn = 0
        self.deleted = 0

    async def run(self) -> None:
        store = self._service.store
        now_ms, held, braked, brake_off_ms = await store.ask("deletions")
        if held:
            return
        brake = self._brake if now_ms >= brake_off_ms else None
        self._turn = (self._turn + 1) % STRAY_TURNS
        _, _, _, _, *known = await store.ask("snapshots")
        oldest = min(known[::2], default=0)
        stopped: list[str] = []
        left: set[ExtentId] | None = set()
        for node in await self._service.nodes():
            try:
                if node.state != "alive":
                    raise NodeFailed(f"it is {node.state}")
                found = await self._visit(node, brake, oldest, stopped)
                left = None if left is None else left | found
            except DcsError as error:
                log.info("garbage on node %d waits: %s", node.number, error)
                left = None
        why = "; ".join(stopped).encode()
        if why != braked:
            if why:
                log.error("garbage is not collected until `dcs gc --confirm`: %s", why.decode())
            await store.ask("brake", why=why)
        if left is not None:
            await self._forget_all_but(left)

    async def _forget_all_but(self, left: set[ExtentId]) -> None:
        """Every node was looked through: what was garbage and is on none of them is gone."""
        noted = await self._service.store.command("ZRANGE", self._key, 0, FORGOTTEN_PER_RUN - 1)
        gone = [extent for extent in noted if extent not in left]
        for at in range(0, len(gone), SIGHT_EXTENTS):
            await self._service.store.ask("collected", gone=gone[at : at + SIGHT_EXTENTS])

    async def _visit(
        self, node: NodeView, brake: Brake | None, oldest_snapshot: int, stopped: list[str]
    ) -> set[ExtentId]:
        """The garbage that is left on the node; appends why the brake stopped, if it did."""
        began_ms = (await self._service.store.ask("deletions"))[0]
        held, since_ms = await self._look_through(node)
        now_ms = (await self._service.store.ask("deletions"))[0]
        plan = plan_collection(held, since_ms, now_ms, self._grace_ms, brake, oldest_snapshot)
        if plan.stopped:
            stopped.append(f"node {node.number}: {plan.stopped}")
        elif brake is not None and not plan.is_suspicious:
            await self._service.store.ask("judged", node=node.number, ms=began_ms)
        left = set(since_ms)
        for at in range(0, len(plan.due), DELETIONS_PER_RUN):
            left -= await self._delete(node, plan.due[at : at + DELETIONS_PER_RUN])
        return left

    async def _look_through(self, node: NodeView) -> tuple[Held, dict[ExtentId, int]]:
        """How many extents the node holds, and since when which of them are garbage. All of them, or it raises."""
        held, since_ms = Held(0, 0), {}
        after: str | None = None
        while True:
            names, after = await self._service.storage.names(node.place, after, EXTENTS_PER_CALL_MAX)
            held += Held.of(names)
            for at in range(0, len(names), SIGHT_EXTENTS):
                rows = await self._service.ask_gently("sight", extents=names[at : at + SIGHT_EXTENTS])
                since_ms.update({ExtentId(e): int(ms) for e, ms in zip(rows[::2], rows[1::2], strict=True)})
            some = [name for name in names if name[-1] % STRAY_TURNS == self._turn]
            await drop_strays(self._service, node.number, some, self._grace_ms)
            if after is None:
                return held, since_ms

    async def _delete(self, node: NodeView, due: tuple[ExtentId, ...]) -> set[ExtentId]:
        # In one step Redis looks again and sees to it that nobody commits them any more: only then they may go.
        doomed = [ExtentId(e) for e in await self._service.store.ask("collect", extents=due)]
        if not doomed:
            return set()
        gone = await self._service.deletions.order(node, doomed)
        for extent in gone:
            self.deleted += 1
            log.info("deleted garbage %s on node %d", extent_text(extent), node.number)
        return gone
