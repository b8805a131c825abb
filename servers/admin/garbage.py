"""`dcs gc`: what would be deleted and why, and bringing back what was.

Asks every node what it holds and the naming server what it thinks of it; deletes nothing itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from servers.admin.connection import Connection
from servers.protocol.errors import NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, extent_text
from servers.protocol.limits import EXTENTS_PER_CALL_MAX
from servers.protocol.placement import NodeView


@dataclass(frozen=True)
class Doomed:
    extent: str
    node: int
    verdict: str
    why: str
    due_seconds: float


@dataclass
class Forecast:
    doomed: list[Doomed] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    """How many replicas there are of each verdict."""
    held: str = ""
    """Why no node is told to delete anything."""
    brake: str = ""
    unknown: list[str] = field(default_factory=list)
    """Nodes that could not be asked."""

    def as_json(self) -> dict[str, Any]:  # Any: values of JSON.
        return asdict(self)


async def forecast(connection: Connection) -> Forecast:
    """What the next rounds of the background jobs would delete. Raises DcsError when no naming server answers."""
    status = await connection.naming.json("GET", "/v1/status")
    found = Forecast(held=status["deletions_held"], brake=status["garbage_brake"])
    for node in await connection.naming.nodes():
        try:
            async for names in _names(connection, node):
                await _judge(connection, node, names, found)
        except (TryAgain, NodeFailed) as error:
            found.unknown.append(f"node {node.number} ({node.state}): {error}")
    return found


async def _names(connection: Connection, node: NodeView) -> AsyncIterator[list[ExtentId]]:
    after: str | None = None
    while True:
        names, after = await connection.storage.names(node.place, after, EXTENTS_PER_CALL_MAX)
        yield names
        if after is None:
            return


async def _judge(connection: Connection, node: NodeView, names: list[ExtentId], found: Forecast) -> None:
    if not names:
        return
    asked = {"extents": [extent_text(extent) for extent in names], "node": node.number}
    for row in (await connection.naming.json("POST", "/v1/extents/why", asked))["extents"]:
        found.verdicts[row["verdict"]] = found.verdicts.get(row["verdict"], 0) + 1
        if row["due_seconds"] is not None:
            found.doomed.append(Doomed(row["extent"], node.number, row["verdict"], row["why"], row["due_seconds"]))


async def undo(connection: Connection, extents: list[ExtentId] | None, seconds: float | None) -> dict[str, Any]:
    """Holds all deletions, then has every node bring back what it deleted and still keeps."""
    await connection.naming.json("POST", "/v1/deletions/hold", {"why": "dcs gc --undo"})
    restored: dict[str, int] = {}
    unknown: list[str] = []
    for node in await connection.naming.nodes():
        total = 0
        try:
            while count := await connection.storage.undelete(node.place, extents, seconds):
                total += count
        except (TryAgain, NodeFailed) as error:
            unknown.append(f"node {node.number} ({node.state}): {error}")
        restored[str(node.number)] = total
    return {"restored": restored, "unknown": unknown}
