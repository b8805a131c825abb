"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="A path in the volume, as below a mountpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every 2 s, until Ctrl-C.")]


def naming_urls(ctx: typer.Context) -> str | None:
    """What --naming-url or NAMING_URL says."""
    given: str | None = ctx.obj
    return given
