"""gc: what is deleted in the background, why, and how to stop, confirm or undo it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from servers.admin.commands.options import Json, naming_urls
from servers.admin.connection import Connection
from servers.admin.errors import Problem
from servers.admin.garbage import Forecast, forecast
from servers.admin.garbage import undo as bring_back
from servers.admin.output import print_json, print_table
from servers.admin.runner import run
from servers.protocol.ids import parse_extent_text

SHOWN = 50


def gc(
    ctx: typer.Context,
    extents: Annotated[list[str] | None, typer.Argument(metavar="EXTENT", help="With --undo: only these.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, why and when.")] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Let garbage go though it is suspiciously much; for an hour.")
    ] = False,
    hold: Annotated[str, typer.Option("--hold", metavar="WHY", help="Stop all deletions on the nodes.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Let deletions go on after --hold or --undo.")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Hold deletions, and bring back what the nodes have deleted and still keep.")
    ] = False,
    since: Annotated[
        float | None, typer.Option("--since", metavar="SECONDS", min=0, help="With --undo: not what went before.")
    ] = None,
    json: Json = False,
) -> None:
    """Look after what is deleted in the background. It runs by itself: no command is needed for that.

    Exit status of --dry-run and --undo: 0, or 2 when a node could not be asked.
    """
    if sum((dry_run, confirm, bool(hold), resume, undo)) != 1:
        raise Problem("one of --dry-run, --confirm, --hold, --resume, --undo is wanted; see dcs gc --help")
    if (extents or since is not None) and not undo:
        raise Problem("extents and --since go with --undo only")
    urls = naming_urls(ctx)
    if dry_run:
        _show(run(urls, forecast), json)
    elif undo:
        _undo(urls, extents, since, json)
    elif confirm:
        run(urls, lambda c: c.naming.json("POST", "/v1/deletions/confirm", {}))
        typer.echo("The brake is off for an hour: what is garbage is deleted once its grace is over.")
    else:
        run(urls, lambda c: c.naming.json("POST", "/v1/deletions/hold", {"why": hold}))
        typer.echo("No node is told to delete anything until `dcs gc --resume`." if hold else "Deletions go on.")


def _show(found: Forecast, json: bool) -> None:
    if json:
        print_json(found.as_json())
    else:
        for what, why in (("deletions are held", found.held), ("garbage waits for --confirm", found.brake)):
            if why:
                typer.echo(f"{what}: {why}")
        counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(found.verdicts.items()))
        typer.echo(f"{sum(found.verdicts.values())} replicas: {counts or 'none'}; {len(found.doomed)} would be deleted")
        soonest = sorted(found.doomed, key=lambda one: one.due_seconds)
        rows = [(one.extent, one.node, f"{one.due_seconds:.0f} s", one.why) for one in soonest[:SHOWN]]
        if rows:
            print_table(("extent", "node", "due in", "why"), rows, numbers=("node", "due in"))
        if len(soonest) > SHOWN:
            typer.echo(f"{len(soonest) - SHOWN} more; --json shows all")
    _end(found.unknown)


def _undo(urls: str | None, extents: list[str] | None, since: float | None, json: bool) -> None:
    try:
        wanted = [parse_extent_text(text) for text in extents] if extents else None
    except ValueError as error:
        raise Problem(str(error)) from error

    async def work(connection: Connection) -> dict[str, Any]:  # Any: values of JSON.
        return await bring_back(connection, wanted, since)

    done = run(urls, work)
    if json:
        print_json(done)
    else:
        for node, count in done["restored"].items():
            typer.echo(f"node {node}: {count} extents are back")
        typer.echo("Deletions are held until `dcs gc --resume`.")
    _end(done["unknown"])


def _end(unknown: list[str]) -> None:
    for line in unknown:
        typer.echo(f"could not be asked: {line}", err=True)
    raise typer.Exit(2 if unknown else 0)
