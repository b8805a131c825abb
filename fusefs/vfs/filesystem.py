"""The file system's verbs, as the kernel asks for them.

Called by `fusefs.operations`; knows names and what the metadata says of inodes, not pyfuse3; what is
open is `files`. Answers carry the seconds for which they may be believed. Every verb raises only
what `servers.protocol.errors` has.

Runs in one trio task per request; between two awaits a verb is alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import trio

from fusefs.chunks.client import ExtentClient
from fusefs.chunks.replicas import Replicas
from fusefs.metadata.client import MetadataClient
from fusefs.metadata.session import Session
from fusefs.settings import MountSettings
from fusefs.vfs.attribute_cache import AttributeCache
from fusefs.vfs.chunk_map import WINDOW_CHUNKS
from fusefs.vfs.directory_stream import DirectoryStream, Entry, learn_names
from fusefs.vfs.handles import HandleTable
from fusefs.vfs.inodes import OpenInode
from fusefs.vfs.open_files import SET_IDS, Opened, OpenFiles, Shown
from servers.protocol.errors import DcsError, Refused
from servers.protocol.ids import ROOT_INODE, TRASH_INODE, TRASH_NAME, InodeNumber
from servers.protocol.limits import FILE_BYTES_MAX, NAME_BYTES_MAX, TRASH_FILES_MAX
from servers.protocol.naming_api import (
    CHUNK_SIZE_ATTRIBUTE,
    RENAME_EXCHANGE,
    REPLICAS_ATTRIBUTE,
    pack_time,
    unpack_attributes,
)
from servers.protocol.placement import Space, cluster_space

ENOENT, EEXIST, EINVAL, EFBIG, EROFS, ENAMETOOLONG, ENODATA, ESTALE = 2, 17, 22, 27, 30, 36, 61, 116
CAPABILITY = b"security.capability"
SETGID_TO_EXECUTE = stat.S_ISGID | stat.S_IXGRP
"""Without the group's right to execute, set-group-id gives nothing."""


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
        self._metadata = metadata
        self._session = session
        self._ask = session.ask
        self._replicas = replicas
        self._cache = AttributeCache(settings.attribute_seconds)
        self._directories: HandleTable[DirectoryStream] = HandleTable()
        self._removed: set[InodeNumber] = set()
        """Files that the trash has shown: they are only read."""
        self.files = OpenFiles(settings, nursery, metadata, session, extents, replicas, self._cache)

    def statistics(self) -> dict[str, int]:
        return {**self.files.statistics(), **self._cache.statistics(), **self._metadata.statistics()}

    def _writable(self, *directories: InodeNumber) -> None:
        if self._settings.read_only or TRASH_INODE in directories:
            raise Refused(EROFS)

    def _changeable(self, ino: InodeNumber) -> None:
        """Not what the trash shows, before it was restored."""
        self._writable(ino)
        if ino in self._removed:
            held = self._cache.attributes(ino, trio.current_time())
            if held is None or held[0].nlink == 0:
                raise Refused(EROFS)

    def _note_removed(self, ino: InodeNumber) -> None:
        if len(self._removed) >= TRASH_FILES_MAX:
            self._removed.clear()
        self._removed.add(ino)

    # ── names

    async def lookup(self, parent: InodeNumber, name: bytes) -> Shown | float:
        """The inode behind a name; or, for a name that is not there, the seconds for which that is believed.

        Raises Refused for what is neither, such as a parent that is no directory.
        """
        if len(name) > NAME_BYTES_MAX:
            raise Refused(ENAMETOOLONG)
        if parent == TRASH_INODE or (parent == ROOT_INODE and name == TRASH_NAME):
            return await self._look_up(parent, name)  # Which notes what is removed; no listing has `.trash`.
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
                return self.files.shown(held[0], held[1], min(seconds, held[1]))
            older = self._cache.last(ino)
            if older is not None and not self._is_sticky(parent):
                return self.files.shown(older, 0.0, seconds)  # Who wants the attributes asks for them.
        return await self._look_up(parent, name)

    def _is_sticky(self, directory: InodeNumber) -> bool:
        """Or not known: who may remove a name there depends on the owner of what it names."""
        known = self._cache.last(directory)
        return known is None or bool(known.mode & stat.S_ISVTX)

    async def _look_up(self, parent: InodeNumber, name: bytes) -> Shown | float:
        asked_at, tick = trio.current_time(), self._cache.tick()
        try:
            ino, blob = await self._ask("lookup", parent=parent, name=name)
        except Refused as error:
            if error.errno != ENOENT:
                raise
            self._cache.put_entry(parent, name, None, asked_at, tick)
            return self._cache.left(asked_at, trio.current_time())
        self._cache.put_entry(parent, name, ino, asked_at, tick)
        if parent == TRASH_INODE:
            self._note_removed(ino)
        seconds = self._cache.left(asked_at, trio.current_time())
        return self.files.shown(self._cache.put(ino, blob, asked_at), seconds, seconds)

    async def _list(self, parent: InodeNumber) -> None:
        """Learns the names of a directory, unless it is large."""
        try:
            learned = await learn_names(self._metadata, self._cache, parent)
        except Refused:
            return  # The question about the name itself will tell.
        if not learned:
            self._cache.list_later(parent, trio.current_time())

    async def _make(self, verb: str, parent: InodeNumber, name: bytes, **arguments: Any) -> Shown:
        self._writable(parent)
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob, before = await self._ask(verb, parent=parent, name=name, **arguments)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        return self._made(parent, name, ino, blob, parent_blob, before, asked_at)

    def _made(
        self,
        parent: InodeNumber,
        name: bytes,
        ino: InodeNumber,
        blob: bytes,
        parent_blob: bytes,
        before: Sequence[int],
        asked_at: float,
    ) -> Shown:
        self._cache.changed(parent, {name: ino}, parent_blob, before, asked_at)
        attributes = self._cache.put(ino, blob, asked_at)
        if attributes.is_directory:  # It is empty.
            made_ns = unpack_attributes(ino, blob).ctime_ns
            self._cache.complete(ino, asked_at, self._cache.tick(), self._cache.new_listing(), made_ns)
        seconds = self._cache.left(asked_at, trio.current_time())
        return self.files.shown(attributes, seconds, seconds)

    async def mkdir(self, parent: InodeNumber, name: bytes, mode: int, uid: int, gid: int) -> Shown:
        return await self._make("mkdir", parent, name, mode=mode, uid=uid, gid=gid)

    async def mknod(self, parent: InodeNumber, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Shown:
        return await self._make("mknod", parent, name, mode=mode, rdev=rdev, uid=uid, gid=gid)

    async def symlink(self, parent: InodeNumber, name: bytes, target: bytes, uid: int, gid: int) -> Shown:
        return await self._make("symlink", parent, name, target=target, uid=uid, gid=gid)

    async def link(self, ino: InodeNumber, parent: InodeNumber, name: bytes) -> Shown:
        self._writable(parent)
        await self.files.stored(ino)
        asked_at = trio.current_time()
        try:
            blob, parent_blob, before = await self._ask("link", ino=ino, parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        return self._made(parent, name, ino, blob, parent_blob, before, asked_at)

    async def readlink(self, ino: InodeNumber) -> bytes:
        link = (await self.files.getattr(ino)).attributes
        if not link.target:
            raise Refused(EINVAL)
        self.files.was_read(link)
        return link.target

    async def unlink(self, parent: InodeNumber, name: bytes) -> None:
        self._writable(parent)
        await self.files.register_before_unlink(parent, name, is_kept=True)
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob, before = await self._ask("unlink", parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        self._cache.changed(parent, {name: None}, parent_blob, before, asked_at)
        self.files.shown(self._cache.put(ino, blob, asked_at), 0.0)

    async def rmdir(self, parent: InodeNumber, name: bytes) -> None:
        self._writable(parent)
        asked_at = trio.current_time()
        try:
            ino, parent_blob, before = await self._ask("rmdir", parent=parent, name=name)
        except DcsError:
            self._cache.forget_entry(parent, name)
            raise
        self._cache.changed(parent, {name: None}, parent_blob, before, asked_at)
        self._cache.forget_attributes(ino)

    async def rename(
        self, parent: InodeNumber, name: bytes, new_parent: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        """What was written to the file is committed first: its new name never shows less."""
        self._writable(parent, new_parent)
        await self._store_renamed(parent, name)
        await self.files.register_before_unlink(new_parent, new_name, is_kept=False)
        asked_at = trio.current_time()
        try:
            ino, blob, other, parent_blob, new_parent_blob, before, new_before = await self._ask(
                "rename", parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags
            )
        except DcsError:
            self._cache.forget_entry(parent, name)
            self._cache.forget_entry(new_parent, new_name)
            raise
        if other == ino:
            return  # Two names of one file: rename(2) leaves both.
        names = {name: other if flags & RENAME_EXCHANGE else None}
        if parent != new_parent:
            self._cache.changed(parent, names, parent_blob, before, asked_at)
            names = {}
        self._cache.changed(new_parent, {**names, new_name: ino}, new_parent_blob, new_before, asked_at)
        self.files.shown(self._cache.put(ino, blob, asked_at), 0.0)
        self._cache.forget_attributes(other)

    async def _store_renamed(self, parent: InodeNumber, name: bytes) -> None:
        if self.files.are_clean():
            return
        found = self._cache.entry(parent, name, trio.current_time())
        if found is None:
            shown = await self._look_up(parent, name)
            found = shown.attributes.ino if isinstance(shown, Shown) else None, 0.0
        if found[0] is not None:
            await self.files.stored(found[0])

    # ── attributes

    async def setattr(self, ino: InodeNumber, **changes: Any) -> Shown:
        """Changes among mode, uid, gid, size, atime_ns, mtime_ns, strip; a time of None is now.

        `strip`: a user without privileges changes the content, and what set-user-id and set-group-id gave ends.

        What was written before is committed first, so that a later commit changes neither again.
        """
        self._changeable(ino)
        if changes.get("size", 0) > FILE_BYTES_MAX:
            raise Refused(EFBIG)
        await self.files.stored(ino)
        if "atime_ns" in changes:
            await self.files.forget_access(ino)
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
        left = self._cache.left(asked_at, trio.current_time())
        return self.files.shown(attributes, left, is_cut="size" in changes)

    async def statfs(self) -> tuple[Space, int, int]:
        """Raw bytes of the cluster, its replication factor, and how many inodes there are."""
        files, directories, _ = await self._ask("statfs")
        return cluster_space(self._replicas.nodes()), self._session.facts.replicas, files + directories

    # ── extended attributes

    async def getxattr(self, ino: InodeNumber, name: bytes) -> bytes:
        if name == CAPABILITY and self.files.has_no_xattrs(ino):
            raise Refused(ENODATA)  # The kernel asks before every write(2): what was known at the open will do.
        attributes = (await self.files.getattr(ino)).attributes
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
        if (await self.files.getattr(ino)).attributes.xattrs == 0:
            return []
        names: list[bytes] = (await self._ask("listxattr", ino=ino))[0]
        return names

    async def setxattr(self, ino: InodeNumber, name: bytes, value: bytes, flags: int) -> None:
        self._changeable(ino)
        await self.files.stored(ino)
        self.files.may_give_capability(ino)
        asked_at = trio.current_time()
        (blob,) = await self._ask("setxattr", ino=ino, name=name, value=value, flags=flags)
        self.files.shown(self._cache.put(ino, blob, asked_at), 0.0)

    async def removexattr(self, ino: InodeNumber, name: bytes) -> None:
        self._changeable(ino)
        await self.files.stored(ino)
        asked_at = trio.current_time()
        (blob,) = await self._ask("removexattr", ino=ino, name=name)
        self.files.shown(self._cache.put(ino, blob, asked_at), 0.0)

    # ── directories

    def opendir(self, ino: InodeNumber) -> int:
        return self._directories.add(DirectoryStream(ino, self._metadata, self._cache))

    async def parent_of(self, handle: int) -> tuple[Shown, Shown]:
        """What `.` and `..` of an open directory are, whose listing begins."""
        own = await self.files.getattr(self._directories[handle].ino)
        self.files.was_read(own.attributes)
        return own, await self.files.getattr(own.attributes.parent)

    async def readdir(self, handle: int, after: int) -> Sequence[Entry]:
        """As `DirectoryStream.entries`."""
        return await self._directories[handle].entries(after)

    def listed(self, handle: int, entry: Entry) -> Shown:
        """The attributes of an entry just listed.

        The name is believed only as far as it is known to mean that inode still: a page of the listing is given to
        the kernel piece by piece, and meanwhile the name may have been given to another file, or to none."""
        now, directory = trio.current_time(), self._directories[handle].ino
        if directory == TRASH_INODE:
            self._note_removed(entry.ino)
        held, named = self._cache.attributes(entry.ino, now), self._cache.entry(directory, entry.name, now)
        if held is None:
            return self.files.shown(self._cache.put(entry.ino, entry.blob, 0.0), 0.0)
        is_named = named is not None and named[0] == entry.ino
        return self.files.shown(held[0], held[1], min(held[1], named[1]) if named is not None and is_named else 0.0)

    def releasedir(self, handle: int) -> None:
        self._directories.pop(handle)

    # ── files

    async def create(
        self, parent: InodeNumber, name: bytes, mode: int, uid: int, gid: int, flags: int
    ) -> tuple[Opened, Shown]:
        """Makes and opens a file."""
        self._writable(parent)
        asked_at = trio.current_time()
        try:
            ino, blob, parent_blob, before = await self._ask(
                "create", parent=parent, name=name, mode=mode, uid=uid, gid=gid
            )
        except DcsError as error:
            self._cache.forget_entry(parent, name)
            if isinstance(error, Refused) and error.errno == EEXIST and not flags & os.O_EXCL:
                # Another mount was first. The kernel looks again, and checks whether the caller may open it.
                raise Refused(ESTALE) from error
            raise
        shown = self._made(parent, name, ino, blob, parent_blob, before, asked_at)
        return self.files.open(shown.attributes, unpack_attributes(ino, blob).data_version, [], flags), shown

    async def open(self, ino: InodeNumber, flags: int, *, privileged: bool) -> Opened:
        """Where that cuts the file, a caller who is not `privileged` ends what set-user-id gave."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._changeable(ino)
        if flags & os.O_TRUNC:
            await self.setattr(ino, size=0, strip=not privileged)
        asked_at = trio.current_time()
        blob, rows = await self._ask("look", ino=ino, chunks=WINDOW_CHUNKS)
        found = unpack_attributes(ino, blob)
        return self.files.open(self._cache.newest(found, asked_at), found.data_version, rows, flags)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        inode = self.files.written_directly(handle)
        if inode is not None and (inode.attributes.mode & SET_IDS or inode.attributes.xattrs != inode.plain_xattrs):
            await self._end_privileges(inode)
        return await self.files.write(handle, offset, data)

    async def _end_privileges(self, inode: OpenInode) -> None:
        """As the kernel does before a write through its pages. Nobody tells whether the writer is privileged to keep
        set-user-id; so nobody is."""
        known = inode.attributes
        if known.mode & stat.S_ISUID or known.mode & SETGID_TO_EXECUTE == SETGID_TO_EXECUTE:
            await self.setattr(known.ino, strip=True)
            self.files.tell_stale(known.ino)
        if known.xattrs:
            try:
                await self.removexattr(known.ino, CAPABILITY)
            except Refused as error:
                if error.errno != ENODATA:
                    raise
                inode.plain_xattrs = known.xattrs
