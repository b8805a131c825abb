"""ls, stat, mkdir, rmdir, mv: the tree, without a mount; setrep, setchunk: how it is stored."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable
from typing import Annotated, Any

import typer

from servers.admin import tree
from servers.admin.commands.options import Json, Name, chunk_size, naming_urls
from servers.admin.connection import Connection
from servers.admin.errors import Problem
from servers.admin.output import print_facts, print_json, print_table, shown_mode, shown_time
from servers.admin.runner import run
from servers.protocol.limits import REPLICAS_MAX
from servers.protocol.names import escape
from servers.protocol.naming_api import CHUNK_SIZE_ATTRIBUTE, REPLICAS_ATTRIBUTE, Attributes

Entry = tuple[bytes, Attributes]


def ls(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory or a file.")] = "/",
    long: Annotated[bool, typer.Option("-l", help="With mode, links, owner, size and time.")] = False,
    json: Json = False,
) -> None:
    """List a directory."""

    async def work(connection: Connection) -> list[Entry]:
        return [entry async for entry in tree.list_directory(connection, os.fsencode(path))]

    entries = sorted(run(naming_urls(ctx), work), key=lambda entry: entry[0])
    if json:
        print_json([as_json(name, attributes) for name, attributes in entries])
    elif long:
        headings = ("mode", "links", "uid", "gid", "size", "modified", "name")
        print_table(headings, map(_long, entries), numbers=("links", "uid", "gid", "size"))
    else:
        for name, _ in entries:
            typer.echo(escape(name))


def _long(entry: Entry) -> tuple[object, ...]:
    name, a = entry
    arrow = f" -> {escape(a.target)}" if stat_module.S_ISLNK(a.mode) else ""
    return (
        shown_mode(a.mode), a.nlink, a.uid, a.gid, a.size, shown_time(a.mtime_ns), escape(name) + arrow,
    )  # fmt: skip


def stat(ctx: typer.Context, path: Name, json: Json = False) -> None:
    """Show what is known of a path."""
    raw = os.fsencode(path)

    async def work(connection: Connection) -> Attributes:
        return await tree.resolve(connection, raw)

    found = as_json(b"/" + b"/".join(tree.parts_of(raw)), run(naming_urls(ctx), work))
    if json:
        print_json(found)
    else:
        print_facts((name.replace("_", " "), value) for name, value in found.items() if value is not None)


def as_json(name: bytes, a: Attributes) -> dict[str, Any]:  # Any: values of JSON.
    return {
        "name": escape(name),
        "inode": a.ino,
        "mode": shown_mode(a.mode),
        "permissions": f"{stat_module.S_IMODE(a.mode):04o}",
        "links": a.nlink,
        "uid": a.uid,
        "gid": a.gid,
        "size": a.size,
        "stored_bytes": a.stored_bytes if a.is_file else None,
        "chunk_size": a.chunk_size,
        "replicas": a.replicas,
        "accessed_ns": a.atime_ns,
        "modified_ns": a.mtime_ns,
        "changed_ns": a.ctime_ns,
        "target": escape(a.target) if stat_module.S_ISLNK(a.mode) else None,
    }


def mkdir(
    ctx: typer.Context,
    path: Name,
    parents: Annotated[bool, typer.Option("-p", "--parents", help="Make parents too; no error if it exists.")] = False,
) -> None:
    """Make a directory."""
    umask = os.umask(0)
    os.umask(umask)

    async def work(connection: Connection) -> None:
        async with connection.session("dcs mkdir") as session:
            await tree.make_directory(connection, session, os.fsencode(path), 0o777 & ~umask, parents=parents)

    run(naming_urls(ctx), work)


def rmdir(ctx: typer.Context, path: Name) -> None:
    """Remove an empty directory."""

    async def work(connection: Connection) -> None:
        async with connection.session("dcs rmdir") as session:
            await tree.delete_directory(connection, session, os.fsencode(path))

    run(naming_urls(ctx), work)


def mv(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A new name, or a directory to move it into.")],
    no_clobber: Annotated[bool, typer.Option("-n", "--no-clobber", help="Replace nothing.")] = False,
) -> None:
    """Rename or move, in one atomic step."""

    async def work(connection: Connection) -> None:
        async with connection.session("dcs mv") as session:
            await tree.move(connection, session, os.fsencode(source), os.fsencode(target), replace=not no_clobber)

    run(naming_urls(ctx), work)


def setrep(
    ctx: typer.Context,
    copies: Annotated[int, typer.Argument(min=1, max=REPLICAS_MAX, metavar="N", help="So many copies.")],
    path: Name,
    recursive: Annotated[bool, typer.Option("-R", help="All that is below it, too.")] = False,
) -> None:
    """Ask for another number of copies: of a file, in the background; of what will be made in a directory.

    The same as `setfattr -n user.dcs.replicas -v N` in a mount. `dcs explain` shows what is asked for and what
    is there.
    """

    def value_of(attributes: Attributes) -> bytes | None:
        return str(copies).encode() if attributes.is_file or attributes.is_directory else None

    count = _set_layout(ctx, path, REPLICAS_ATTRIBUTE, value_of, recursive=recursive)
    typer.echo(f"{count} asked for in {copies} copies")


def setchunk(
    ctx: typer.Context,
    size: Annotated[int, typer.Argument(parser=chunk_size, metavar="SIZE", help="1KiB to 64MiB, such as 1M.")],
    path: Name,
    recursive: Annotated[bool, typer.Option("-R", help="All directories below it, too.")] = False,
) -> None:
    """Set the chunk size of the files that will be made in a directory, and of the directories.

    The same as `setfattr -n user.dcs.chunk_size -v BYTES` in a mount. That of a file is fixed when it is made; `dcs
    explain` shows it.
    """

    def value_of(attributes: Attributes) -> bytes | None:
        return str(size).encode() if attributes.is_directory else None

    count = _set_layout(ctx, path, CHUNK_SIZE_ATTRIBUTE, value_of, recursive=recursive)
    if not count:
        where = escape(b"/" + b"/".join(tree.parts_of(os.fsencode(path))))
        raise Problem(f"{where}: a file's chunk size is fixed when it is made; set its directory's, and copy the file")
    typer.echo(f"what is made in {count} {'directory' if count == 1 else 'directories'} has chunks of {size} bytes")


def _set_layout(
    ctx: typer.Context, path: str, name: bytes, value_of: Callable[[Attributes], bytes | None], *, recursive: bool
) -> int:
    """Sets the attribute of all that have a value for it. Returns how many."""
    raw = os.fsencode(path)

    async def work(connection: Connection) -> int:
        count = 0
        async with connection.session(f"dcs {ctx.info_name}") as session:
            waiting = [(raw, await tree.resolve(connection, raw))]
            while waiting:
                place, attributes = waiting.pop()
                value = value_of(attributes)
                if value is not None:
                    await session.change("setxattr", ino=attributes.ino, name=name, value=value, flags=0)
                    count += 1
                if attributes.is_directory and recursive:
                    async for child, found in tree.list_directory(connection, place):
                        waiting.append((place + b"/" + child, found))
        return count

    return run(naming_urls(ctx), work)
