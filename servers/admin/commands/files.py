"""create, read, size and delete: files by name, without a mount."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

from servers.admin import local_sink, tree
from servers.admin.commands.options import Name, chunk_size, naming_urls
from servers.admin.connection import Connection
from servers.admin.download import read as read_file
from servers.admin.errors import Problem
from servers.admin.local_sink import Sink
from servers.admin.local_source import LocalSource
from servers.admin.output import progress, warn
from servers.admin.runner import run
from servers.admin.upload import Created, Creation
from servers.admin.upload import create as create_file
from servers.protocol.errors import Refused
from servers.protocol.names import escape
from servers.protocol.naming_api import Attributes


def create(
    ctx: typer.Context,
    local: Annotated[str, typer.Argument(metavar="LOCAL", help="A file here; - is standard input.")],
    name: Name,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    chunk: Annotated[
        int | None,
        typer.Option("--chunk-size", parser=chunk_size, metavar="SIZE", help="1KiB to 64MiB; else its directory's."),
    ] = None,
) -> None:
    """Store a local file in the volume. It appears whole, on stable storage, or not at all."""
    with LocalSource(local) as source:
        wanted = Creation(
            os.fsencode(name), source.mode, os.getuid(), os.getgid(), overwrite, chunk, replicas_min=_replicas_min()
        )

        async def work(connection: Connection) -> Created:
            with progress(f"create {escape(wanted.path)}") as bar:
                return await create_file(connection, source, wanted, bar)

        made = run(naming_urls(ctx), work)
    if made.thin_extents:
        warn(
            f"{made.thin_extents} of {made.extents} extents have fewer replicas than wanted; a node was lost meanwhile"
        )


def _replicas_min() -> int:
    text = os.environ.get("MIN_WRITE_REPLICAS") or "2"
    if not text.isdecimal() or int(text) < 1:
        raise Problem(f"MIN_WRITE_REPLICAS={text}: a whole number from 1 on is wanted")
    return int(text)


def read(
    ctx: typer.Context,
    name: Name,
    local: Annotated[str, typer.Argument(metavar="LOCAL", help="Where to; - is standard output.")],
) -> None:
    """Copy a file out of the volume, every byte checked. A local file appears whole or not at all."""
    path = os.fsencode(name)

    def open_sink(attributes: Attributes) -> Sink:
        return local_sink.open_sink(local, attributes.mode)

    async def work(connection: Connection) -> None:
        with progress(f"read {escape(path)}") as bar:
            await read_file(connection, path, open_sink, bar)

    try:
        run(naming_urls(ctx), work)
    except BrokenPipeError as error:  # Whoever read our output has gone, as `head` does.
        raise typer.Exit(128 + signal.SIGPIPE) from error


def size(ctx: typer.Context, name: Name) -> None:
    """Print a file's size in bytes."""

    async def work(connection: Connection) -> Attributes:
        return await tree.resolve(connection, os.fsencode(name))

    found = run(naming_urls(ctx), work)
    if found.is_directory:
        raise Refused(21, escape(os.fsencode(name)))
    typer.echo(found.size)


def delete(ctx: typer.Context, name: Name) -> None:
    """Delete a file. Its bytes go once nobody has it open."""

    async def work(connection: Connection) -> None:
        async with connection.session("dcs delete") as session:
            await tree.delete_file(connection, session, os.fsencode(name))

    run(naming_urls(ctx), work)
