"""ls, stat, mkdir, rmdir, mv: the tree, without a mount."""

from __future__ import annotations

import os
import stat as stat_module
from typing import Annotated, Any

import typer

from servers.admin import tree
from servers.admin.commands.options import Json, Name, naming_urls
from servers.admin.connection import Connection
from servers.admin.output import print_facts, print_json, print_table, shown_mode, shown_time
from servers.admin.runner import run
from servers.protocol.limits import REPLICAS_MAX
from servers.protocol.names import escape
from servers.protocol.naming_api import REPLICAS_ATTRIBUTE, Attributes

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
    raw = os.fsencode(path)

    async def work(connection: Connection) -> int:
        count = 0
        async with connection.session("dcs setrep") as session:
            waiting = [(raw, await tree.resolve(connection, raw))]
            while waiting:
                name, attributes = waiting.pop()
                if attributes.is_file or attributes.is_directory:
                    value = str(copies).encode()
                    await session.change("setxattr", ino=attributes.ino, name=REPLICAS_ATTRIBUTE, value=value, flags=0)
                    count += 1
                if attributes.is_directory and recursive:
                    async for child, found in tree.list_directory(connection, name):
                        waiting.append((name + b"/" + child, found))
        return count

    typer.echo(f"{run(naming_urls(ctx), work)} asked for in {copies} copies")
