"""Comparing what metadata shows with what the nodes hold, while both go on changing.

Inventories are taken first, then the extents that files show. What differs is asked about
again before it counts, so that what was stored, committed or deleted meanwhile is no finding.
A node that cannot be asked makes the answer unknown: never clean.

Holds all of both lists in memory: some 150 bytes for each replica of the volume.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from servers.admin.connection import Connection
from servers.client.naming import ServerRefused
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFailed, TryAgain, Unavailable
from servers.protocol.ids import ExtentId, NodeNumber, extent_text, parse_extent_text
from servers.protocol.placement import NodeView

POLL_SECONDS = 0.5
REPAIR_POLL_SECONDS = 2.0
VERIFIED_AT_ONCE_MAX = 8
CONFLICT = 409
WALKS_MAX = 3
EXTENTS_PER_CALL = 128
"""A node opens a file for each; where nothing is cached a slow disk takes some 30 ms for it, and has 10 s for all."""


@dataclass(frozen=True, order=True)
class Finding:
    """What is wrong with one extent on one node."""

    extent: str
    node: int
    what: str


@dataclass
class Findings:
    nodes: int = 0
    extents: int = 0
    """That files show."""
    replicas: int = 0
    """That should be there for them."""
    missing_extents: list[str] = field(default_factory=list)
    """No node has them: data is lost."""
    missing_replicas: list[Finding] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)
    """Too short, with a footer that cannot be read, or with data that does not match its sums."""
    garbage: list[Finding] = field(default_factory=list)
    """On a node, but metadata does not know it."""
    deletions_pending: int = 0
    """Replicas that no file shows any more and that will be deleted."""
    in_flight: int = 0
    """Replicas that a living session may still commit."""
    surplus: int = 0
    """Replicas of extents that files show, on nodes where metadata does not look for them."""
    unknown: list[str] = field(default_factory=list)
    """What could not be asked."""
    reported: int = 0
    """Findings that were told to the naming server, which has them repaired."""
    stopped: list[str] = field(default_factory=list)
    """Why garbage was not deleted that was to be."""

    @property
    def is_incomplete(self) -> bool:
        return bool(self.missing_extents or self.missing_replicas or self.damaged)

    @property
    def is_draining(self) -> bool:
        return bool(self.deletions_pending or self.garbage)

    @property
    def exit_status(self) -> int:
        """0 clean, 1 something is wrong, 2 nobody can say."""
        if self.unknown:
            return 2
        return 1 if self.is_incomplete or self.garbage else 0

    @property
    def verdict(self) -> str:
        return ("clean", "not clean", "unknown")[self.exit_status]

    def as_json(self) -> dict[str, Any]:  # Any: values of JSON.
        return {"verdict": self.verdict, **asdict(self)}


@dataclass(slots=True)
class _Shown:
    """What the chunks that show an extent say of it."""

    where: str
    length_min: int
    nodes: tuple[NodeNumber, ...]


async def fsck(connection: Connection, *, wait_seconds: float, verify: bool, repair: bool = False) -> Findings:
    """What is wrong now; with `wait_seconds`, once what is to be deleted is gone or the time is over.

    With `repair`, what is wrong is told to the naming server, and it is looked again until nothing is, or the time is
    over. Raises DcsError when the naming server cannot be asked.
    """
    deadline = asyncio.get_running_loop().time() + wait_seconds
    found = await _look(connection, wait_seconds, verify)
    reported: set[tuple[str, int]] = set()
    stopped: list[str] = []
    while repair and (found.is_incomplete or found.garbage):
        stopped = await _report(connection, found, reported)
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(REPAIR_POLL_SECONDS)
        found = await _look(connection, 0, verify)
    found.reported = len(reported)
    found.stopped = stopped if found.garbage else []
    return found


async def _report(connection: Connection, found: Findings, reported: set[tuple[str, int]]) -> list[str]:
    """Each finding once; of garbage, what is due is deleted. Returns why what is due was not."""
    for finding in (*found.missing_replicas, *found.damaged):
        if (finding.extent, finding.node) not in reported:
            extent, node = parse_extent_text(finding.extent), NodeNumber(finding.node)
            await connection.naming.report_damage(extent, node, f"fsck: {finding.what}")
            reported.add((finding.extent, finding.node))
    uuids = {int(node.number): node.uuid for node in await connection.naming.nodes()}
    stopped: set[str] = set()
    for number in {finding.node for finding in found.garbage} & uuids.keys():  # Some may be forgotten by now.
        garbage = [parse_extent_text(finding.extent) for finding in found.garbage if finding.node == number]
        for batch in _batches(garbage):
            order = {"node": uuids[number], "extents": [extent_text(extent) for extent in batch]}
            with contextlib.suppress(Unavailable):  # The next round tells.
                try:
                    await connection.naming.json("POST", "/v1/deletions/collect", order)
                except ServerRefused as error:  # The brake has stopped it, or its node is dead.
                    stopped.add(str(error))
    return sorted(stopped)


async def _look(connection: Connection, wait_seconds: float, verify: bool) -> Findings:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    while True:
        if loop.time() < deadline and await _is_draining(connection):
            await asyncio.sleep(POLL_SECONDS)
            continue
        comparison = _Comparison(connection)
        found = await comparison.run()
        if not found.is_draining or found.is_incomplete or found.unknown or loop.time() >= deadline:
            break
        await asyncio.sleep(POLL_SECONDS)
    if verify:
        await comparison.verify()
    return found


async def _is_draining(connection: Connection) -> bool:
    status = await connection.naming.json("GET", "/v1/status")
    return bool(status["deletions_pending"] or status["orphans"] or status["purging"])


class _Comparison:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._found = Findings()
        self._nodes: dict[NodeNumber, NodeView] = {}
        self._held: dict[NodeNumber, dict[ExtentId, int]] = {}
        """Length by extent; only of nodes that told all they hold."""
        self._newcomers: set[NodeNumber] = set()
        self._shown: dict[ExtentId, _Shown] = {}

    async def run(self) -> Findings:
        self._nodes = {node.number: node for node in await self._connection.naming.nodes()}
        await asyncio.gather(*(self._take_inventory(node) for node in self._nodes.values()))
        await self._read_shown()
        await self._note_newcomers()
        found = self._found
        found.nodes, found.extents = len(self._nodes), len(self._shown)
        found.replicas = sum(len(shown.nodes) for shown in self._shown.values())
        await self._find_missing()
        await self._find_unknown()
        found.missing_replicas.sort()
        found.damaged.sort()
        found.garbage.sort()
        return found

    # Gathering.

    async def _take_inventory(self, node: NodeView) -> None:
        held: dict[ExtentId, int] = {}
        after: str | None = None
        try:
            while True:
                page = await self._connection.storage.inventory(node.place, after, EXTENTS_PER_CALL)
                held.update(page.lengths)
                after = page.next
                if after is None:
                    break
        except (TryAgain, NodeFailed) as error:
            self._cannot_ask(node, error)
        else:
            self._held[node.number] = held

    def _cannot_ask(self, node: NodeView, error: DcsError) -> None:
        self._held.pop(node.number, None)
        self._found.unknown.append(f"node {node.number} ({node.state}): {error}")

    async def _read_shown(self) -> None:
        after: str | None = "0"
        walks = 1
        while after is not None:
            try:
                page = await self._connection.naming.json("GET", f"/v1/extents?after={after}")
            except ServerRefused as error:
                if error.status != CONFLICT:
                    raise
                if walks == WALKS_MAX:
                    raise TryAgain(f"files could not be read to the end, {walks} times: {error}") from error
                after, walks = "0", walks + 1  # Redis was started again: what was seen so far is true all the same.
                continue
            for row in page["extents"]:
                extent = parse_extent_text(row["id"])
                shown = self._shown.get(extent)
                if shown is None:
                    where = f"inode {row['inode']}, chunk {row['chunk']}"
                    self._shown[extent] = _Shown(where, row["length"], tuple(row["nodes"]))
                else:
                    shown.length_min = max(shown.length_min, row["length"])
            after = page["next"]

    async def _note_newcomers(self) -> None:
        """Nodes that registered after the inventories began, and may have what files show by now."""
        for node in await self._connection.naming.nodes():
            if node.number not in self._nodes:
                self._newcomers.add(node.number)
                self._found.unknown.append(f"node {node.number} ({node.state}): it came in meanwhile; look again")

    # What should be there.

    async def _find_missing(self) -> None:
        suspects: dict[NodeNumber, list[ExtentId]] = {}
        for extent, number in self._expected():
            if number in self._newcomers:
                continue
            if number not in self._nodes:
                self._found.missing_replicas.append(self._finding(extent, number, "no such node"))
            elif number in self._held and not self._is_good(extent, self._held[number].get(extent)):
                suspects.setdefault(number, []).append(extent)
        for number, extents in suspects.items():
            await self._look_again(self._nodes[number], extents)
        self._find_lost()

    def _expected(self) -> Iterator[tuple[ExtentId, NodeNumber]]:
        for extent, shown in self._shown.items():
            for number in shown.nodes:
                yield extent, number

    def _is_good(self, extent: ExtentId, length: int | None) -> bool:
        return length is not None and length >= self._shown[extent].length_min

    def _finding(self, extent: ExtentId, number: int, what: str) -> Finding:
        return Finding(extent_text(extent), number, f"{what} ({self._shown[extent].where})")

    async def _look_again(self, node: NodeView, extents: list[ExtentId]) -> None:
        """Only what is wrong now and needed now is a finding."""
        for batch in _batches(extents):
            try:
                lengths = await self._connection.storage.check(node.place, batch)
            except (TryAgain, NodeFailed) as error:
                self._cannot_ask(node, error)
                return
            wrong = [extent for extent in batch if not self._is_good(extent, lengths.get(extent))]
            for extent, verdict in (await self._verdicts(wrong)).items():
                if verdict != "needed":
                    continue
                length = lengths.get(extent)
                if length is None:
                    self._found.missing_replicas.append(self._finding(extent, node.number, "missing"))
                else:
                    has = "damaged" if length < 0 else f"has {length} of {self._shown[extent].length_min} bytes"
                    self._found.damaged.append(self._finding(extent, node.number, has))

    def _find_lost(self) -> None:
        missing: dict[str, int] = {}
        for finding in self._found.missing_replicas:
            missing[finding.extent] = missing.get(finding.extent, 0) + 1
        for text, count in sorted(missing.items()):
            if count == len(self._shown[parse_extent_text(text)].nodes):
                self._found.missing_extents.append(text)

    # What should not be there.

    async def _find_unknown(self) -> None:
        for number, held in list(self._held.items()):
            shown = self._shown
            rest = [extent for extent in held if extent not in shown or number not in shown[extent].nodes]
            for batch in _batches(rest):
                await self._classify(self._nodes[number], batch)

    async def _classify(self, node: NodeView, extents: list[ExtentId]) -> None:
        garbage = []
        for extent, verdict in (await self._verdicts(extents)).items():
            if verdict == "garbage":
                garbage.append(extent)
            elif verdict == "condemned":
                self._found.deletions_pending += 1
            elif verdict == "in flight":
                self._found.in_flight += 1
            elif extent in self._shown:
                self._found.surplus += 1
        if not garbage:
            return
        try:
            lengths = await self._connection.storage.check(node.place, garbage)
        except (TryAgain, NodeFailed) as error:
            self._cannot_ask(node, error)
            return
        for extent, length in lengths.items():
            if length is not None:
                self._found.garbage.append(Finding(extent_text(extent), node.number, "metadata does not know it"))

    async def _verdicts(self, extents: list[ExtentId]) -> dict[ExtentId, str]:
        """What metadata says of each now: needed, condemned, in flight or garbage."""
        if not extents:
            return {}
        asked = {"extents": [extent_text(extent) for extent in extents]}
        reply = await self._connection.naming.json("POST", "/v1/extents/known", asked)
        return {parse_extent_text(text): verdict for text, verdict in reply["extents"].items()}

    # What the data is worth.

    async def verify(self) -> None:
        """Has every replica read by its node and compared with its sums."""
        known = {(f.extent, f.node) for f in (*self._found.missing_replicas, *self._found.damaged)}
        waiting = iter([(e, n) for e, n in self._expected() if (extent_text(e), n) not in known and n in self._held])

        async def worker() -> None:
            for extent, number in waiting:
                await self._verify_one(extent, self._nodes[number])

        await asyncio.gather(*(worker() for _ in range(VERIFIED_AT_ONCE_MAX)))
        self._found.damaged.sort()

    async def _verify_one(self, extent: ExtentId, node: NodeView) -> None:
        try:
            described = await self._connection.storage.describe(node.place, extent)
            is_good = described["verified"]
        except ExtentDamaged:
            is_good = False
        except ExtentMissing:
            if (await self._verdicts([extent]))[extent] == "needed":
                self._found.missing_replicas.append(self._finding(extent, node.number, "missing"))
            return
        except (TryAgain, NodeFailed) as error:
            self._found.unknown.append(f"{extent_text(extent)} on node {node.number}: {error}")
            return
        if not is_good:
            self._found.damaged.append(self._finding(extent, node.number, "the data does not match its sums"))


def _batches(extents: Iterable[ExtentId]) -> Iterator[list[ExtentId]]:
    waiting = list(extents)
    for at in range(0, len(waiting), EXTENTS_PER_CALL):
        yield waiting[at : at + EXTENTS_PER_CALL]
