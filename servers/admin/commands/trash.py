"""trash and restore: removed files, and bringing them back."""

from __future__ import annotations

import errno
import os
from typing import Annotated, Any

import typer

from servers.admin import tree
from servers.admin.commands.options import Json, naming_urls
from servers.admin.connection import Connection
from servers.admin.errors import Problem, about
from servers.admin.output import human_bytes, print_json, print_table, shown_time
from servers.admin.runner import run
from servers.protocol.errors import Refused
from servers.protocol.names import escape, unescape

Row = dict[str, Any]  # Any: values of JSON.


def trash(
    ctx: typer.Context,
    empty: Annotated[bool, typer.Option("--empty", help="Let go of all of it for good.")] = False,
    json: Json = False,
) -> None:
    """Show removed files that can be restored."""

    async def work(connection: Connection) -> Row:
        if empty:
            return await connection.naming.json("POST", "/v1/trash/empty", {})
        return await connection.naming.json("GET", "/v1/trash")

    found = run(naming_urls(ctx), work)
    if json:
        print_json(found)
    elif empty:
        typer.echo(f"{found['files']} removed files and directories are gone, {human_bytes(found['bytes'])}")
    else:
        rows = [
            (shown_time(row["removed_s"] * 10**9), f"{row['due_seconds'] / 3600:.1f} h", human_bytes(row["bytes"]),
             row["path"])
            for row in found["removed"] if not row["is_directory"]
        ]  # fmt: skip
        print_table(("removed", "kept for", "size", "path"), rows, numbers=("kept for", "size"))


def restore(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where the file was, or the directory it was in.")],
    to: Annotated[str | None, typer.Option("--to", metavar="PATH", help="Bring the file back under this name.")] = None,
) -> None:
    """Bring a removed file back, or all removed files below a directory: of each the one removed last."""
    wanted = b"/" + b"/".join(tree.parts_of(os.fsencode(path)))

    async def work(connection: Connection) -> tuple[list[bytes], list[bytes]]:
        rows = (await connection.naming.json("GET", "/v1/trash"))["removed"]
        chosen = choose(wanted, rows)
        if not chosen:
            raise Problem(f"{escape(wanted)} is not in the trash; dcs trash shows what is")
        if to is not None and list(chosen) != [wanted]:
            raise Problem("--to brings one file back, and this was a directory")
        names = {inode: os.fsencode(to) if to is not None else place for place, inode in chosen.items()}
        return await _restore(connection, names)

    back, there = run(naming_urls(ctx), work)
    for place in back:
        typer.echo(escape(place))
    for place in there:
        typer.echo(f"dcs: {escape(place)}: File exists; --to brings it back under another name", err=True)
    raise typer.Exit(1 if there else 0)


def choose(wanted: bytes, rows: list[Row]) -> dict[bytes, int]:
    """The files to restore, inode by path: what had this path, else all that was below it; of equals the last."""
    files = {unescape(row["path"]): row["inode"] for row in sorted(rows, key=_age) if not row["is_directory"]}
    if wanted in files:
        return {wanted: files[wanted]}
    below = wanted.rstrip(b"/") + b"/"
    return {place: inode for place, inode in sorted(files.items()) if place.startswith(below)}


def _age(row: Row) -> tuple[int, int]:
    return row["removed_s"], row["inode"]


async def _restore(connection: Connection, names: dict[int, bytes]) -> tuple[list[bytes], list[bytes]]:
    """The places that files were brought back to, and those that were taken."""
    back, there = [], []
    async with connection.session("dcs restore") as session:
        for inode, place in names.items():
            parts = tree.parts_of(place)
            above = b"/" + b"/".join(parts[:-1])
            await tree.make_directory(connection, session, above, 0o755, parents=True)
            parent, name = await tree.find_parent(connection, place)
            try:
                await session.change("restore", ino=inode, parent=parent, name=name)
                back.append(place)
            except Refused as error:
                if error.errno != errno.EEXIST:
                    raise about(place, error) from error
                there.append(place)
    return back, there
