"""Copies that are missing are made, those that are too many or bad are taken away.

    look: thin and damaged extents, files asked for in other numbers, and, when the nodes have
          changed, all files by and by (`survey`)
    decide: repair_plan
    do: the target fetches the extent from another node; only when it has it on stable storage
        does the map say so, in one step that fails if the extent was moved or let go meanwhile

What was copied for nothing is deleted after the grace, see dropped.py. All that is known
here is found again after a restart. Two naming servers may do this at once: each move in the
map is checked against what it was decided from.

`Repair` is one loop's; its methods run as jobs of the schedule, which take turns at every await.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgpack

from servers.client.storage import WantedCopy
from servers.naming.background.backlog import Backlog
from servers.naming.background.dropped import Dropped
from servers.naming.background.repair_plan import (
    Copy,
    Drop,
    Held,
    Load,
    Outlook,
    Plan,
    Replica,
    Step,
    good_copies,
    held_of,
    lacking,
    look_out,
    next_step,
    repair_plan,
)
from servers.naming.leadership import acting_epoch
from servers.naming.membership import Member
from servers.naming.service import Service, alive
from servers.protocol.errors import AccessDenied, DcsError, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId, NodeNumber, extent_text
from servers.protocol.naming_api import pack_nodes
from servers.protocol.placement import NodeView

log = logging.getLogger(__name__)

T = TypeVar("T")

LISTEN_SECONDS = 6.0
"""Heartbeats come every 2 s: who was not heard after this is away."""
RUN_SECONDS = 5.0
"""A turn of the job; the next one looks at the nodes anew."""
LISTED_PER_TURN = 256
RECOUNT_SECONDS = 1.0
"""Of a turn: what is in danger does not wait for more."""
AGAIN_SECONDS = 2.0
"""Between two surveys."""
QUEUE_MAX = IDLE_MAX = 20_000
"""More are found by the next survey."""
PLANNED_AT_ONCE = 512
LOOKED_AT_ONCE = 128
"""Extents looked at before other tasks have their turn: some hundred microseconds."""
COPIES_PER_NODE = 64
BYTES_PER_NODE = 64 * 1024 * 1024
"""What a round asks of a node."""
MOVES_PER_CALL = 32
ORDER_SECONDS = 60.0
ORDER_BYTES_PER_SECOND_MIN = 1e6
REFUSED_SECONDS = TRY_AGAIN_SECONDS = 60.0
UNREACHED_SECONDS = 3.0
"""A node that could not be reached may only be starting; one that stays away is soon suspect, and not asked at all."""
SURVEY_COUNT = 64
"""Keys a survey looks at in one call, which holds Redis for about half a millisecond."""
READ_AGAIN_SECONDS = 600.0
"""So often the damaged copies of an extent without a good one are read again."""
STALE, MOVED = 0, 1
SHOWN = 1
"""What `known` says of an extent that a file shows."""
UNSEEN = Outlook({}, frozenset(), frozenset(), frozenset(), is_paused=False)


@dataclass
class Survey:
    """One walk over all files."""

    signature: tuple[object, ...]
    process: str
    """Of Redis, which the cursor belongs to."""
    began_at: float
    ended_at: float = 0.0
    cursor: bytes = b"0"
    on_nodes: dict[NodeNumber, int] = field(default_factory=dict)
    """Extents found on nodes that are being emptied."""
    beyond: Counter[int] = field(default_factory=Counter)
    """Extents with too few copies for which there was no room, by the good ones they have."""
    unseen: set[ExtentId] = field(default_factory=set)
    """What was idle when it began, and was not found by it yet."""


class Repair:
    def __init__(self, service: Service, dropped: Dropped, read_again: Callable[[ExtentId, NodeNumber], None]) -> None:
        """`read_again`: has the node read a replica that is said to be damaged, and say so when it is good."""
        self._service = service
        self._dropped = dropped
        self._read_again = read_again
        self._begin(0)
        self.copies = self.copied_bytes = self.drops = self.failures = 0

    def _begin(self, epoch: int) -> None:
        """Nothing is known: somebody else may have led meanwhile."""
        self._epoch = epoch
        self._process = ""
        self._outlook = UNSEEN
        self._draining: dict[NodeNumber, Member] = {}
        self._listening_since = time.monotonic()
        self._queue = Backlog(QUEUE_MAX)
        self._idle = Backlog(IDLE_MAX)
        """Nothing can be done for them while the nodes are as they are."""
        self._is_survey_wanted = False
        """Some that could be repaired are in neither, for want of room."""
        self._damaged: set[Replica] = set()
        self._refused: dict[Replica, float] = {}
        self._signature: tuple[object, ...] = ()
        self._survey: Survey | None = None
        self._surveyed: Survey | None = None
        self._drained: set[tuple[NodeNumber, int]] = set()
        """Which, and since when it was to be emptied: drained again later, a node may have taken more in between."""
        self._thin_cursor = self._damaged_cursor = b"0"
        self._damaged_seen: set[Replica] = set()
        self._recounting = deque[tuple[int, int, bytes]]()
        """Inodes to be recounted, since which change each waits for that, and its cursor."""
        self._read_again_at: dict[Replica, float] = {}
        self._tried_again_at = time.monotonic()
        self._told: bytes = b""

    @property
    def outlook(self) -> Outlook | None:
        """The nodes as they were at the last look; None before there was one, and while something is to be repaired."""
        return None if self._queue or self._is_survey_wanted or self._outlook is UNSEEN else self._outlook

    @property
    def damaged(self) -> Collection[Replica]:
        return self._damaged

    # The jobs.

    async def run(self) -> None:
        """Looks, and does what is to be done, for a turn."""
        try:
            if await self._look():
                await self._repair(time.monotonic() + RUN_SECONDS)
                await self._tell()
        except DcsError:
            self._listening_since = time.monotonic()  # Nor could the nodes be heard, perhaps.
            raise

    async def _repair(self, until: float) -> None:
        by_danger: dict[int, list[Held]] = {}
        async for held in unhurried(self._queue):
            by_danger.setdefault(self._danger(held), []).append(held)
        waiting = deque(held for danger in sorted(by_danger) for held in by_danger[danger])
        while waiting and time.monotonic() < until:
            some = [waiting.popleft() for _ in range(min(len(waiting), PLANNED_AT_ONCE))]
            plan = self._plan([held for held in some if self._queue.get(held.extent) is held])
            waiting.extendleft(reversed(plan.later))
            if plan.steps:
                await self._perform(plan.steps)
            await asyncio.sleep(0)

    async def survey(self) -> None:
        """Walks over all files when the nodes have changed, and now and then; a part of it in each turn."""
        began = time.monotonic()
        if self._outlook is UNSEEN or self._epoch != acting_epoch.get() or self._service.store.fault is not None:
            return
        while time.monotonic() - began < RUN_SECONDS and (survey := self._due_survey()) is not None:
            await self._survey_step(survey, self._outlook)

    # Looking.

    async def _look(self) -> bool:
        """The nodes as they are now, and what is known to be wrong. False while that cannot be told yet."""
        members, now = await self._service.members(), time.monotonic()
        store = self._service.store
        if acting_epoch.get() != self._epoch:
            self._begin(acting_epoch.get())
        if store.fault is not None:
            self._listening_since = now
        if now - self._listening_since < LISTEN_SECONDS:
            return False
        self._note(members, now - self._listening_since)
        if store.process != self._process:
            self._process = store.process
            self._thin_cursor = self._damaged_cursor = b"0"
            self._recounting.clear()
            self._damaged_seen = set(self._damaged)
        await self._take_damaged()
        await self._take_thin()
        await self._take_recounted()
        await self._look_after_idle()
        refused = {replica: until for replica, until in self._refused.items() if until > now}
        if len(refused) < len(self._refused) or now - self._tried_again_at > TRY_AGAIN_SECONDS:
            self._try_again()
        self._refused = refused
        return True

    def _try_again(self) -> None:
        """What could not be done before may be possible now."""
        self._tried_again_at = time.monotonic()
        for held in self._idle.drain():
            self._put(self._queue, held)

    async def _look_after_idle(self) -> None:
        """Forgets those of them that no file shows any more; some in each turn."""
        some = self._idle.longest_here(LISTED_PER_TURN)
        gone = await self._forget_gone([held.extent for held in some])
        for held in some:
            if held.extent not in gone and self._idle.get(held.extent) is held:
                self._put(self._idle, held)  # Behind the others.

    def _note(self, members: Sequence[Member], observed: float) -> None:
        wait = self._service.settings.repair_wait_seconds
        outlook = look_out(members, self._service.patience, wait, observed)
        if outlook.is_paused and not self._outlook.is_paused:
            log.warning("many storage nodes vanished together: only last copies are copied for now")
        self._outlook = outlook
        self._draining = {m.view.number: m for m in members if m.view.draining}
        self._drained &= {(number, m.draining_since_ms) for number, m in self._draining.items()}
        takers = frozenset(view.number for view in outlook.takers)
        signature = (outlook.staying, outlook.awaited, outlook.draining, outlook.readable, takers)
        if signature != self._signature:
            self._signature = signature
            self._try_again()

    async def _take_thin(self) -> None:
        self._thin_cursor, rows = await self._service.store.ask("thin", cursor=self._thin_cursor, count=LISTED_PER_TURN)
        self.take(held_of(rows))

    async def _take_damaged(self) -> None:
        self._damaged_cursor, replicas, rows = await self._service.store.ask(
            "wounded", cursor=self._damaged_cursor, count=LISTED_PER_TURN
        )
        found = {(ExtentId(r[:16]), NodeNumber(int.from_bytes(r[16:], "big"))) for r in replicas}
        self._damaged |= found
        self._damaged_seen |= found
        if self._damaged_cursor == b"0":  # All were seen: the others are healed, or gone.
            self._damaged, self._damaged_seen = self._damaged_seen, set()
        hurt = held_of(rows)
        self._look_for_good(hurt)
        for held in hurt:
            self._idle.pop(held.extent)
        self.take(hurt)

    def _look_for_good(self, hurt: Iterable[Held]) -> None:
        """Of an extent all of whose copies are said to be damaged the nodes read them again: that may not be so."""
        now = time.monotonic()
        self._read_again_at = {r: at for r, at in self._read_again_at.items() if now - at < READ_AGAIN_SECONDS}
        for held in hurt:
            if good_copies(held, self._outlook, self._damaged):
                continue
            for number in held.nodes:
                replica = held.extent, number
                if number in self._outlook.readable and replica not in self._read_again_at:
                    self._read_again_at[replica] = now
                    self._read_again(*replica)

    async def _take_recounted(self) -> None:
        """Files that are asked for in another number of copies than before; some parts of them in each turn."""
        store, until = self._service.store, time.monotonic() + RECOUNT_SECONDS
        if not self._recounting:
            some = await store.ask("recount", count=LISTED_PER_TURN)
            self._recounting.extend((ino, change, b"0") for ino, change in zip(some[::2], some[1::2], strict=True))
        while self._recounting and time.monotonic() < until:
            ino, change, cursor = self._recounting.popleft()
            ask = store.ask if cursor == b"0" else self._service.ask_gently  # Between small files Redis rests anyway.
            cursor, found = await ask("recount_file", ino=ino, cursor=cursor, count=LISTED_PER_TURN, change=change)
            if cursor != b"0":
                self._recounting.appendleft((ino, change, cursor))
            rows = held_of(found)
            for held in rows:
                self._idle.pop(held.extent)
            self.take(rows)

    def take(self, found: Iterable[Held], survey: Survey | None = None) -> None:
        """Queues what can be repaired, and keeps in mind what cannot."""
        for held in found:
            known = self._idle.get(held.extent)
            if known is not None and known.nodes == held.nodes and known.target == held.target:
                continue
            self._idle.pop(held.extent)
            self._queue.pop(held.extent)
            if next_step(held, self._outlook, self._damaged, self._service.chance, self._refused) is not None:
                crowded_out = self._put(self._queue, held)
            else:
                crowded_out = self._put(self._idle, held) if self._is_lacking(held) else None
            if survey is not None and crowded_out is not None and self._is_short(crowded_out):
                survey.beyond[self._danger(crowded_out)] += 1

    def _put(self, backlog: Backlog, held: Held) -> Held | None:
        crowded_out = backlog.put(held, self._danger(held))
        self._is_survey_wanted |= crowded_out is not None and backlog is self._queue
        return crowded_out

    # Walking over all files.

    def _due_survey(self) -> Survey | None:
        """The walk to go on with, or a new one; None when there is no need for one now."""
        process = self._service.store.process
        going_on = self._survey
        if going_on and (going_on.signature, going_on.process) == (self._signature, process):
            return going_on
        last, now = self._surveyed, time.monotonic()
        if going_on or last is None or last.signature != self._signature:
            is_due = True
        elif self._is_survey_wanted:
            is_due = not self._queue and now - last.ended_at > AGAIN_SECONDS
        elif len(self._drained) < len(self._draining):
            is_due = not self._queue and now - last.ended_at > max(AGAIN_SECONDS, last.ended_at - last.began_at)
        else:
            is_due = now - last.ended_at > self._service.settings.survey_interval_seconds
        self._survey = None
        if is_due:
            self._is_survey_wanted = False
            self._survey = Survey(self._signature, process, now)
            # What is damaged may have as many copies as it should: it is not for a survey to find it.
            self._survey.unseen = {held.extent for held in self._idle if not self._is_hurt(held)}
        return self._survey

    async def _survey_step(self, survey: Survey, outlook: Outlook) -> None:
        wanted = {
            "count": SURVEY_COUNT,
            "settled": pack_nodes(sorted(outlook.staying)),
            "leaving": pack_nodes(sorted(outlook.draining)),
        }
        survey.cursor, later, rows = await self._service.ask_gently("survey", cursor=survey.cursor, **wanted)
        if self._survey is not survey:
            return  # All was forgotten meanwhile, what this walk has found so far, too.
        self._judge(survey, outlook, held_of(rows))
        for ino in later:
            cursor = b"0"
            while True:
                cursor, rows = await self._service.ask_gently("survey_file", ino=ino, cursor=cursor, **wanted)
                if self._survey is not survey:
                    return
                self._judge(survey, outlook, held_of(rows))
                if cursor == b"0":
                    break
        if survey.cursor == b"0" and survey.process == self._service.store.process:
            survey.ended_at = time.monotonic()
            self._surveyed, self._survey = survey, None
            for extent in survey.unseen:  # Nothing is wrong with them any more.
                self._idle.pop(extent)
            self._note_drained(survey)

    def _judge(self, survey: Survey, outlook: Outlook, found: Sequence[Held]) -> None:
        for held in found:
            survey.unseen.discard(held.extent)
            for number in held.nodes:
                if number in outlook.draining:
                    survey.on_nodes[number] = survey.on_nodes.get(number, 0) + 1
        self.take(found, survey)

    def _note_drained(self, survey: Survey) -> None:
        """A node is empty when a whole walk, begun when nobody could still be storing there, found nothing on it."""
        took = time.monotonic() - survey.began_at
        for number, member in self._draining.items():
            settled = member.draining_seconds - took >= self._service.settings.drain_grace_seconds
            drained = number, member.draining_since_ms
            if settled and not survey.on_nodes.get(number) and drained not in self._drained:
                log.info("node %d is drained: it may be switched off", number)
                self._drained.add(drained)
            elif survey.on_nodes.get(number):
                self._drained.discard(drained)

    # Doing.

    def _danger(self, held: Held) -> int:
        return len(good_copies(held, self._outlook, self._damaged))

    def _plan(self, some: Iterable[Held]) -> Plan:
        load = Load(COPIES_PER_NODE, BYTES_PER_NODE)
        plan = repair_plan(some, self._outlook, self._damaged, load, self._service.chance, self._refused)
        for held in plan.idle:
            self._queue.pop(held.extent)
            if self._is_lacking(held):
                self._put(self._idle, held)
        return plan

    def _is_hurt(self, held: Held) -> bool:
        return any((held.extent, n) in self._damaged for n in held.nodes)

    def _is_short(self, held: Held) -> bool:
        return lacking(held, self._outlook, self._damaged) > 0

    def _is_lacking(self, held: Held) -> bool:
        leaves = any(n in self._outlook.draining for n in held.nodes)
        return self._is_hurt(held) or leaves or lacking(held, self._outlook, self._damaged) != 0

    async def _perform(self, steps: Iterable[Step]) -> None:
        copies: dict[NodeNumber, list[Copy]] = {}
        drops: list[Drop] = []
        for step in steps:
            if isinstance(step, Copy):
                copies.setdefault(step.to.number, []).append(step)
            else:
                drops.append(step)
        await asyncio.gather(*(self.copy_to(batch[0].to, batch) for batch in copies.values()), self._drop(drops))

    async def copy_to(self, to: NodeView, batch: Sequence[Copy]) -> None:
        """The node fetches what it is to have; then the map says so."""
        within_seconds = ORDER_SECONDS + sum(copy.held.length for copy in batch) / ORDER_BYTES_PER_SECOND_MIN
        async with self._dropped.wanted_again(to, [copy.held.extent for copy in batch], within_seconds) as free:
            self._refuse([copy for copy in batch if copy.held.extent not in free], UNREACHED_SECONDS)
            if free:
                await self._copy_to(to, [copy for copy in batch if copy.held.extent in free], within_seconds)

    async def _copy_to(self, to: NodeView, batch: Sequence[Copy], within_seconds: float) -> None:
        views = {view.place: view.number for copy in batch for view in copy.sources}
        wanted = [WantedCopy(c.held.extent, c.held.length, [v.place for v in c.sources]) for c in batch]
        try:
            done = await self._while_heard(
                to, self._service.storage.copy(to.place, wanted, node=to.uuid, deadline_seconds=within_seconds)
            )
        except (TryAgain, NodeFailed, AccessDenied) as error:
            log.info("node %d does not fetch copies now: %s", to.number, error)
            self._refuse(batch, UNREACHED_SECONDS if isinstance(error, TryAgain) else REFUSED_SECONDS)
            return
        stored = [copy for copy in batch if copy.held.extent in done.stored]
        gone = await self._forget_gone([copy.held.extent for copy in batch if copy.held.extent not in done.stored])
        for extent, source, why in done.damaged:
            if source in views and extent not in gone:
                await self._report_damage(extent, views[source], why)
        self._refuse((c for c in batch if c.held.extent not in gone.union(done.stored)), REFUSED_SECONDS)
        self.copies += len(stored)
        self.copied_bytes += sum(copy.held.length for copy in stored)
        again = [(copy.held.extent, to.number) for copy in stored if copy.in_place]
        if again:
            await self._service.store.ask("mended", replicas=[e + pack_nodes([n]) for e, n in again])
            self._damaged.difference_update(again)
        await self._move([(c.held, (*c.held.nodes, to.number)) for c in stored if not c.in_place])
        for copy in stored:
            if copy.in_place:
                self._queue.pop(copy.held.extent)
                if self._is_lacking(copy.held):  # Another copy is missing, too.
                    self._put(self._queue, copy.held)

    async def _while_heard(self, node: NodeView, asking: Coroutine[Any, Any, T]) -> T:
        """The node's answer; TryAgain when the node falls silent meanwhile, for which all other repair would wait."""
        answer = asyncio.create_task(asking)
        try:
            while not (await asyncio.wait({answer}, timeout=LISTEN_SECONDS))[0]:
                if not await self._is_heard(node.number) and not answer.done():
                    raise TryAgain("it is not heard of any more")
            return answer.result()
        finally:
            answer.cancel()

    async def _is_heard(self, number: NodeNumber) -> bool:
        """As far as anybody can say: while Redis is away nobody is heard of."""
        try:
            return number in {view.number for view in alive(await self._service.nodes())}
        except DcsError:
            return True

    async def _forget_gone(self, extents: Sequence[ExtentId]) -> set[ExtentId]:
        """Those of them that no file shows any more: rewritten or removed while they waited here."""
        if not extents:
            return set()
        verdicts = await self._service.store.ask("known", extents=extents)
        gone = {extent for extent, verdict in zip(extents, verdicts, strict=True) if verdict != SHOWN}
        for extent in gone:
            self._queue.pop(extent)
            self._idle.pop(extent)
        return gone

    def _refuse(self, copies: Iterable[Copy], seconds: float) -> None:
        """These are not tried again for so long."""
        until = time.monotonic() + seconds
        for copy in copies:
            self.failures += 1
            self._refused[copy.held.extent, copy.to.number] = until

    async def _drop(self, drops: Sequence[Drop]) -> None:
        """Copies that are not wanted any more leave the map, once those that stay were read and found good."""
        if not drops:
            return
        by_node: dict[NodeNumber, tuple[NodeView, list[ExtentId]]] = {}
        for drop in drops:
            for view in drop.kept:
                by_node.setdefault(view.number, (view, []))[1].append(drop.held.extent)
        answers = await asyncio.gather(*(self._verify(view, extents) for view, extents in by_node.values()))
        lengths: dict[NodeNumber, dict[ExtentId, int | None]] = dict(zip(by_node, answers, strict=True))
        moves = []
        for drop in drops:
            extent, is_good = drop.held.extent, True
            for view in drop.kept:
                if extent not in lengths[view.number]:
                    is_good = False  # It could not be asked.
                elif (lengths[view.number][extent] or -1) < drop.held.length:
                    is_good = False
                    await self._report_damage(extent, view.number, "found bad before a surplus copy was dropped")
            if is_good:
                moves.append((drop.held, tuple(n for n in drop.held.nodes if n != drop.node)))
            else:
                self._put(self._idle, self._queue.pop(extent) or drop.held)
        self.drops += len(moves)
        await self._move(moves)

    async def _verify(self, view: NodeView, extents: list[ExtentId]) -> dict[ExtentId, int | None]:
        try:
            within_seconds = ORDER_SECONDS + BYTES_PER_NODE / 1e6
            return await self._while_heard(
                view, self._service.storage.check(view.place, extents, data=True, deadline_seconds=within_seconds)
            )
        except (TryAgain, NodeFailed, AccessDenied) as error:
            log.info("node %d cannot be asked now: %s", view.number, error)
            return {}

    async def _report_damage(self, extent: ExtentId, number: NodeNumber, why: str) -> None:
        log.warning("the copy of %s on node %d is of no use: %s", extent_text(extent), number, why)
        self._damaged.add((extent, number))
        await self._service.store.ask("damage", extent=extent, node=number, why=why[:200].encode())

    async def _move(self, moves: Sequence[tuple[Held, tuple[NodeNumber, ...]]]) -> None:
        """The map says where the extents lie now; what was moved is looked at again."""
        grace_ms = int(self._service.settings.condemned_grace_seconds * 1000)
        for first in range(0, len(moves), MOVES_PER_CALL):
            part = moves[first : first + MOVES_PER_CALL]
            flat = [x for held, after in part for x in (held.extent, pack_nodes(held.nodes), pack_nodes(after))]
            results = await self._service.store.ask("relocate", moves=flat, grace_ms=grace_ms)
            stale = []
            for (held, after), result in zip(part, results, strict=True):
                self._queue.pop(held.extent)
                moved = replace(held, nodes=after)
                if result == MOVED and self._is_lacking(moved):
                    self._put(self._queue, moved)
                elif result == STALE:
                    stale.append(held.extent)
            if stale:
                (rows,) = await self._service.store.ask("whereabouts", extents=stale)
                self.take(held_of(rows))

    # Telling.

    async def _tell(self) -> None:
        survey = self._surveyed
        good_left = Counter(survey.beyond if survey else ())
        under_replicated = good_left.total()
        async for held in unhurried((*self._queue, *self._idle)):
            if self._is_short(held):
                good = self._danger(held)
                good_left[good] += 1
                under_replicated += good < held.target  # Copies on a node that is being emptied are good.
        found: dict[str, Any] = {  # Any: what msgpack takes.
            "under_replicated": under_replicated,
            "missing": good_left.pop(0, 0),
            "by_danger": {str(good): count for good, count in good_left.items()},
            "paused": self._outlook.is_paused,
            "surveying": self._survey is not None,
            "drained": sorted(self._drained),
            "draining": {str(n): survey.on_nodes.get(n, 0) if survey else None for n in sorted(self._draining)},
            "copies": self.copies,
            "copied_bytes": self.copied_bytes,
            "drops": self.drops,
            "failures": self.failures,
        }
        packed: bytes = msgpack.packb(found)
        if packed != self._told:
            await self._service.store.ask("note_survey", found=packed)
            self._told = packed


async def unhurried(many: Iterable[Held]) -> AsyncIterator[Held]:
    """All that are there now. Who asks the naming server meanwhile does not wait until all were looked at."""
    for count, held in enumerate(tuple(many), 1):
        yield held
        if count % LOOKED_AT_ONCE == 0:
            await asyncio.sleep(0)
