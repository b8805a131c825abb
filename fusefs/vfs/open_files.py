"""The files that are open in this mount: their handles, and what is read from and written to them.

Called by the file system, which knows names; here inodes have none. An inode lives here from its
first open to its last release, and longer while it holds data that could not be stored. What is
not committed is laid over what the metadata says, so `getattr` is here too.

Between two awaits a verb is alone. Every verb raises only what `servers.protocol.errors` has.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio

from fusefs.chunks.cache import BlockCache
from fusefs.chunks.client import ExtentClient, StoredExtent
from fusefs.chunks.replicas import Replicas
from fusefs.metadata.client import Kept, MetadataClient
from fusefs.metadata.session import Session
from fusefs.settings import FLUSH_DEADLINE_SECONDS, MountSettings
from fusefs.vfs.access_times import AccessTimes
from fusefs.vfs.attribute_cache import AttributeCache
from fusefs.vfs.chunk_map import ChunkMap
from fusefs.vfs.file_reader import FileReader
from fusefs.vfs.file_writer import COMMIT_SECONDS_MIN, FileWriter, WriterParts
from fusefs.vfs.handles import FileHandle, HandleTable
from fusefs.vfs.inodes import OpenInode
from fusefs.vfs.write_back import WriteBack
from fusefs.vfs.write_budget import WriteBudget
from servers.protocol.checksum import Buffer
from servers.protocol.errors import DcsError, Refused, SessionLost, TryAgain, Unavailable
from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, InodeNumber, NodeNumber
from servers.protocol.limits import KIB
from servers.protocol.naming_api import Attributes, unpack_attributes

log = logging.getLogger(__name__)

NODE_SYNC_SECONDS = 60.0
"""A storage node syncs all it has by itself within 5 s, or as soon as a slow disk can: then no barrier is needed."""
NODES_PAUSE_SECONDS = 0.5
"""Between two looks at the table of nodes while too few of them are known to live."""
LOOK_AGAIN_SECONDS = 1.0
REGISTER_SECONDS = 0.5
REGISTER_MAX = 1024
TRIM_SECONDS = 10.0
REMEMBERED_BYTES_MAX = 64 * KIB
RETRY_FAILED_SECONDS = 2.0
KEEP_FAILED_SECONDS = 600.0
"""How long data that could not be stored is tried again after the last close."""
LAST_MOMENT_SECONDS = 2.0
UNUSED_MAX = 1024
"""Extents that are condemned in one operation."""
VERSIONS_MAX = 100_000
SET_IDS = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Shown:
    """Attributes, and for how many seconds they may be believed."""

    attributes: Attributes
    seconds: float
    entry_seconds: float = 0.0


class Opened(NamedTuple):
    handle: int
    keeps_pages: bool
    """Whether the kernel's pages of the file are still good."""
    direct: bool
    """Whether what is read and written is to come past them."""


def _appends(flags: int) -> bool:
    """Then each write(2) is to come as one request, past the kernel's pages: through them one that crosses a page comes
    as two, and another mount's may land between them. And the kernel would store the pages of a shared mapping
    through this handle, where nobody can tell them from what is appended; so it refuses such a mapping."""
    return bool(flags & os.O_APPEND) and flags & os.O_ACCMODE != os.O_RDONLY


class OpenFiles:
    def __init__(
        self,
        settings: MountSettings,
        nursery: trio.Nursery,
        metadata: MetadataClient,
        session: Session,
        extents: ExtentClient,
        replicas: Replicas,
        cache: AttributeCache,
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._metadata = metadata
        self._session = session
        self._replicas = replicas
        self._extents = extents
        self._cache = cache
        self._accesses = AccessTimes(
            session.ask, session.now_ns, seconds=settings.attribute_seconds,
            kept=not (settings.noatime or settings.read_only),
        )  # fmt: skip
        self._blocks = BlockCache(extents.fetch, cached_bytes_max=settings.cache_bytes_max)
        self._budget = WriteBudget(settings.dirty_bytes_max, self._relieve)
        self._open: dict[InodeNumber, OpenInode] = {}
        self._files: HandleTable[FileHandle] = HandleTable()
        self._versions: dict[InodeNumber, int] = {}
        """The data version that the kernel's pages of an inode belong to."""
        self._told: dict[InodeNumber, int] = {}
        """The data version that the attributes belong to which the kernel was last told."""
        self._relieving = False
        self._ends_at = math.inf
        self._registered: set[InodeNumber] = set()
        """What the metadata knows to be open here."""
        self._registering = trio.Lock()
        self.lost_bytes = 0
        """Data that was given up: what the mount's exit status tells."""
        self.on_moved: Any = None
        """Called with an inode whose pages in the kernel are not right any more."""
        self.on_stale_attributes: Any = None
        """Called with an inode whose attributes in the kernel are not right any more; returns at once."""
        self._parts = WriterParts(
            self._store, self._commit, self._barrier, self._budget, trio.CapacityLimiter(settings.uploads_max),
            nursery, session.now_ns, settings.min_write_replicas, self._lost,
        )  # fmt: skip

        self._write_back = WriteBack(self._open.values, replicas.draining, settings.write_back_seconds)

    def statistics(self) -> dict[str, int]:
        return {
            "open_inodes": len(self._open), "handles": len(self._files), "dirty_bytes": self._budget.held_bytes,
            "lost_bytes": self.lost_bytes, "sessions_lost": self._session.sessions_lost,
            **self._blocks.statistics(), **self._extents.statistics(), **self._write_back.statistics(),
        }  # fmt: skip

    # ── what is known of inodes

    async def getattr(self, ino: InodeNumber) -> Shown:
        held = self._cache.attributes(ino, trio.current_time())
        if held is not None:
            return self.shown(held[0], held[1])
        asked_at = trio.current_time()
        (blob,) = await self._session.ask("getattr", ino=ino)
        return self.shown(self._cache.put(ino, blob, asked_at), self._cache.left(asked_at, trio.current_time()))

    def shown(
        self, attributes: Attributes, seconds: float, entry_seconds: float = 0.0, *, is_cut: bool = False
    ) -> Shown:
        """`is_cut`: this mount has set the size just now."""
        self._session.saw(attributes.ctime_ns)
        if seconds > 0 and attributes.is_file:
            self._note_version(self._told, attributes.ino, attributes.data_version)
        inode = self._open.get(attributes.ino)
        if inode is not None:
            size = inode.attributes.size
            inode.learn(attributes)
            now = inode.attributes
            if now.data_version > inode.map.version:
                inode.map.forget(now.data_version, now.size)
                # Size and times, by which the kernel would know, may be the same: a writer commits what it wrote at one
                # time in several steps. That it was only compacted nobody can tell from that. What we cut to another
                # size it has dropped by itself.
                if not is_cut or now.size == size:
                    self._pages_moved(now.ino)
            attributes = inode.shown()
        return Shown(self._accesses.shown(attributes), seconds, entry_seconds)

    def was_read(self, known: Attributes) -> None:
        self._accesses.read(known.ino, known.atime_ns, max(known.mtime_ns, known.ctime_ns))

    def has_no_xattrs(self, ino: InodeNumber) -> bool:
        """As far as was known when the file was opened."""
        inode = self._open.get(ino)
        return inode is not None and inode.attributes.xattrs == 0

    async def forget_access(self, ino: InodeNumber) -> None:
        """Its time of access is about to be set."""
        await self._accesses.forget(ino)

    # ── who has what open

    async def keep_registered(self) -> None:
        """Tells the metadata, shortly after, what is open here, so that it lives on when it is unlinked.

        Until cancelled. A file that is closed again by then costs nothing. What is unlinked in
        the meantime is safe by its grace, which is longer.
        """
        while True:
            await trio.sleep(REGISTER_SECONDS)
            try:
                await self._register()
            except DcsError as error:
                log.info("the metadata was not told what is open: %s", error)

    def register_anew(self) -> None:
        """A new session: what is open is told to it, as soon as what is newly open would be."""
        self._registered.clear()

    async def _register(self) -> None:
        async with self._registering:
            now_open = set(self._open)
            opened, released = sorted(now_open - self._registered), sorted(self._registered - now_open)
            for at in range(0, max(len(opened), len(released)), REGISTER_MAX):
                some_opened, some_released = opened[at : at + REGISTER_MAX], released[at : at + REGISTER_MAX]
                (gone,) = await self._session.ask("opens", opened=some_opened, released=some_released)
                self._registered.update(some_opened)
                self._registered.difference_update(some_released)
                for ino in gone:
                    log.warning("inode %d, open here, is gone", ino)

    async def register_before_unlink(self, parent: InodeNumber, name: bytes, *, is_kept: bool) -> None:
        """What is open here and about to lose a name by us needs no grace. And what is closed again, and `is_kept` in
        the trash if nobody has it open, is not taken for open any more."""
        found = self._cache.entry(parent, name, trio.current_time())
        if found is None:
            return
        is_open = found[0] in self._open
        if is_open != (found[0] in self._registered) and (is_open or is_kept):
            await self._register()

    async def keep_access_times_told(self) -> None:
        """Tells the metadata what was read. Until cancelled."""
        await self._accesses.keep_told()

    # ── opening

    def open(self, attributes: Attributes, version: int, rows: list[Any], flags: int) -> Opened:
        """`rows` begin its chunk map: of this data version, which the attributes, the newest that are known, may be
        ahead of by what was committed meanwhile."""
        ino = attributes.ino
        self._session.saw(attributes.ctime_ns)
        inode = self._open.get(ino)
        if inode is None:
            inode = self._open[ino] = self._new_inode(attributes)
        inode.learn(attributes)
        inode.handles += 1
        newest = inode.attributes
        if version == newest.data_version >= inode.map.version:
            inode.map.begin(version, newest.size, rows)
        elif newest.data_version > inode.map.version:
            inode.map.forget(newest.data_version, newest.size)
        keep = self._versions.get(ino) == attributes.data_version
        self._note_version(self._versions, ino, attributes.data_version)
        if self._told.get(ino) != attributes.data_version:
            self.tell_stale(ino)  # The kernel may still believe an older size, and would end this handle's reads there.
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        if keep and reads and self._accesses.is_due(ino, attributes.atime_ns, inode.changed_ns):
            # What the kernel has it reads without us. A small file is read from us once more; of others and of
            # empty ones the open counts as the read.
            if 0 < inode.size <= REMEMBERED_BYTES_MAX:
                keep = False
            else:
                self._accesses.read(ino, attributes.atime_ns, inode.changed_ns)
        handle = FileHandle(
            inode, append=bool(flags & os.O_APPEND), sync=bool(flags & os.O_DSYNC),
            writes=flags & os.O_ACCMODE != os.O_RDONLY, noatime=bool(flags & os.O_NOATIME),
            direct=_appends(flags) and not attributes.mode & SET_IDS, failures_told=inode.writer.failures,
        )  # fmt: skip
        return Opened(self._files.add(handle), keep, handle.direct)

    def tell_stale(self, ino: InodeNumber) -> None:
        """The kernel's attributes of it are not right any more."""
        if self.on_stale_attributes is not None:
            self.on_stale_attributes(ino)

    def written_directly(self, handle: int) -> OpenInode | None:
        """The handle's file, when the kernel's pages do not see what is written."""
        file = self._files[handle]
        return file.inode if file.direct else None

    def may_give_capability(self, ino: InodeNumber) -> None:
        """One of its extended attributes was set."""
        inode = self._open.get(ino)
        if inode is not None:
            inode.plain_xattrs = 0

    def _note_version(self, table: dict[InodeNumber, int], ino: InodeNumber, version: int) -> None:
        table[ino] = version
        if len(table) > VERSIONS_MAX:
            del table[next(iter(table))]

    def _new_inode(self, attributes: Attributes) -> OpenInode:
        ino = attributes.ino
        chunks = ChunkMap(ino, self._metadata)

        def committed(blob: bytes, before: int, laid: dict[int, list[Segment]], asked_at: float) -> None:
            ours = unpack_attributes(ino, blob)
            inode.learn(self._cache.newest(ours, asked_at))
            newest = inode.attributes
            self._session.saw(newest.ctime_ns)
            inode.written_over = ours.data_version
            chunks.committed(before, ours.data_version, ours.size, laid)
            for table in (self._versions, self._told):
                if table.get(ino) == before:
                    self._note_version(table, ino, ours.data_version)
            if newest.data_version > ours.data_version:
                # Somebody has changed it after us, and we know that already: what was shown until now, with ours above
                # theirs, is no version of it.
                if newest.data_version > chunks.version:
                    chunks.forget(newest.data_version, newest.size)
                moved()

        def moved() -> None:
            self._pages_moved(ino)

        writer = FileWriter(attributes, lambda: self._cache.name_of(ino), self._parts, committed, moved)
        reader = FileReader(attributes.chunk_size, chunks, self._blocks, writer)
        inode = OpenInode(attributes, chunks, reader, writer)
        return inode

    def _pages_moved(self, ino: InodeNumber) -> None:
        """What the kernel has of the inode's content is not right any more."""
        self._versions.pop(ino, None)
        if self.on_moved is not None:
            self.on_moved(ino)

    # ── reading and writing

    async def read(self, handle: int, offset: int, size: int) -> Buffer:
        file = self._files[handle]
        inode = file.inode
        if not inode.writer.is_dirty:
            if offset + size > inode.size:
                await self.getattr(inode.ino)  # Others may have made it longer.
            elif file.direct:
                await self._look_again(inode.ino)
        if not file.noatime:
            self._accesses.read(inode.ino, inode.attributes.atime_ns, inode.changed_ns)
        return await inode.reader.read(offset, size, inode.size, file.pattern, self._nursery)

    async def _look_again(self, ino: InodeNumber) -> None:
        """What others have changed is known, unless the naming server is away: the kernel does not ask here."""
        with trio.move_on_after(LOOK_AGAIN_SECONDS), contextlib.suppress(TryAgain, Unavailable):
            await self.getattr(ino)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        file = self._files[handle]
        inode = file.inode
        append_at = (lambda: inode.attributes.size) if file.append else None
        if not inode.writer.is_dirty:
            inode.written_in, inode.written_over = self._metadata.session, inode.attributes.data_version
        written = await inode.writer.write(
            offset, data, append_at=append_at, changed_ns=lambda: inode.attributes.ctime_ns
        )
        if file.sync:
            await self.fsync(handle)
        return written

    async def flush(self, handle: int) -> None:
        """At each close(2): all is on the nodes and committed. Raises what went wrong, to every handle once."""
        file = self._files[handle]
        if not file.writes:
            return
        if self._settings.sync_on_close:
            await self.fsync(handle)
            return
        if file.inode.attributes.nlink == 0 and file.inode.handles == 1:
            return  # Nobody can read it after this close: `release` lets it go.
        await self._flush(file, sync=False)

    async def fsync(self, handle: int) -> None:
        """All of the file is on stable storage, also what others stored without."""
        file = self._files[handle]
        inode = file.inode
        deadline = trio.current_time() + FLUSH_DEADLINE_SECONDS
        await self._flush(file, sync=True)
        if inode.attributes.unsynced_s * 1_000_000_000 + NODE_SYNC_SECONDS * 1e9 > self._session.now_ns():
            await self._sync_everywhere(max(deadline, trio.current_time() + COMMIT_SECONDS_MIN))

    async def _flush(self, file: FileHandle, *, sync: bool) -> None:
        writer = file.inode.writer
        try:
            await writer.flush(sync=sync)
        except DcsError:
            file.failures_told = writer.failures
            raise
        if file.failures_told != writer.failures:
            file.failures_told = writer.failures
            if writer.last_error is not None:
                raise writer.last_error

    async def _sync_everywhere(self, deadline: float) -> None:
        """Every node that is alive has all it took on stable storage; as many may fail as a write may do without.

        Those that were not heard of late are asked too where too few were: nobody can be heard while the naming server
        or Redis is away, and for a moment after that all seem to be silent, or dead.
        """
        replicas = self._session.facts.replicas
        least = min(self._settings.min_write_replicas, replicas)
        confirmed: set[NodeNumber] = set()
        while True:
            nodes = self._replicas.nodes()
            asked = [node.number for node in nodes if node.state == "alive"]
            if len(asked) < least:
                asked = [node.number for node in nodes if node.state != "dead"]
            needed = max(1, min(least, len(asked)), len(asked) - (replicas - least))

            def enough(others: set[NodeNumber], lacking: int = needed - len(confirmed)) -> bool:
                return len(others) >= lacking

            left = dict.fromkeys((number for number in asked if number not in confirmed), ())
            confirmed |= await self._barrier(left, enough, deadline)
            if len(confirmed) >= needed:
                return
            if len(asked) == len(nodes) or trio.current_time() + NODES_PAUSE_SECONDS > deadline:
                raise Unavailable("too few storage nodes could bring the data to stable storage")
            await trio.sleep(NODES_PAUSE_SECONDS)

    async def _barrier(
        self,
        extents: Mapping[NodeNumber, Sequence[ExtentId]],
        enough: Callable[[set[NodeNumber]], bool],
        deadline: float,
    ) -> set[NodeNumber]:
        return await self._extents.barrier(list(extents), extents=extents, enough=enough, deadline=deadline)

    async def release(self, handle: int) -> None:
        """The last close: nobody waits for it. What could not be stored is tried again for a while."""
        file = self._files.pop(handle)
        inode = file.inode
        inode.handles -= 1
        if file.writes:
            inode.kept_until = trio.current_time() + KEEP_FAILED_SECONDS
        if inode.handles:
            return
        if inode.attributes.nlink == 0:
            inode.writer.discard()
        if not inode.writer.is_dirty:
            self._end(inode)
        elif not inode.is_stored_later:
            inode.is_stored_later = True
            self._nursery.start_soon(self._store_later, inode)

    async def _store_later(self, inode: OpenInode) -> None:
        while inode.writer.is_dirty and not inode.handles and trio.current_time() < inode.kept_until:
            try:
                await inode.writer.flush(sync=False)
            except DcsError as error:
                log.debug("inode %d: %s", inode.ino, error)
                await trio.sleep(RETRY_FAILED_SECONDS)
                if await self._is_gone(inode.ino) and not inode.handles:
                    inode.writer.discard()
        inode.is_stored_later = False
        if not inode.handles:
            self._give_up(inode)
            self._end(inode)

    async def _is_gone(self, ino: InodeNumber) -> bool:
        """The file has no name any more. Where nobody can say, it may have one."""
        try:
            return (await self.getattr(ino)).attributes.nlink == 0
        except Refused:
            return True
        except DcsError:
            return False

    def _give_up(self, inode: OpenInode) -> None:
        if inode.writer.is_dirty:
            inode.writer.give_up()

    def _lost(self, ino: InodeNumber, count: int) -> None:
        self.lost_bytes += count
        log.error("inode %d (%r): %d written bytes are lost", ino, self._cache.name_of(ino), count)

    def _end(self, inode: OpenInode) -> None:
        """Nothing is left to be stored, and nobody has it open."""
        if inode.attributes.nlink == 0 and inode.writer.has_stored_in_vain:
            self._nursery.start_soon(self._condemn, inode)
        else:
            self._forget(inode)

    async def _condemn(self, inode: OpenInode) -> None:
        """Gives back the space of what was stored before it was given up, while the metadata still knows the inode.
        Otherwise it would count as on its way for as long as this mount lives."""
        try:
            unused = await inode.writer.stored_in_vain()
            for at in range(0, len(unused), 2 * UNUSED_MAX):
                some = unused[at : at + 2 * UNUSED_MAX]
                await self._session.ask("commit", ino=inode.ino, chunks=[], end=0, synced=True, unused=some)
        except DcsError as error:
            log.info("inode %d: what was stored in vain is found when this mount has ended: %s", inode.ino, error)
        self._forget(inode)

    def _forget(self, inode: OpenInode) -> None:
        if self._open.get(inode.ino) is inode and not inode.handles:
            del self._open[inode.ino]

    # ── storing

    async def stored(self, ino: InodeNumber) -> None:
        """What was written to the inode is committed. So a change after a write has the later time, whatever this
        mount believes the volume's time to be."""
        inode = self._open.get(ino)
        if inode is not None and inode.writer.is_dirty:
            await inode.writer.flush(sync=False)

    def are_clean(self) -> bool:
        """Whether all that was written to any file is committed."""
        return not any(inode.writer.is_dirty for inode in self._open.values())

    async def _store(self, pieces: list[memoryview], **what: Any) -> StoredExtent:
        """As `ExtentClient.store`. What is small is likely to be read again soon: the kernel drops a page's
        neighbours with every change, and databases look at what they wrote."""
        stored = await self._extents.store(pieces, **what)
        if stored.length <= REMEMBERED_BYTES_MAX:
            self._blocks.put(stored.extent, b"".join(pieces))
        return stored

    async def _commit(self, deadline: float, kept: Kept, /, **arguments: Any) -> list[Any]:
        """What was written in a session that is over is committed only if nobody changed the content since: while
        this mount was away, others had every right to believe that it is gone. Raises Refused(ESTALE) then. A commit
        that was sent before and is `kept` is asked for again, while its session lives."""
        inode = self._open[arguments["ino"]]
        for _ in range(2):
            session = kept.session if kept.is_open else self._metadata.session
            fence = {} if session == inode.written_in else {"version": inode.written_over}
            try:
                left = deadline - trio.current_time()
                if kept.is_open:
                    reply = await self._metadata.ask_again(kept, left)
                else:
                    reply = await self._metadata.ask_in(session, left, "commit", kept=kept, **arguments, **fence)
            except SessionLost:
                await self._session.renew_lost(session)
            else:
                inode.written_in = session  # And over what comes of it, which `committed` notes without an await.
                return reply
        raise Unavailable("commit: the session was lost twice")

    async def keep_written_back(self) -> None:
        """What is written to a file that stays open is stored and committed after a while. Until cancelled."""
        await self._write_back.keep()

    async def keep_trimmed(self) -> None:
        """Gives memory back that was only needed while much was written. Until cancelled."""
        while True:
            await trio.sleep(TRIM_SECONDS)
            self._parts.buffers.trim()

    # ── all together

    def _relieve(self) -> None:
        """The budget is used up: stores what the files hold that were not written to for longest."""
        if not self._relieving:
            self._relieving = True
            self._nursery.start_soon(self._flush_some)

    async def _flush_some(self) -> None:
        try:
            for inode in sorted(self._open.values(), key=lambda i: i.writer.mtime_ns):
                try:
                    if inode.writer.is_dirty:
                        await inode.writer.flush(sync=False)
                except DcsError as error:  # Others may have better luck.
                    log.warning("inode %d: cannot make room for written data: %s", inode.ino, error)
        finally:
            self._relieving = False

    async def flush_all(self) -> None:
        """Before the mount ends: everything is stored and committed, or counted in `lost_bytes`. Once by the deadline;
        what was written meanwhile has a moment more when this is called again."""
        now, left = trio.current_time(), {inode.ino: inode for inode in self._open.values()}
        self._ends_at = min(self._ends_at, now + FLUSH_DEADLINE_SECONDS)
        with trio.move_on_at(max(self._ends_at, now + LAST_MOMENT_SECONDS)):
            async with trio.open_nursery() as nursery:
                for inode in list(left.values()):
                    nursery.start_soon(self._flush_last, inode, left)
        for inode in left.values():
            self._give_up(inode)

    async def _flush_last(self, inode: OpenInode, left: dict[InodeNumber, OpenInode]) -> None:
        try:
            await inode.writer.flush(sync=False)
        except DcsError as error:
            log.error("inode %d (%r): %s", inode.ino, self._cache.name_of(inode.ino), error)
        else:
            del left[inode.ino]
