"""One run of bytes on its way from whichever replica is good and fast.

Used by the extent client. The best replica is asked first, the next when it fails or stays
silent for a moment; the first good answer wins. A replica that is damaged or missing is
reported and not asked again; nodes that do not answer are, until the deadline. One that kept
this read waiting is told of, so that it keeps no other.

One task runs a `Fetching`, its children the requests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from fusefs.chunks.limits import PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Limits
from fusefs.chunks.replicas import Replicas
from servers.client.storage import StorageClient
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, Unavailable
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.placement import NodeView

logger = logging.getLogger(__name__)

ReportDamage = Callable[[ExtentId, NodeNumber, str], None]
"""Takes note that a node's replica is damaged or missing; must not wait."""

NoteSilence = Callable[[ExtentId, NodeNumber, int], None]
"""Takes note that a node kept back what was asked for from this offset on; must not wait."""


@dataclass(slots=True, eq=False, repr=False)
class Fetching:
    """Bytes [start, start + length) of the extent, or up to its end but at least `least`."""

    storage: StorageClient
    replicas: Replicas
    limits: Limits
    report_damage: ReportDamage
    note_silence: NoteSilence
    extent: ExtentId
    nodes: Sequence[NodeNumber]
    start: int
    length: int
    least: int
    end_at: float
    hedged: int = 0
    bad: dict[NodeNumber, DcsError] = field(default_factory=dict)
    """Replicas that are known to be of no use."""
    _failed: dict[NodeNumber, DcsError] = field(default_factory=dict)
    _under_way: int = 0
    _found: memoryview | None = None
    _news: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> memoryview:
        """Raises ExtentDamaged when every replica is damaged or missing, Unavailable at the deadline."""
        pause = PAUSE_SECONDS_FIRST
        while True:
            self._failed.clear()
            await self._round()
            if self._found is not None:
                return self._found
            if all(number in self.bad for number in self.nodes):
                raise ExtentDamaged(self._failure())
            if trio.current_time() + pause >= self.end_at:
                raise Unavailable(self._failure())
            await trio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _round(self) -> None:
        askable = [number for number in self.nodes if number not in self.bad]
        order = self.replicas.order_for_reading(askable, trio.current_time())
        async with trio.open_nursery() as nursery:
            while self._found is None and (order or self._under_way):
                if order:
                    self.hedged += self._under_way > 0
                    self._under_way += 1
                    nursery.start_soon(self._get, order.pop(0))
                self._news = trio.Event()
                with trio.move_on_after(self.limits.hedge_seconds if order else math.inf):
                    await self._news.wait()
            nursery.cancel_scope.cancel()

    async def _get(self, node: NodeView) -> None:
        began = trio.current_time()
        try:
            view = await self.storage.get(
                node.place, self.extent, self.start, self.length,
                deadline_seconds=self.end_at - began, first_byte_seconds=self.limits.first_byte_seconds,
            )  # fmt: skip
            if len(view) < self.least:
                raise ExtentDamaged(f"{extent_text(self.extent)} on {node.address} ends at {self.start + len(view)}")
        except (ExtentDamaged, ExtentMissing) as error:
            self.replicas.heard(node.number)
            self._note_damage(node, error)
        except DcsError as error:
            self._failed[node.number] = error
            self.replicas.failed(node.number, trio.current_time())
            self._listened(node, began)
        except trio.Cancelled:
            self.replicas.measured(node.number, trio.current_time() - began, trio.current_time())
            if self._found is not None:  # Another one was faster.
                self._listened(node, began)
            raise
        else:
            if self._found is None:
                self._found = view
            self.replicas.answered(node.number)
            self.replicas.heard(node.number)
            self.replicas.measured(node.number, trio.current_time() - began, trio.current_time())
        self._under_way -= 1
        self._news.set()

    def _listened(self, node: NodeView, since: float) -> None:
        """In vain; whether too long for the node to be well is what `note_silence` finds out."""
        if trio.current_time() - since >= self.limits.hedge_seconds:
            self.note_silence(self.extent, node.number, self.start)

    def _note_damage(self, node: NodeView, error: DcsError) -> None:
        logger.warning("replica of %s on node %s is of no use: %s", extent_text(self.extent), node.number, error)
        self.bad[node.number] = error
        self.report_damage(self.extent, node.number, str(error))

    def _failure(self) -> str:
        causes = "; ".join(f"node {number}: {error}" for number, error in {**self._failed, **self.bad}.items())
        return f"{extent_text(self.extent)}: no good replica on nodes {list(self.nodes)}: {causes or 'none is known'}"
