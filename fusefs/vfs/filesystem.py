"""The file system's verbs, as the kernel asks for them.

Called by `fusefs.operations`; knows names, inodes and handles, not pyfuse3. Answers carry the
seconds for which they may be believed. Every verb raises only what `servers.protocol.errors`
has.

Runs in one trio task per request; between two awaits a verb is alone.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import trio

from fusefs.chunks.cache import BlockCache
from fusefs.chunks.client import ExtentClient, StoredExtent
from fusefs.chunks.replicas import Replicas
from fusefs.metadata.client import MetadataClient
from fusefs.metadata.session import Session
from fusefs.settings import FLUSH_DEADLINE_SECONDS, MountSettings
from fusefs.vfs.access_times import AccessTimes
from fusefs.vfs.attribute_cache import AttributeCache
from fusefs.vfs.chunk_map import WINDOW_CHUNKS, ChunkMap
from fusefs.vfs.directory_stream import DirectoryStream, Entry, learn_names
from fusefs.vfs.file_reader import FileReader
from fusefs.vfs.file_writer import FileWriter, WriterParts
from fusefs.vfs.handles import FileHandle, HandleTable
from fusefs.vfs.inodes import OpenInode
from fusefs.vfs.write_budget import WriteBudget
from servers.protocol.checksum import Buffer
from servers.protocol.errors import DcsError, Refused, SessionLost, Unavailable
from servers.protocol.geometry import Segment
from servers.protocol.ids import InodeNumber, NodeNumber
from servers.protocol.limits import FILE_BYTES_MAX, KIB, NAME_BYTES_MAX
from servers.protocol.naming_api import (
    CHUNK_SIZE_ATTRIBUTE,
    RENAME_EXCHANGE,
    REPLICAS_ATTRIBUTE,
    Attributes,
    pack_time,
)
from servers.protocol.placement import Space, cluster_space

log = logging.getLogger(__name__)

ENOENT, EBADF, EEXIST, EINVAL, EFBIG, EROFS, ENAMETOOLONG, ENODATA, ESTALE = 2, 9, 17, 22, 27, 30, 36, 61, 116
NODE_SYNC_SECONDS = 7.0
"""A storage node syncs all it has by itself within 5 s; after this, no barrier is needed."""
REGISTER_SECONDS = 0.5
REGISTER_MAX = 1024
TRIM_SECONDS = 10.0
REMEMBERED_BYTES_MAX = 64 * KIB
RETRY_FAILED_SECONDS = 2.0
KEEP_FAILED_SECONDS = 600.0
"""How long data that could not be stored is tried again after the last close."""
LAST_MOMENT_SECONDS = 2.0
VERSIONS_MAX = 100_000
CAPABILITY = b"security.capability"


@dataclass(frozen=True, slots=True)
class Shown:
    """Attributes, and for how many seconds they may be believed."""

    attributes: Attributes
    seconds: float
    entry_seconds: float = 0.0


class Filesystem:
    def __init__(
        self,
        settings: MountSettings,
        nursery: trio.Nursery,
        metadata: MetadataClient,
        session: Session,
        extents: ExtentClient,
        replicas: Replicas,
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._metadata = metadata
        self._session = session
        self._replicas = replicas
        self._extents = extents
        self._cache = AttributeCache(settings.attribute_seconds)
        self._accesses = AccessTimes(
            self._ask, session.now_ns, seconds=settings.attribute_seconds,
            kept=not (settings.noatime or settings.read_only),
        )  # fmt: skip
        self._blocks = BlockCache(extents.fetch, cached_bytes_max=settings.cache_bytes_max)
        self._budget = WriteBudget(settings.dirty_bytes_max, self._relieve)
        self._open: dict[InodeNumber, OpenInode] = {}
        self._files: HandleTable[FileHandle] = HandleTable()
        self._directories: HandleTable[DirectoryStream] = HandleTable()
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

    def statistics(self) -> dict[str, int]:
        return {
            "open_inodes": len(self._open), "handles": len(self._files), "dirty_bytes": self._budget.held_bytes,
            **self._cache.statistics(), **self._blocks.statistics(), **self._extents.statistics(),
            **self._metadata.statistics(),
        }  # fmt: skip

    # ── asking the metadata

    async def _ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        """As `MetadataClient.ask`; an operation that a lost session did not do is done by the next one."""
        for _ in range(2):
            before = self._metadata.session
            try:
                return await self._metadata.ask(verb, **arguments)
            except SessionLost:
                await self._session.renew_lost(before)
        return await self._metadata.ask(verb, **arguments)

    async def _commit(self, deadline: float, /, **arguments: Any) -> list[Any]:
        """What was written in a session that is over is committed only if nobody changed the content since: while
        this mount was away, others had every right to believe that it is gone. Raises Refused(ESTALE) then."""
        inode = self._open[arguments["ino"]]
        for _ in range(2):
            session = self._metadata.session
            fence = {} if session == inode.written_in else {"version": inode.written_over}
            try:
                left = deadline - trio.current_time()
                reply = await self._metadata.ask_in(session, left, "commit", **arguments, **fence)
            except SessionLost:
                await self._session.renew_lost(session)
            else:
                inode.written_in = session  # And over what comes of it, which `committed` notes without an await.
                return reply
        raise Unavailable("commit: the session was lost twice")

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

    async def keep_access_times_told(self) -> None:
        """Tells the metadata what was read. Until cancelled."""
        await self._accesses.keep_told()

    async def keep_trimmed(self) -> None:
        """Gives memory back that was only needed while much was written. Until cancelled."""
        while True:
            await trio.sleep(TRIM_SECONDS)
            self._parts.buffers.trim()

    async def _register(self) -> None:
        async with self._registering:
            now_open = set(self._open)
            opened, released = sorted(now_open - self._registered), sorted(self._registered - now_open)
            for at in range(0, max(len(opened), len(released)), REGISTER_MAX):
                some_opened, some_released = opened[at : at + REGISTER_MAX], released[at : at + REGISTER_MAX]
                (gone,) = await self._ask("opens", opened=some_opened, released=some_released)
                self._registered.update(some_opened)
                self._registered.difference_update(some_released)
                for ino in gone:
                    log.warning("inode %d, open here, is gone", ino)

    async def _register_before_unlink(self, parent: InodeNumber, name: bytes) -> None:
        """What is open here and about to lose a name by us needs no grace."""
        found = self._cache.entry(parent, name, trio.current_time())
        if found is not None and found[0] in self._open and found[0] not in self._registered:
            await self._register()

    async def _store(self, pieces: list[memoryview], **what: Any) -> StoredExtent:
        """As `ExtentClient.store`. What is small is likely to be read again soon: the kernel drops a page's
        neighbours with every change, and databases look at what they wrote."""
        stored = await self._extents.store(pieces, **what)
        if stored.length <= REMEMBERED_BYTES_MAX:
            self._blocks.put(stored.extent, b"".join(pieces))
        return stored

    def register_anew(self) -> None:
        """A new session: what is open is told to it, as soon as what is newly open would be."""
        self._registered.clear()

    def _writable(self) -> None:
        if self._settings.read_only:
            raise Refused(EROFS)

    # ── names

    async def lookup(self, parent: InodeNumber, name: bytes) -> Shown | float:
        """The inode behind a name; or, for a name that is not there, the seconds for which that is believed.

        Raises Refused for what is neither, such as a parent that is no directory.
        """
        if len(name) > NAME_BYTES_MAX:
            raise Refused(ENAMETOOLONG)
        now = trio.current_time()
        known = self._cache.entry(parent, name, now)
        if known is None and self._cache.wants_listing(parent, now):
            await self._list(parent)
            known = self._cache.entry(parent, name, now := trio.current_time())
        if known is not None:
            ino, seconds = known
            if ino is None:
                return seconds
            held = self._cache.attributes(ino, now)
            if held is not None:
                return self._shown(held[0], held[1], min(seconds, held[1]))
        return await self._look_up(parent, name)

    async def _look_up(self, parent: InodeNumber, name: bytes) -> Shown | float:
        asked_at, tick = trio.current_time(), self._cache.tick()
        try:
            ino, blob = await self._ask("lookup", parent=parent, name=name)
        except Refused as error:
            if error.errno != ENOENT:
                raise
            self._cache.put_entry(parent, name, None, asked_at, tick)
            return self._left(asked_at)
        self._cache.put_entry(parent, name, ino, asked_at, tick)
        seconds = self._left(asked_at)
        return self._shown(self._cache.put(ino, blob, asked_at), seconds, seconds)

    def _left(self, asked_at: float) -> float:
        return max(0.0, asked_at + self._cache.seconds - trio.current_time())

    async def _list(self, parent: InodeNumber) -> None:
        """Learns the names of a directory, unless it is large."""
        try:
            learned = await learn_names(self._metadata, self._cache, parent)
        except Refused:
            return  # The question about the name itself will tell.
        if not learned:
            self._cache.list_later(parent, trio.current_time())

    def _shown(self, attributes: Attributes, seconds: float, entry_seconds: float = 0.0) -> Shown:
        self._session.saw(attributes.ctime_ns)
        if seconds > 0 and attributes.is_file:
            self._note_version(self._told, attributes.ino, attributes.data_version)
        inode = self._open.get(attributes.ino)
        if inode is not None:
            inode.learn(attributes)
            if inode.attributes.data_version > inode.map.version and not inode.writer.is_dirty:
                inode.map.forget(inode.attributes.data_version)
            attributes = inode.shown()
        return Shown(self._accesses.shown(attributes), seconds, entry_seconds)

    async def _make(self, verb: str, parent: InodeNumber, name: bytes, **arguments: Any) -> Shown:
        self._writable()
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob = await self._ask(verb, parent=parent, name=name, **arguments)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        return self._made(parent, name, ino, blob, parent_blob, asked_at)

    def _made(
        self, parent: InodeNumber, name: bytes, ino: InodeNumber, blob: bytes, parent_blob: bytes, asked_at: float
    ) -> Shown:
        self._cache.changed(parent, name, ino, parent_blob, asked_at)
        attributes = self._cache.put(ino, blob, asked_at)
        if attributes.is_directory:
            self._cache.complete(ino, asked_at, self._cache.tick())  # It is empty.
        seconds = self._left(asked_at)
        return self._shown(attributes, seconds, seconds)

    async def mkdir(self, parent: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Shown:
        return await self._make("mkdir", parent, name, mode=mode, uid=uid, gid=gid)

    async def mknod(self, parent: InodeNumber, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Shown:
        return await self._make("mknod", parent, name, mode=mode, rdev=rdev, uid=uid, gid=gid)

    async def symlink(self, parent: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Shown:
        return await self._make("symlink", parent, name, target=target, uid=uid, gid=gid)

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Shown:
        self._writable()
        await self._stored(ino)
        asked_at = trio.current_time()
        try:
            blob, parent_blob = await self._ask("link", ino=ino, parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        return self._made(parent, name, ino, blob, parent_blob, asked_at)

    async def readlink(self, ino: InodeNumber) -> bytes:
        link = (await self.getattr(ino)).attributes
        if not link.target:
            raise Refused(EINVAL)
        self._was_read(link)
        return link.target

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        self._writable()
        await self._register_before_unlink(parent, name)
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob = await self._ask("unlink", parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        self._cache.changed(parent, name, None, parent_blob, asked_at)
        self._shown(self._cache.put(ino, blob, asked_at), 0.0)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        self._writable()
        asked_at = trio.current_time()
        try:
            ino, parent_blob = await self._ask("rmdir", parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        self._cache.changed(parent, name, None, parent_blob, asked_at)
        self._cache.forget_attributes(ino)

    async def rename(
        self, parent: InodeNumber, name: bytes, new_parent: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        """What was written to the file is committed first: its new name never shows less."""
        self._writable()
        found = self._cache.entry(parent, name, trio.current_time())
        for ino in self._may_be(found[0] if found is not None else None):
            await self._open[ino].writer.flush(sync=False)
        await self._register_before_unlink(new_parent, new_name)
        asked_at = trio.current_time()
        try:
            ino, blob, other, parent_blob, new_parent_blob = await self._ask(
                "rename", parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags
            )
        except DcsError:
            self._cache.forget_entry(parent, name)
            self._cache.forget_entry(new_parent, new_name)
            raise
        if other == ino:
            return  # Two names of one file: rename(2) leaves both.
        self._cache.changed(parent, name, other if flags & RENAME_EXCHANGE else None, parent_blob, asked_at)
        self._cache.changed(new_parent, new_name, ino, new_parent_blob, asked_at)
        self._shown(self._cache.put(ino, blob, asked_at), 0.0)
        self._cache.forget_attributes(other)

    def _may_be(self, ino: InodeNumber | None) -> list[InodeNumber]:
        """The open inodes with unwritten data that a name may stand for."""
        if ino is not None:
            return [ino] if ino in self._open and self._open[ino].writer.is_dirty else []
        return [i for i, inode in self._open.items() if inode.writer.is_dirty]

    # ── attributes

    def _was_read(self, known: Attributes) -> None:
        self._accesses.read(known.ino, known.atime_ns, max(known.mtime_ns, known.ctime_ns))

    async def getattr(self, ino: InodeNumber) -> Shown:
        held = self._cache.attributes(ino, trio.current_time())
        if held is not None:
            return self._shown(held[0], held[1])
        asked_at = trio.current_time()
        (blob,) = await self._ask("getattr", ino=ino)
        return self._shown(self._cache.put(ino, blob, asked_at), self._left(asked_at))

    async def _stored(self, ino: InodeNumber) -> OpenInode | None:
        """What was written to the inode is committed; the inode, if it is open. So a change after a write has the
        later time, whatever this mount believes the volume's time to be."""
        inode = self._open.get(ino)
        if inode is not None and inode.writer.is_dirty:
            await inode.writer.flush(sync=False)
        return inode

    async def setattr(self, ino: InodeNumber, **changes: Any) -> Shown:
        """Changes among mode, uid, gid, size, atime_ns, mtime_ns, strip; a time of None is now.

        `strip`: a user without privileges changes the content, and what set-user-id and set-group-id gave ends.

        What was written before is committed first, so that a later commit changes neither again.
        """
        self._writable()
        if changes.get("size", 0) > FILE_BYTES_MAX:
            raise Refused(EFBIG)
        inode = await self._stored(ino)
        if "atime_ns" in changes:
            await self._accesses.forget(ino)
        arguments = {k: v for k, v in changes.items() if not k.endswith("_ns")}
        for name in ("atime", "mtime"):
            if f"{name}_ns" in changes:
                time_ns = changes[f"{name}_ns"]
                arguments[name] = True if time_ns is None else pack_time(time_ns)
        while True:
            asked_at = trio.current_time()
            self._cache.forget_attributes(ino)
            blob, more = await self._ask("setattr", ino=ino, **arguments)
            attributes = self._cache.put(ino, blob, asked_at)
            if not more:
                break
        if inode is not None and "size" in changes:
            inode.map.forget(attributes.data_version)
        return self._shown(attributes, self._left(asked_at))

    async def statfs(self) -> tuple[Space, int, int]:
        """Raw bytes of the cluster, its replication factor, and how many inodes there are."""
        files, directories, _ = await self._ask("statfs")
        return cluster_space(self._replicas.nodes()), self._session.facts.replicas, files + directories

    # ── extended attributes

    async def getxattr(self, ino: InodeNumber, name: bytes) -> bytes:
        inode = self._open.get(ino)
        if name == CAPABILITY and inode is not None and inode.attributes.xattrs == 0:
            raise Refused(ENODATA)  # The kernel asks before every write(2): what was known at the open will do.
        attributes = (await self.getattr(ino)).attributes
        if attributes.is_file or attributes.is_directory:
            if name == REPLICAS_ATTRIBUTE:
                return b"%d" % attributes.replicas
            if name == CHUNK_SIZE_ATTRIBUTE:
                return b"%d" % attributes.chunk_size
        if attributes.xattrs == 0:
            raise Refused(ENODATA)
        value: bytes = (await self._ask("getxattr", ino=ino, name=name))[0]
        return value

    async def listxattr(self, ino: InodeNumber) -> list[bytes]:
        if (await self.getattr(ino)).attributes.xattrs == 0:
            return []
        names: list[bytes] = (await self._ask("listxattr", ino=ino))[0]
        return names

    async def setxattr(self, ino: InodeNumber, name: bytes, value: bytes, flags: int) -> None:
        self._writable()
        await self._stored(ino)
        asked_at = trio.current_time()
        (blob,) = await self._ask("setxattr", ino=ino, name=name, value=value, flags=flags)
        self._shown(self._cache.put(ino, blob, asked_at), 0.0)

    async def removexattr(self, ino: InodeNumber, name: bytes) -> None:
        self._writable()
        await self._stored(ino)
        asked_at = trio.current_time()
        (blob,) = await self._ask("removexattr", ino=ino, name=name)
        self._shown(self._cache.put(ino, blob, asked_at), 0.0)

    # ── directories

    def opendir(self, ino: InodeNumber) -> int:
        return self._directories.add(DirectoryStream(ino, self._metadata, self._cache))

    async def parent_of(self, handle: int) -> tuple[Shown, Shown]:
        """What `.` and `..` of an open directory are, whose listing begins."""
        own = await self.getattr(self._directories[handle].ino)
        self._was_read(own.attributes)
        return own, await self.getattr(own.attributes.parent)

    def readdir(self, handle: int, after: int) -> AsyncIterator[Entry]:
        return self._directories[handle].entries(after)

    def listed(self, entry: Entry) -> Shown:
        """The attributes of an entry just listed."""
        held = self._cache.attributes(entry.ino, trio.current_time())
        if held is None:
            return self._shown(self._cache.put(entry.ino, entry.blob, 0.0), 0.0)
        return self._shown(held[0], held[1], held[1])

    def releasedir(self, handle: int) -> None:
        self._directories.pop(handle)

    # ── files

    async def create(
        self, parent: InodeNumber, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[int, bool, Shown]:
        """Makes and opens a file: a handle, whether the kernel's pages of it are still good, and its attributes."""
        self._writable()
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob = await self._ask("create", parent=parent, name=name, mode=mode, uid=uid, gid=gid)
        except DcsError as error:
            self._cache.forget_entry(parent, name)
            if isinstance(error, Refused) and error.errno == EEXIST and not flags & os.O_EXCL:
                # Another mount was first. The kernel looks again, and checks whether the caller may open it.
                raise Refused(ESTALE) from error
            raise
        shown = self._made(parent, name, ino, blob, parent_blob, asked_at)
        return *self._opened(shown.attributes, [], flags), shown

    async def open(self, ino: InodeNumber, flags: int, *, privileged: bool) -> tuple[int, bool]:
        """A handle, and whether the kernel's pages of the file are still good.

        Where that cuts the file, a caller who is not `privileged` ends what set-user-id gave.
        """
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._writable()
        if flags & os.O_TRUNC:
            await self.setattr(ino, size=0, strip=not privileged)
        asked_at = trio.current_time()
        blob, rows = await self._ask("look", ino=ino, chunks=WINDOW_CHUNKS)
        return self._opened(self._cache.put(ino, blob, asked_at), rows, flags)

    def _opened(self, attributes: Attributes, rows: list[Any] | None, flags: int) -> tuple[int, bool]:
        ino = attributes.ino
        self._session.saw(attributes.ctime_ns)
        inode = self._open.get(ino)
        if inode is None:
            inode = self._open[ino] = self._new_inode(attributes)
        inode.learn(attributes)
        inode.handles += 1
        if rows is not None and attributes.data_version >= inode.map.version:
            inode.map.begin(attributes.data_version, rows)
        keep = self._versions.get(ino) == attributes.data_version
        self._note_version(self._versions, ino, attributes.data_version)
        if self._told.get(ino) != attributes.data_version and self.on_stale_attributes is not None:
            # The kernel may still believe an older size, and would end the reads of this handle there.
            self.on_stale_attributes(ino)
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
            failures_told=inode.writer.failures,
        )  # fmt: skip
        return self._files.add(handle), keep

    def _note_version(self, table: dict[InodeNumber, int], ino: InodeNumber, version: int) -> None:
        table[ino] = version
        if len(table) > VERSIONS_MAX:
            del table[next(iter(table))]

    def _new_inode(self, attributes: Attributes) -> OpenInode:
        ino = attributes.ino
        chunks = ChunkMap(ino, self._metadata)

        def committed(blob: bytes, before: int, laid: dict[int, list[Segment]]) -> Attributes:
            fresh = self._cache.put(ino, blob, trio.current_time())
            self._session.saw(fresh.ctime_ns)
            inode.learn(fresh)
            inode.written_over = fresh.data_version
            chunks.committed(before, fresh.data_version, laid)
            for table in (self._versions, self._told):
                if table.get(ino) == before:
                    self._note_version(table, ino, fresh.data_version)
            return fresh

        def moved() -> None:
            self._versions.pop(ino, None)
            if self.on_moved is not None:
                self.on_moved(ino)

        writer = FileWriter(attributes, lambda: self._cache.name_of(ino), self._parts, committed, moved)
        inode = OpenInode(attributes, chunks, FileReader(attributes.chunk_size, chunks, self._blocks, writer), writer)
        return inode

    async def read(self, handle: int, offset: int, size: int) -> Buffer:
        file = self._files[handle]
        inode = file.inode
        if offset + size > inode.size and not inode.writer.is_dirty:
            await self._refresh(inode)
        if not file.noatime:
            self._accesses.read(inode.ino, inode.attributes.atime_ns, inode.changed_ns)
        return await inode.reader.read(offset, size, inode.size, file.pattern, self._nursery)

    async def _refresh(self, inode: OpenInode) -> None:
        """Looks whether others made the file longer, as often as attributes may be cached."""
        shown = await self.getattr(inode.ino)
        if shown.attributes.data_version != inode.map.version:
            inode.map.forget(shown.attributes.data_version)

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
        await self._flush(file, sync=True)
        if inode.attributes.unsynced_s * 1_000_000_000 + NODE_SYNC_SECONDS * 1e9 > self._session.now_ns():
            await self._sync_everywhere()

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

    async def _sync_everywhere(self) -> None:
        """Every node that is alive has all it took on stable storage; as many may fail as a write may do without."""
        nodes = [node.number for node in self._replicas.nodes() if node.state == "alive"]
        spare = max(0, self._session.facts.replicas - self._settings.min_write_replicas)

        def enough(confirmed: set[NodeNumber]) -> bool:
            return len(confirmed) >= max(1, len(nodes) - spare)

        if not enough(await self._barrier(nodes, enough)):
            raise Unavailable("too few storage nodes could bring the data to stable storage")

    async def _barrier(self, nodes: Iterable[NodeNumber], enough: Callable[[set[NodeNumber]], bool]) -> set[NodeNumber]:
        return await self._extents.barrier(set(nodes), enough=enough)

    async def release(self, handle: int) -> None:
        """The last close: nobody waits for it. What could not be stored is tried again for a while."""
        file = self._files.pop(handle)
        inode = file.inode
        inode.handles -= 1
        if inode.handles:
            return
        if inode.attributes.nlink == 0:
            inode.writer.discard()
        if inode.writer.is_dirty:
            self._nursery.start_soon(self._store_later, inode)
        else:
            self._forget(inode)

    async def _store_later(self, inode: OpenInode) -> None:
        end_at = trio.current_time() + KEEP_FAILED_SECONDS
        while inode.writer.is_dirty and not inode.handles and trio.current_time() < end_at:
            try:
                await inode.writer.flush(sync=False)
            except DcsError as error:
                log.debug("inode %d: %s", inode.ino, error)
                await trio.sleep(RETRY_FAILED_SECONDS)
                if await self._is_gone(inode.ino) and not inode.handles:
                    inode.writer.discard()
        if not inode.handles:
            self._give_up(inode)
            self._forget(inode)

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
            self._lost(inode.ino, inode.writer.bytes)
            inode.writer.discard()

    def _lost(self, ino: InodeNumber, count: int) -> None:
        self.lost_bytes += count
        log.error("inode %d (%r): %d written bytes are lost", ino, self._cache.name_of(ino), count)

    def _forget(self, inode: OpenInode) -> None:
        if self._open.get(inode.ino) is inode and not inode.handles:
            del self._open[inode.ino]

    # ── all together

    def _relieve(self) -> None:
        """The budget is used up: stores what the files hold that were not written to for longest."""
        if not self._relieving:
            self._relieving = True
            self._nursery.start_soon(self._flush_some)

    async def _flush_some(self) -> None:
        try:
            for inode in sorted(self._open.values(), key=lambda i: i.writer.mtime_ns):
                if inode.writer.is_dirty:
                    await inode.writer.flush(sync=False)
        except DcsError as error:
            log.warning("cannot make room for written data: %s", error)
            await trio.sleep(RETRY_FAILED_SECONDS)
        finally:
            self._relieving = False

    async def flush_all(self) -> None:
        """Before the mount ends: everything is stored and committed, or counted in `lost_bytes`. Once by the deadline;
        what was written after that has a moment more when this is called again."""
        now, inodes = trio.current_time(), list(self._open.values())
        self._ends_at = min(self._ends_at, now + FLUSH_DEADLINE_SECONDS)
        with trio.move_on_at(max(self._ends_at, now + LAST_MOMENT_SECONDS)):
            async with trio.open_nursery() as nursery:
                for inode in inodes:
                    nursery.start_soon(self._flush_last, inode)
        for inode in inodes:
            self._give_up(inode)

    async def _flush_last(self, inode: OpenInode) -> None:
        try:
            await inode.writer.flush(sync=False)
        except DcsError as error:
            log.error("inode %d (%r): %s", inode.ino, self._cache.name_of(inode.ino), error)
