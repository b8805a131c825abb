"""One extent on its way to the disks of several nodes.

Used by the extent client. Which nodes to ask now, and whether to go on waiting, is decided
in `_wanted` and `_is_over` from what has happened; `_round` only acts.

    asked ──▶ stored                                all wanted are stored: done
      │ ├───▶ failed ──▶ another node is asked
      │ └───▶ straggling: the first one is long done ──▶ another node is asked, this one may still make it
      ▼
    nobody left who should be able: those that failed this mount lately get a trial, soon or, where too few
                                    have it or work on it, at once
    nobody left to ask: done if they are enough, else the next round, until the deadline

One task runs a `Storing`, its children the requests; the pieces must not change meanwhile.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from fusefs.chunks.limits import PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Limits
from fusefs.chunks.replicas import Replicas
from servers.client.storage import StorageClient
from servers.protocol.checksum import Buffer
from servers.protocol.errors import DcsError, NodeFull, Unavailable
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.limits import KIB
from servers.protocol.placement import NodeView, choose_nodes
from servers.protocol.storage_api import ExtentHeader

AT_ONCE_BYTES_MAX = 64 * KIB
"""A socket that is idle takes so much without waiting."""


@dataclass(slots=True, eq=False, repr=False)
class Storing:
    storage: StorageClient
    replicas: Replicas
    limits: Limits
    chance: random.Random
    extent: ExtentId
    pieces: Sequence[Buffer]
    length: int
    header: ExtentHeader
    copies: int
    sync: bool
    end_at: float
    stored: list[NodeNumber] = field(default_factory=list)
    """The nodes that acknowledged."""
    _first_stored_at: float = math.inf
    _asked_at: dict[NodeNumber, float] = field(default_factory=dict)
    """Those under way."""
    _tried: set[NodeNumber] = field(default_factory=set)
    """In this round."""
    _trials: set[NodeNumber] = field(default_factory=set)
    """Those under way that failed this mount lately, where others are enough: they straggle soon."""
    _errors: dict[NodeNumber, DcsError] = field(default_factory=dict)
    """In this round."""
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def enough(self) -> int:
        return min(self.limits.min_write_replicas, self.copies)

    async def run(self) -> tuple[NodeNumber, ...]:
        """The nodes that acknowledged: all that were wanted, or at least enough.

        Raises NodeFull when space is what keeps it from enough nodes, else Unavailable at the deadline.
        """
        pause = PAUSE_SECONDS_FIRST
        if self.length <= AT_ONCE_BYTES_MAX:
            await self._at_once()
            if len(self.stored) >= self.copies:
                return tuple(self.stored)
        while True:
            self._tried = set(self.stored)
            self._errors.clear()
            await self._round()
            if len(self.stored) >= self.enough:
                return tuple(self.stored)
            if self._lacks_space():
                raise NodeFull(self._failure())
            if trio.current_time() + pause >= self.end_at:
                raise Unavailable(self._failure())
            await trio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _at_once(self) -> None:
        """The first try of what is small while all is well, for less CPU: all nodes asked by one task. The rounds
        bring what is lacking then."""
        able = self.replicas.candidates_for_writing(self.length, trio.current_time())
        if len(able) < self.copies:
            return
        nodes = choose_nodes(able, self.copies, self.length, self.chance, local=self.replicas.local)
        results = await self.storage.put_at_once(
            [node.place for node in nodes], self.extent, self.pieces, self.header, sync=self.sync,
            seconds=self.limits.straggler_seconds,
        )  # fmt: skip
        for node, result in zip(nodes, results, strict=True):
            if result is True:
                self._took(node)
            elif isinstance(result, DcsError):
                self._refused(node, result)

    async def _round(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                for node in self._wanted(now):
                    self._tried.add(node.number)
                    self._asked_at[node.number] = now
                    nursery.start_soon(self._put, node)
                if self._is_over(now):
                    break
                self._news = trio.Event()
                with trio.move_on_at(self._next_straggler_at(now)):
                    await self._news.wait()
            nursery.cancel_scope.cancel()
        now = trio.current_time()
        for number, asked_at in self._asked_at.items():
            if self._straggles(number, asked_at, now):
                self.replicas.failed(number, now)
        self._asked_at.clear()
        self._trials.clear()

    async def _put(self, node: NodeView) -> None:
        try:
            await self.storage.put(
                node.place, self.extent, self.pieces, self.header, sync=self.sync,
                deadline_seconds=self.end_at - trio.current_time(), first_byte_seconds=self.limits.silence_seconds,
            )  # fmt: skip
        except DcsError as error:  # Whatever it is, this node does not have the extent.
            self._refused(node, error)
        else:
            self._took(node)
        # Not in a `finally`: what was cancelled stays, so that the round sees who was straggling.
        del self._asked_at[node.number]
        self._news.set()

    def _took(self, node: NodeView) -> None:
        self.stored.append(node.number)
        self._first_stored_at = min(self._first_stored_at, trio.current_time())
        self.replicas.answered(node.number)

    def _refused(self, node: NodeView, error: DcsError) -> None:
        self._errors[node.number] = error
        if isinstance(error, NodeFull):
            self.replicas.full(node.number, trio.current_time())
        else:
            self.replicas.failed(node.number, trio.current_time())

    def _wanted(self, now: float) -> list[NodeView]:
        """The nodes to ask now: for as many copies as nobody is working on."""
        working = [n for n, asked_at in self._asked_at.items() if not self._straggles(n, asked_at, now)]
        lacking = self.copies - len(self.stored) - len(working)
        if lacking <= 0:
            return []
        able = [n for n in self.replicas.candidates_for_writing(self.length, now) if n.number not in self._tried]
        chosen = choose_nodes(
            able, min(lacking, len(able)), self.length, self.chance,
            local=self.replicas.local, beside=self.replicas.known((*self.stored, *working)),
        )  # fmt: skip
        needed = self.enough - len(self.stored) - len(working) - len(chosen)
        if len(chosen) < lacking:
            trials = self.replicas.take_trials(
                lacking - len(chosen), self.length, now, without=self._tried, in_need=needed > 0
            )
            if needed <= 0:
                self._trials.update(n.number for n in trials)
            chosen += trials
            needed -= len(trials)
        if needed > 0:
            others = self.replicas.last_resorts_for_writing(self.length, now)
            chosen += [n for n in others if n.number not in self._tried and n not in chosen][:needed]
        return chosen

    def _is_over(self, now: float) -> bool:
        """Nothing is left that is worth waiting for in this round."""
        if len(self.stored) >= self.copies or not self._asked_at:
            return True
        all_straggle = all(self._straggles(number, asked_at, now) for number, asked_at in self._asked_at.items())
        return all_straggle and len(self.stored) >= self.enough

    def _straggles(self, number: NodeNumber, asked_at: float, now: float) -> bool:
        return now >= self._straggles_at(number, asked_at)

    def _straggles_at(self, number: NodeNumber, asked_at: float) -> float:
        """Nobody straggles before the first one is done: then all are slow, and that may be our own network."""
        if math.isinf(self._first_stored_at):
            return math.inf
        patience = self.limits.trial_seconds if number in self._trials else self.limits.straggler_seconds
        return max(asked_at, self._first_stored_at) + patience

    def _next_straggler_at(self, now: float) -> float:
        ends = (self._straggles_at(number, asked_at) for number, asked_at in self._asked_at.items())
        return min((at for at in ends if at > now), default=math.inf)

    def _lacks_space(self) -> bool:
        full = sum(isinstance(error, NodeFull) for error in self._errors.values())
        return full > 0 and self.replicas.reachable_count() - full < self.enough

    def _failure(self) -> str:
        causes = "; ".join(f"node {number}: {error}" for number, error in self._errors.items()) or "no node is known"
        return f"{extent_text(self.extent)}: on {len(self.stored)} nodes, {self.enough} are needed: {causes}"
