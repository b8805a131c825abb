"""Names and directories: what a path is, and changing the tree by paths.

Paths are bytes from the root of the volume; symbolic links are not followed, because where
they lead depends on where a volume is mounted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator

from servers.admin.connection import Connection, Session
from servers.admin.errors import Problem, about
from servers.protocol.errors import Refused
from servers.protocol.ids import ROOT_INODE, InodeNumber
from servers.protocol.limits import NAMES_PER_CALL_MAX
from servers.protocol.names import escape, split_path
from servers.protocol.naming_api import RENAME_NOREPLACE, Attributes, unpack_attributes


def parts_of(path: bytes) -> list[bytes]:
    """The names along the path. Raises Problem for what no path can be."""
    if not path:  # As to system calls: a script's empty variable does not mean the whole volume.
        raise Problem("an empty name is none; the top directory is /")
    try:
        return split_path(path)
    except ValueError as error:
        raise Problem(str(error)) from error


async def resolve(connection: Connection, path: bytes) -> Attributes:
    """Raises Refused with the path."""
    try:
        ino, blob = await connection.ask("resolve", path=parts_of(path))
    except Refused as error:
        raise about(path, error) from error
    return unpack_attributes(ino, blob)


async def find_parent(connection: Connection, path: bytes) -> tuple[InodeNumber, bytes]:
    """The directory that holds the path's last name, and that name. Raises Refused, Problem."""
    parts = parts_of(path)
    if not parts:
        raise Refused(errno.EISDIR, "/")
    if len(parts) == 1:
        return ROOT_INODE, parts[0]
    parent = await resolve(connection, b"/" + b"/".join(parts[:-1]))
    if not parent.is_directory:
        raise Refused(errno.ENOTDIR, escape(b"/" + b"/".join(parts[:-1])))
    return parent.ino, parts[-1]


async def list_directory(connection: Connection, path: bytes) -> AsyncIterator[tuple[bytes, Attributes]]:
    """The entries of the directory, or the file itself, in the order of their making."""
    found = await resolve(connection, path)
    if not found.is_directory:
        yield parts_of(path)[-1], found
        return
    after, is_end = 0, False
    while not is_end:
        end, _, *rows = await connection.ask("readdir", ino=found.ino, after=after, count=NAMES_PER_CALL_MAX)
        is_end = bool(end)
        for at in range(0, len(rows), 4):
            name, after, ino, blob = rows[at : at + 4]
            if blob is not None:
                yield name, unpack_attributes(ino, blob)


async def make_directory(connection: Connection, session: Session, path: bytes, mode: int, *, parents: bool) -> None:
    """The directory is there; without `parents` it was not before. Raises Refused."""
    parts = parts_of(path)
    if not parts and not parents:
        raise Refused(errno.EEXIST, "/")
    first = 1 if parents else len(parts)
    for count in range(first, len(parts) + 1):
        await _make_one(connection, session, b"/" + b"/".join(parts[:count]), mode, there_is_fine=parents)


async def _make_one(connection: Connection, session: Session, path: bytes, mode: int, *, there_is_fine: bool) -> None:
    parent, name = await find_parent(connection, path)
    try:
        await session.change("mkdir", parent=parent, name=name, mode=mode, uid=os.getuid(), gid=os.getgid())
    except Refused as error:
        if error.errno == errno.EEXIST and there_is_fine and (await resolve(connection, path)).is_directory:
            return
        raise about(path, error) from error


async def delete_file(connection: Connection, session: Session, path: bytes) -> None:
    parent, name = await find_parent(connection, path)
    try:
        await session.change("unlink", parent=parent, name=name)
    except Refused as error:
        raise about(path, error) from error


async def delete_directory(connection: Connection, session: Session, path: bytes) -> None:
    if not parts_of(path):
        raise Refused(errno.EBUSY, "/")
    parent, name = await find_parent(connection, path)
    try:
        await session.change("rmdir", parent=parent, name=name)
    except Refused as error:
        raise about(path, error) from error


async def move(connection: Connection, session: Session, source: bytes, target: bytes, *, replace: bool) -> None:
    """The source has the target's name, or its own name in the directory that the target is."""
    parent, name = await find_parent(connection, source)
    try:
        there: Attributes | None = await resolve(connection, target)
    except Refused as error:
        if error.errno != errno.ENOENT:
            raise
        there = None
    if there is not None and there.is_directory:
        new_parent, new_name = there.ino, name
    else:
        new_parent, new_name = await find_parent(connection, target)
    flags = 0 if replace else RENAME_NOREPLACE
    try:
        await session.change("rename", parent=parent, name=name, new_parent=new_parent, new_name=new_name, flags=flags)
    except Refused as error:
        raise about(source if error.errno == errno.ENOENT else target, error) from error
