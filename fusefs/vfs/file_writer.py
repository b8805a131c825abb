"""The write buffer of one open file.

Collects written bytes, seals them into extents, stores the extents, then commits them to the
metadata - in that order, so that a crash leaves garbage but never a hole. Called by the file
system; knows files and chunks, not the kernel and not the network.

    write ──▶ dirty chunk ──sealed──▶ upload ──stored──▶ commit ──▶ (the chunk map)
               a full one at once       │
               the rest at flush        └─failed──▶ kept, uploaded again by the next flush

Who flushes: fsync, close, `write_back` after a while, and whoever needs room.

One task at a time may flush. Nothing between `_seal` and `_sealed.append` awaits, and commits
take from the front of `_sealed`: so later writes are laid over earlier ones, always.

Writes through O_APPEND descriptors have no offset of their own: they are held as if they went
to the end of the file that this mount knows, and committed to the end that it then has.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from fusefs.chunks.client import StoredExtent
from fusefs.metadata.client import Kept
from fusefs.quick_lock import QuickLock
from fusefs.settings import FLUSH_DEADLINE_SECONDS
from fusefs.vfs.buffer_pool import BufferPool
from fusefs.vfs.dirty_ranges import DirtyChunk
from fusefs.vfs.write_budget import WriteBudget
from servers.protocol.checksum import Buffer
from servers.protocol.errors import DcsError, Refused, Unavailable
from servers.protocol.geometry import Segment, overlay, spans
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber
from servers.protocol.limits import APPENDED_CHUNKS_MAX, CHUNKS_PER_CALL_MAX, FILE_BYTES_MAX, SEGMENTS_PER_COMMIT_MAX
from servers.protocol.naming_api import Attributes, pack_nodes, pack_segments, pack_time
from servers.protocol.storage_api import flat_places

log = logging.getLogger(__name__)

COMMIT_CHUNKS = 64
"""When so many stored extents wait, they are committed in the background."""
RANGES_PER_EXTENT_MAX = 4096
"""A chunk that was written in so many places goes on its way before it is full; small enough for one commit."""
COMMIT_SECONDS_MIN = 1.0
"""However long the uploads took: what is stored already is not given up for the want of one quick answer."""
FLUSHED_AGAIN_SECONDS = 1.0
"""Who has waited out the deadline in fsync(2) does not wait it out again in the close(2) that follows: a program that
was killed meanwhile closes its files before it is gone."""
LATE_SECONDS = 30.0
"""What was sent to the nodes longer ago, and is not committed, only this mount has known of: a node that is drained may
have been called empty since, and be gone. So it is asked for before it is committed. An upload to such a node begins at
most NODES_SECONDS after it is to be drained; with this it is less than `drain_grace_seconds` of the naming servers."""
EFBIG, ESTALE = 27, 116


class Store(Protocol):
    async def __call__(
        self, pieces: list[memoryview], *, inode: InodeNumber, chunk: int, name: bytes, mtime_ns: int, replicas: int,
        sync: bool, chunk_size: int, places: tuple[int, ...],
    ) -> StoredExtent: ...  # fmt: skip


class Commit(Protocol):
    async def __call__(self, deadline: float, kept: Kept, /, **arguments: Any) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class WriterParts:
    """What the writers of a mount share."""

    store: Store
    commit: Commit
    barrier: Callable[[Mapping[NodeNumber, Sequence[ExtentId]], Callable[[set[NodeNumber]], bool], float], Any]
    """Returns those of the nodes that have all they took on stable storage, these extents among it; once they are
    enough, others that hang are not waited for, and none after the deadline."""
    budget: WriteBudget
    uploads: trio.CapacityLimiter
    nursery: trio.Nursery
    now_ns: Callable[[], int]
    min_write_replicas: int
    lost: Callable[[InodeNumber, int], None]
    """Told how many bytes of an inode were given up."""
    buffers: BufferPool = field(default_factory=BufferPool)


class _Sealed:
    """Bytes of a chunk on their way to the nodes, or there and waiting for the commit."""

    __slots__ = ("begun_ns", "chunk", "done", "dropped", "error", "index", "layout", "nodes", "stored", "uploading")

    def __init__(self, chunk: DirtyChunk) -> None:
        self.chunk: DirtyChunk | None = chunk
        self.index = chunk.index
        self.layout = list(chunk.ranges)
        self.begun_ns = 0
        """When its upload began."""
        self.stored: StoredExtent | None = None
        self.nodes: tuple[NodeNumber, ...] = ()
        """Those of its nodes that count: all that took it, or that had it when they were asked last."""
        self.error: DcsError | None = None
        self.uploading = False
        self.dropped = False
        self.done = trio.Event()

    def segments(self, low: float = -math.inf, high: float = math.inf) -> list[Segment]:
        """Those that touch bytes [low, high) of the chunk."""
        assert self.stored is not None  # noqa: S101 - callers have waited for it
        found, at = [], 0
        for start, end in self.layout:
            if start < high and low < end:
                found.append(Segment(start, self.stored.extent, at, end - start, self.nodes))
            at += end - start
        return found


@dataclass(slots=True)
class _Attempt:
    """A commit, with what is to be noted when it is done."""

    batch: list[_Sealed]
    chunks: dict[int, list[Segment]]
    mtime_ns: int
    arguments: dict[str, Any]
    begun_at: float
    """Its answer may be as old."""
    kept: Kept = field(default_factory=Kept)


Layer = DirtyChunk | tuple[int, list[Segment]]
"""Bytes that were written: a buffer, or the segments of a chunk that are stored by now."""


class FileWriter:
    """`committed` is called after each commit of ours: with the attributes, the data version before, what was laid over
    it, and when it was asked for."""

    def __init__(
        self,
        attributes: Attributes,
        name: Callable[[], bytes],
        parts: WriterParts,
        committed: Callable[[bytes, int, dict[int, list[Segment]], float], object],
        moved: Callable[[], None],
    ) -> None:
        self._ino = attributes.ino
        self._chunk_size = attributes.chunk_size
        self._replicas = attributes.replicas
        self._name = name
        self._parts = parts
        self._committed = committed
        self._moved = moved
        self._dirty: dict[int, DirtyChunk] = {}
        self._sealed: list[_Sealed] = []
        self._appending = False
        self._misplaced = False
        """Something appended is held elsewhere than where the kernel believes it wrote it."""
        self._flushing = QuickLock()
        self._committing_in_background = False
        self.end = 0
        """One past the highest byte written and not committed."""
        self.bytes = 0
        """Written and not committed."""
        self.mtime_ns = 0
        """Of the last write that is not committed; 0 when there is none."""
        self.dirty_since = math.inf
        """No write that is not committed was taken before."""
        self._unanswered: _Attempt | None = None
        """The commit that may have been done, or not. Until that is known, nothing of it is committed under another
        number: it would be laid over what others wrote since, and its extents may have been deleted for that."""
        self._in_vain: list[_Sealed] = []
        """What was given up though it is stored, or on its way."""
        self._taken = 0
        """How many writes were taken so far."""
        self._stored = self._synced = 0
        """How many of them, the first, a flush has stored and committed; and that on stable storage."""
        self.failures = 0
        """How many flushes failed so far; every handle is told of each once."""
        self.last_error: DcsError | None = None
        self._is_failing = False
        """The last flush failed."""
        self._timed_out_at = -math.inf
        """When a flush last failed at its deadline."""

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._sealed)

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    # ── writing

    async def write(
        self,
        offset: int,
        data: Buffer,
        *,
        append_at: Callable[[], int] | None = None,
        changed_ns: Callable[[], int] = lambda: 0,
    ) -> int:
        """Takes all of the data; it is not stored yet. `append_at`: to the end, which is there by what this mount
        knows, once all is committed that was written otherwise. `changed_ns`: when the inode was changed last; the
        write is after that. Raises Refused(EFBIG), and Unavailable when the mount is full and stays so."""
        appending = append_at is not None
        await self._parts.budget.wait_for_room(len(data), FLUSH_DEADLINE_SECONDS)
        while self.is_dirty and (appending != self._appending or (appending and self._is_too_long(len(data)))):
            await self.flush(sync=False)
        if append_at is not None:
            held_at = max(append_at(), self.end)
            self._misplaced |= held_at != offset
            offset = held_at
        if offset + len(data) > FILE_BYTES_MAX:
            raise Refused(EFBIG, "write")
        self._appending = appending
        if not self.is_dirty:
            self.dirty_since = trio.current_time()
        self._taken += 1
        view, at = memoryview(data), 0
        for span in spans(offset, len(data), self._chunk_size):
            chunk = self._dirty.get(span.index)
            if chunk is None:
                chunk = self._dirty[span.index] = DirtyChunk(span.index, self._chunk_size, self._parts.buffers)
            length = span.end - span.start
            held = chunk.held_bytes if chunk.bytes else 0
            self.bytes += chunk.write(span.start, view[at : at + length])
            self._parts.budget.hold(chunk.held_bytes - held)
            at += length
            if chunk.bytes == self._chunk_size or len(chunk.ranges) >= RANGES_PER_EXTENT_MAX:
                self._seal(span.index)
        self.end = max(self.end, offset + len(data))
        # This mount knows the volume's time only roughly: never as before what already happened.
        self.mtime_ns = max(self._parts.now_ns(), changed_ns() + 1, self.mtime_ns + 1)
        return len(data)

    def _is_too_long(self, more: int) -> bool:
        """With so many bytes more, what was appended would not go into one commit; and it may not go in several."""
        return self.bytes + more > APPENDED_CHUNKS_MAX * self._chunk_size

    def _seal(self, index: int, *, sync: bool = False) -> None:
        sealed = _Sealed(self._dirty.pop(index))
        self._sealed.append(sealed)
        self._start_upload(sealed, sync=sync)

    def _start_upload(self, sealed: _Sealed, *, sync: bool) -> None:
        sealed.uploading, sealed.error, sealed.done = True, None, trio.Event()
        sealed.begun_ns = self._parts.now_ns()
        self._parts.nursery.start_soon(self._upload, sealed, sync)

    async def _upload(self, sealed: _Sealed, sync: bool) -> None:
        """Stores the sealed bytes, or notes why not; whoever flushes looks at it."""
        chunk = sealed.chunk
        if chunk is None:
            return
        try:
            async with self._parts.uploads:
                stored = await self._parts.store(
                    chunk.pieces(), inode=self._ino, chunk=sealed.index, name=self._name(), mtime_ns=self.mtime_ns,
                    replicas=self._replicas, sync=sync, chunk_size=self._chunk_size,
                    places=() if self._appending else flat_places(sealed.layout),
                )  # fmt: skip
            sealed.stored, sealed.nodes = stored, stored.nodes
        except DcsError as error:
            sealed.error = error
        finally:
            sealed.uploading = False
            if sealed.stored is not None or sealed.dropped:
                self._let_go(sealed)
            sealed.done.set()
        if self._stored_in_front() >= COMMIT_CHUNKS and not self._committing_in_background:
            self._committing_in_background = True
            self._parts.nursery.start_soon(self._commit_in_background)

    def _stored_in_front(self) -> int:
        count = 0
        for sealed in self._sealed:
            if sealed.stored is None:
                break
            count += 1
        return count

    async def _commit_in_background(self) -> None:
        try:
            if self._appending:
                await self.flush(sync=False)  # Whole writes only: what is still dirty belongs to it.
                return
            async with self._flushing:
                deadline = trio.current_time() + FLUSH_DEADLINE_SECONDS
                await self._learn_fate(deadline)
                batch = self._sealed[: self._stored_in_front()]
                await self._confirm(batch, deadline, sync=False)
                await self._commit(len(batch), deadline, synced=False)
        except DcsError as error:
            log.info("inode %d: a commit in the background failed, the next flush tries again: %s", self._ino, error)
        finally:
            self._committing_in_background = False

    # ── storing

    async def flush(self, *, sync: bool, unasked: bool = False) -> None:
        """All that was written before is stored and committed; with `sync`, on stable storage.

        Raises what went wrong; what was not stored stays, and the next flush tries again. Who had to wait for another
        flush, and finds that it has taken these writes along, does not wait for what others wrote meanwhile. `unasked`:
        no program waits for it, so that it fails once, however often it fails, until a flush succeeds.
        """
        now, taken = trio.current_time(), self._taken
        seconds = FLUSHED_AGAIN_SECONDS if now - self._timed_out_at < FLUSHED_AGAIN_SECONDS else FLUSH_DEADLINE_SECONDS
        deadline = now + seconds
        with trio.move_on_at(deadline) as waiting:
            await self._flushing.acquire()
        if waiting.cancelled_caught:
            raise Unavailable(f"an earlier flush goes on for more than {seconds:g} s")
        failures = self.failures
        try:
            if self.is_dirty and taken > (self._synced if sync else self._stored):
                await self._flush(sync, deadline)
        except DcsError as error:
            self._failed(error, unasked)
            raise
        finally:
            self._flushing.release()
        if self.failures != failures and self.last_error is not None:
            raise self.last_error  # It was given up meanwhile.

    def _failed(self, error: DcsError, unasked: bool) -> None:
        is_lost = isinstance(error, Refused) and error.errno == ESTALE
        if is_lost or not (unasked and self._is_failing):
            self.failures += 1
            self.last_error = error
        self._is_failing = not is_lost
        if is_lost:
            # Others changed the content while this mount's session was over, or what it had stored was collected:
            # it can never be committed. Nor may the kernel go on showing it.
            log.error("inode %d: written data is refused: %s", self._ino, error)
            self._parts.lost(self._ino, self.bytes)
            self._drop_all()
            self._moved()
            return
        if isinstance(error, Unavailable) and not unasked:
            self._timed_out_at = trio.current_time()
        log.error("inode %d: written data could not be stored yet: %s", self._ino, error)

    async def _flush(self, sync: bool, deadline: float) -> None:
        if sync and self._unanswered is not None and not self._unanswered.arguments["synced"]:
            # Once it is known to be committed nobody asks for these extents any more.
            await self._confirm(self._unanswered.batch, deadline, sync=True)
        await self._learn_fate(deadline)
        taken, began = self._taken, trio.current_time()
        for index in sorted(self._dirty):
            self._seal(index, sync=sync)
        batch = list(self._sealed)
        for sealed in batch:
            if sealed.stored is None and not sealed.uploading:
                self._start_upload(sealed, sync=sync)
        with trio.move_on_at(deadline):
            for sealed in batch:
                await sealed.done.wait()
        for sealed in batch:
            if sealed.error is not None:
                raise sealed.error
        if any(sealed.uploading for sealed in batch):  # It goes on: the next flush may find it done.
            raise Unavailable("the storage nodes did not take all that was written in time")
        await self._confirm(batch, deadline, sync=sync)
        await self._commit(len(batch), deadline, synced=sync)
        self._is_failing = False
        self.dirty_since = began if self.is_dirty else math.inf
        self._stored = taken
        if sync:
            self._synced = taken

    async def _confirm(self, batch: list[_Sealed], deadline: float, *, sync: bool) -> None:
        """The nodes have what comes late, and with `sync` have on stable storage what was stored without. A node that
        does not say so, because it lost power, is gone or hangs, is no replica of it. Raises Unavailable when too few
        are left, or without `sync` none."""
        late_ns = self._parts.now_ns() - int(LATE_SECONDS * 1e9)
        waiting = [
            (sealed, sealed.stored) for sealed in batch
            if sealed.stored is not None and (sealed.begun_ns < late_ns or (sync and not sealed.stored.synced))
        ]  # fmt: skip
        unsynced = [stored for _, stored in waiting]
        if not unsynced:
            return
        wanted = min(self._replicas, self._parts.min_write_replicas)

        def enough(confirmed: set[NodeNumber], needed: int = wanted) -> bool:
            return all(len(confirmed.intersection(s.nodes)) >= min(needed, len(s.nodes)) for s in unsynced)

        extents: dict[NodeNumber, list[ExtentId]] = {}
        for stored in unsynced:
            for node in stored.nodes:
                extents.setdefault(node, []).append(stored.extent)
        deadline = max(deadline, trio.current_time() + COMMIT_SECONDS_MIN)
        confirmed = await self._parts.barrier(extents, enough, deadline)
        if not enough(confirmed, wanted if sync else 1):
            raise Unavailable("too few storage nodes have the data, or could bring it to stable storage")
        for sealed, stored in waiting:
            sealed.nodes = tuple(node for node in stored.nodes if node in confirmed)

    async def _commit(self, count: int, deadline: float, *, synced: bool) -> None:
        """Commits the first `count` sealed extents, all in one step as far as one call may go."""
        while count > 0 and self._sealed:  # What was dropped meanwhile needs no commit.
            step = self._fitting(count) if not self._appending else count
            await self._carry_out(self._attempt(self._sealed[:step], synced=synced), deadline)
            count -= step

    def _fitting(self, count: int) -> int:
        """How many of the first `count` sealed extents one call may commit: at least one."""
        step, segments = 0, 0
        for sealed in itertools.islice(self._sealed, min(count, CHUNKS_PER_CALL_MAX)):
            segments += 2 * len(sealed.layout)  # Laid over each other, they may cut each other in two.
            if step and segments > SEGMENTS_PER_COMMIT_MAX:
                break
            step += 1
        return step

    def _attempt(self, batch: list[_Sealed], *, synced: bool) -> _Attempt:
        end = max(s.index * self._chunk_size + s.layout[-1][1] for s in batch)
        arguments: dict[str, Any] = {
            "ino": self._ino, "mtime": pack_time(self.mtime_ns), "synced": synced,
            "begun": min(s.begun_ns for s in batch) // 1_000_000,
        }  # fmt: skip
        chunks: dict[int, list[Segment]] = {}
        if self._appending:
            # In the order in which it was written: full chunks were sealed before the part of a chunk ahead of them.
            batch = sorted(batch, key=lambda s: (s.index, s.layout))
            arguments |= {"chunks": [], "end": 0, "append": _appended(batch)}
        else:
            for sealed in batch:
                chunks.setdefault(sealed.index, []).extend(sealed.segments())
            for index, segments in chunks.items():
                chunks[index] = overlay(segments) if _overlaps(segments) else segments
            flat = [part for index, s in sorted(chunks.items()) for part in (index, pack_segments(s))]
            arguments |= {"chunks": flat, "end": end, "unused": _unused(batch, chunks)}
        return _Attempt(batch, chunks, self.mtime_ns, arguments, trio.current_time())

    @property
    def is_unanswered(self) -> bool:
        """Whether a commit was sent of which nobody knows whether it was done."""
        return self._unanswered is not None

    async def _learn_fate(self, deadline: float) -> None:
        if self._unanswered is not None:
            await self._carry_out(self._unanswered, deadline)

    async def _carry_out(self, attempt: _Attempt, deadline: float) -> None:
        batch = attempt.batch
        deadline = max(deadline, trio.current_time() + COMMIT_SECONDS_MIN)
        try:
            blob, offset, before = await self._parts.commit(deadline, attempt.kept, **attempt.arguments)
        finally:
            if batch[0].dropped:
                attempt.kept.withdraw()
            self._unanswered = attempt if attempt.kept.is_open else None
        kept = [sealed for sealed in batch if not sealed.dropped]
        del self._sealed[: len(kept)]
        self.bytes -= sum(stop - start for sealed in kept for start, stop in sealed.layout)
        if self._appending:
            self._committed(blob, -1, {}, attempt.begun_at)
            if self._misplaced or not self._are_held_at(batch, offset):
                self._misplaced = False
                self._moved()
        else:
            self._committed(blob, before, attempt.chunks, attempt.begun_at)
        if not self.is_dirty:
            self.end = 0
            if self.mtime_ns == attempt.mtime_ns:
                self.mtime_ns = 0

    def _are_held_at(self, batch: list[_Sealed], offset: int) -> bool:
        """Whether what was appended lies where this mount held it all the while."""
        for sealed in batch:
            for start, end in sealed.layout:
                if sealed.index * self._chunk_size + start != offset:
                    return False
                offset += end - start
        return True

    # ── looking

    def uncommitted(self, offset: int, end: int) -> tuple[dict[int, list[Segment]], list[Layer]]:
        """What is not committed of bytes [offset, end) of the file: what is stored, chunk by chunk, the later ones
        later; and what lies over that, the later ones later. An upload may be done before that of an older one."""
        stored: dict[int, list[Segment]] = {}
        above: list[Layer] = []
        waited_for: set[int] = set()
        first, last = offset // self._chunk_size, (end - 1) // self._chunk_size
        for sealed in self._sealed:
            if not first <= sealed.index <= last:
                continue
            base = sealed.index * self._chunk_size
            if sealed.chunk is not None:
                waited_for.add(sealed.index)
                above.append(sealed.chunk)
            elif sealed.index in waited_for:
                above.append((sealed.index, sealed.segments(offset - base, end - base)))
            else:
                stored.setdefault(sealed.index, []).extend(sealed.segments(offset - base, end - base))
        return stored, above + [chunk for index, chunk in self._dirty.items() if first <= index <= last]

    def touches(self, first: int, last: int) -> bool:
        """Whether anything of chunks first..last waits here."""
        return any(first <= index <= last for index in self._dirty) or any(
            first <= sealed.index <= last for sealed in self._sealed
        )

    def rests_on(self, nodes: Collection[NodeNumber]) -> bool:
        """Whether something lies on one of the nodes that the metadata does not know of."""
        return any(s.stored is not None and any(node in nodes for node in s.stored.nodes) for s in self._sealed)

    # ── giving up

    def discard(self) -> None:
        """Nobody can ever read what is written: it need not be stored."""
        self._drop_all()

    def give_up(self) -> None:
        """What is written is lost. Whoever flushes it now is told, and every handle, once."""
        self._parts.lost(self._ino, self.bytes)
        self._drop_all()
        self.failures += 1
        self.last_error = Unavailable("written data could not be stored, and is given up")
        self._moved()  # Nor may the kernel go on showing it.

    @property
    def has_stored_in_vain(self) -> bool:
        return bool(self._in_vain)

    async def stored_in_vain(self) -> list[ExtentId | bytes]:
        """The extents, each with its nodes, that were stored for what was given up; those on their way are waited for.
        Whoever asks has them: nobody is told twice."""
        given_up, self._in_vain = self._in_vain, []
        for sealed in given_up:
            await sealed.done.wait()
        stored = [sealed.stored for sealed in given_up if sealed.stored is not None]
        return [part for one in stored for part in (one.extent, pack_nodes(one.nodes))]

    def _drop_all(self) -> None:
        for chunk in self._dirty.values():
            self._parts.budget.free(chunk.held_bytes)
            chunk.free()
        self._dirty.clear()
        for sealed in self._sealed:
            sealed.dropped = True
            if not sealed.uploading:
                self._let_go(sealed)
        self._in_vain += [sealed for sealed in self._sealed if sealed.uploading or sealed.stored is not None]
        self._sealed.clear()
        if self._unanswered is not None:
            self._unanswered.kept.withdraw()
            self._unanswered = None
        self.end = self.mtime_ns = self.bytes = 0
        self.dirty_since = math.inf

    def _let_go(self, sealed: _Sealed) -> None:
        """Gives the buffer's memory back."""
        if sealed.chunk is not None:
            self._parts.budget.free(sealed.chunk.held_bytes)
            sealed.chunk.free()
            sealed.chunk = None


def _appended(batch: list[_Sealed]) -> list[int | bytes]:
    flat: list[int | bytes] = []
    for sealed in batch:
        # One extent, whole: where others appended meanwhile it was held in several ranges, which lie end to end in it.
        segments = sealed.segments()
        flat += (segments[0].extent, sum(segment.length for segment in segments), pack_nodes(segments[0].nodes))
    return flat


def _overlaps(segments: list[Segment]) -> bool:
    return any(a.end > b.offset for a, b in itertools.pairwise(segments))


def _unused(batch: list[_Sealed], chunks: dict[int, list[Segment]]) -> list[ExtentId | bytes]:
    """Extents that later ones of the same commit cover whole: nobody will ever show them."""
    shown = {segment.extent for segments in chunks.values() for segment in segments}
    unused: list[ExtentId | bytes] = []
    for sealed in batch:
        if sealed.stored is not None and sealed.stored.extent not in shown:
            unused += (sealed.stored.extent, pack_nodes(sealed.stored.nodes))
    return unused
