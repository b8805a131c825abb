"""mount, umount and up: what happens on this machine.

What runs a cluster is imported by the commands that do, so that all others start without it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from servers.admin.access import find_naming_urls, secret_file
from servers.admin.commands.options import naming_urls
from servers.admin.errors import Problem
from servers.admin.output import WIDE, warn

UNMOUNT_SECONDS = 60.0
"""Twice what a mount may need to store what it holds."""

Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT")]


def mount(ctx: typer.Context, where: Mountpoint) -> None:
    """Mount the volume: python -m fusefs MOUNTPOINT, with all further options passed on.

    Returns when the mount works; with --foreground, when it has ended.
    """
    environment = {**os.environ, "NAMING_URL": find_naming_urls(naming_urls(ctx))}
    file = secret_file(os.environ)
    if file is not None:
        environment["DCS_SECRET_FILE"] = os.fspath(file)
    sys.stdout.flush()
    os.execve(  # noqa: S606 - the mount takes this process's place, with its terminal and its exit status
        sys.executable, [sys.executable, "-m", "fusefs", os.fspath(where), *ctx.args], environment
    )


def recover(ctx: typer.Context) -> None:
    """Make an empty Redis the volume again: python -m servers.naming.recover, with all options passed on."""
    if find_spec("servers.naming") is None:
        raise Problem("servers.naming is not installed here: where it is, python -m servers.naming.recover")
    file = secret_file(os.environ)
    environment = {**os.environ, **({"DCS_SECRET_FILE": os.fspath(file)} if file is not None else {})}
    sys.stdout.flush()
    command = [sys.executable, "-m", "servers.naming.recover", *ctx.args]
    os.execve(sys.executable, command, environment)  # noqa: S606 - with this terminal and its exit status


def umount(where: Mountpoint) -> None:
    """Unmount; all that was written is stored when this returns with 0."""
    from servers.admin.unmount import unmount

    unmount(where, UNMOUNT_SECONDS)


def up(
    where: Annotated[Path | None, typer.Argument(metavar="MOUNTPOINT")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Unmount and stop all of it; nothing is lost.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show what runs where.")] = False,
) -> None:
    """Run a whole cluster on this machine and mount it: Redis, a naming server, three storage nodes."""
    from rich.console import Console

    from servers.admin.cluster import lifecycle, table
    from servers.admin.cluster.settings import read_settings

    settings = read_settings()
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if [where is not None, stop, status].count(True) != 1:
        raise typer.BadParameter("give a MOUNTPOINT, or --stop, or --status")
    if stop:
        typer.echo("Stopped." if lifecycle.down(settings, warn) else "Nothing was running.")
    elif status:
        report = lifecycle.status(settings)
        table.show(report, console)
        raise typer.Exit(0 if report.is_healthy else 1)
    elif where is not None:
        report = lifecycle.up(where, settings, warn)
        if not report.changed:
            typer.echo("It is running already; nothing was changed.")
        table.show(report, console)
        typer.echo(table.try_next(report))
