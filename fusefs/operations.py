"""The border with the kernel: pyfuse3's calls, translated to the file system's verbs and back.

Nothing but FUSEError leaves this module: our errors become their errno, and what nobody
expected becomes EIO with a traceback in the log, because any other exception would end the mount.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)  # fmt: skip

from fusefs.errnos import errno_of
from fusefs.kernel_clock import given_or_now
from fusefs.vfs.directory_stream import DOT_COOKIE, DOT_DOT_COOKIE
from fusefs.vfs.filesystem import Filesystem
from fusefs.vfs.open_files import Opened, Shown
from servers.protocol.errors import DcsError
from servers.protocol.ids import InodeNumber
from servers.protocol.limits import NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX
from servers.protocol.requests import Requests

log = logging.getLogger(__name__)

BLOCK_SIZE = 4096
"""st_blksize: what a program's buffers should be multiples of. Bytes."""
STAT_BLOCK = 512
"""The unit of st_blocks, whatever st_blksize says; see stat(2)."""

XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]


def guarded(handler: Handler[P, R]) -> Handler[P, R]:
    """Lets nothing but FUSEError out of a handler, and counts its calls."""
    verb = handler.__name__

    @functools.wraps(handler)
    async def call(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began, failed = perf_counter(), False
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except DcsError as error:
            number = errno_of(error)
            if number == errno.EIO:
                failed = True
                log.warning("%s: %s", verb, error)
            raise FUSEError(number) from error
        except Exception:  # At the kernel's border nothing flies: see the module header.
            failed = True
            log.exception("%s failed", verb)
            raise FUSEError(errno.EIO) from None
        finally:
            self.requests.observe(verb, perf_counter() - began, failed=failed)

    return call


class Operations(pyfuse3.Operations):
    """One method per FUSE request. The kernel checks permissions: the mount has default_permissions."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem, requests: Requests) -> None:
        super().__init__()
        self._fs = filesystem
        self.requests = requests

    # ── names

    @guarded
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        found = await self._fs.lookup(InodeNumber(parent_inode), name)
        if isinstance(found, Shown):
            return _entry(found)
        if found <= 0:
            raise FUSEError(errno.ENOENT)
        absent = EntryAttributes()
        absent.st_ino = 0
        absent.entry_timeout = found
        return absent

    @guarded
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self._fs.mkdir(InodeNumber(parent_inode), name, mode, ctx.uid, ctx.gid))

    @guarded
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(await self._fs.mknod(InodeNumber(parent_inode), name, mode, rdev, ctx.uid, ctx.gid))

    @guarded
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(await self._fs.symlink(InodeNumber(parent_inode), name, target, ctx.uid, ctx.gid))

    @guarded
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return _entry(await self._fs.link(InodeNumber(inode), InodeNumber(new_parent_inode), new_name))

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return await self._fs.readlink(InodeNumber(inode))

    @guarded
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.unlink(InodeNumber(parent_inode), name)

    @guarded
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.rmdir(InodeNumber(parent_inode), name)

    @guarded
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        await self._fs.rename(InodeNumber(parent_inode_old), name_old, InodeNumber(parent_inode_new), name_new, flags)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Inode numbers are the metadata's and never used again: there is nothing to forget."""

    # ── attributes

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return _entry(await self._fs.files.getattr(InodeNumber(inode)))

    @guarded
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes: dict[str, Any] = {}
        if fields.update_mode:
            changes["mode"] = attr.st_mode & 0o7777
        if fields.update_uid:
            changes["uid"] = attr.st_uid
        if fields.update_gid:
            changes["gid"] = attr.st_gid
        if fields.update_size:
            changes["size"] = attr.st_size
        if fields.update_atime:
            changes["atime_ns"] = given_or_now(attr.st_atime_ns, time.time_ns())
        if fields.update_mtime:
            changes["mtime_ns"] = given_or_now(attr.st_mtime_ns, time.time_ns())
        return _entry(await self._fs.setattr(InodeNumber(inode), **changes))

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space, replicas, inodes = await self._fs.statfs()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = space.total_bytes // replicas // BLOCK_SIZE
        data.f_bfree = data.f_bavail = space.free_bytes // replicas // BLOCK_SIZE
        data.f_ffree = data.f_favail = data.f_bfree
        data.f_files = inodes + data.f_ffree
        data.f_namemax = NAME_BYTES_MAX
        return data

    # ── extended attributes

    @guarded
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        _expect_namespace(name)
        return await self._fs.getxattr(InodeNumber(inode), name)

    @guarded
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        _expect_namespace(name)
        await self._fs.setxattr(InodeNumber(inode), name, value, 0)

    @guarded
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = await self._fs.listxattr(InodeNumber(inode))
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @guarded
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        _expect_namespace(name)
        await self._fs.removexattr(InodeNumber(inode), name)

    # ── directories

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return self._fs.opendir(InodeNumber(inode))

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if start_id < DOT_DOT_COOKIE:
            own, parent = await self._fs.parent_of(fh)
            if start_id < DOT_COOKIE and not pyfuse3.readdir_reply(token, b".", _entry(own), DOT_COOKIE):
                return
            if not pyfuse3.readdir_reply(token, b"..", _entry(parent), DOT_DOT_COOKIE):
                return
        while entries := await self._fs.readdir(fh, start_id):
            for entry in entries:
                shown = self._fs.listed(fh, entry)
                if not pyfuse3.readdir_reply(token, entry.name, _entry(shown), entry.cookie):
                    return
            start_id = entries[-1].cookie

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        self._fs.releasedir(fh)

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Names are on stable storage when the call that made them returns."""

    # ── files

    @guarded
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        opened, shown = await self._fs.create(InodeNumber(parent_inode), name, mode & 0o7777, ctx.uid, ctx.gid, flags)
        return _file_info(opened), _entry(shown)

    @guarded
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return _file_info(await self._fs.open(InodeNumber(inode), flags, privileged=ctx.uid == 0))

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return cast(bytes, await self._fs.files.read(fh, off, size))  # Any contiguous buffer will do.

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    @guarded
    async def flush(self, fh: FileHandleT) -> None:
        await self._fs.files.flush(fh)

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.files.fsync(fh)

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.files.release(fh)


def _expect_namespace(name: bytes) -> None:
    """ACLs live in system.*, and need what the binding cannot carry; refused as xattr(7) has it."""
    if not name.startswith(XATTR_NAMESPACES):
        raise FUSEError(errno.EOPNOTSUPP)
    if name in XATTR_NAMESPACES:
        raise FUSEError(errno.EINVAL)
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise FUSEError(errno.ERANGE)


def _file_info(opened: Opened) -> FileInfo:
    return FileInfo(fh=opened.handle, keep_cache=opened.keeps_pages, direct_io=opened.direct)


def _entry(shown: Shown) -> EntryAttributes:
    known = shown.attributes
    entry = EntryAttributes()
    entry.st_ino = known.ino
    entry.generation = 0
    entry.entry_timeout = shown.entry_seconds
    entry.attr_timeout = shown.seconds
    entry.st_mode = known.mode
    entry.st_nlink = known.nlink
    entry.st_uid = known.uid
    entry.st_gid = known.gid
    entry.st_rdev = known.rdev
    entry.st_size = known.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = -(-known.stored_bytes // STAT_BLOCK)
    entry.st_atime_ns = known.atime_ns
    entry.st_mtime_ns = known.mtime_ns
    entry.st_ctime_ns = known.ctime_ns
    return entry
