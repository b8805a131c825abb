"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from servers.protocol.geometry import is_chunk_size

Name = Annotated[str, typer.Argument(metavar="NAME", help="A path in the volume, as below a mountpoint.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every 2 s, until Ctrl-C.")]

_UNITS = {"": 1, "K": 2**10, "M": 2**20}


def naming_urls(ctx: typer.Context) -> str | None:
    """What --naming-url or NAMING_URL says."""
    given: str | None = ctx.obj
    return given


def chunk_size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9})\s*([KM]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not is_chunk_size(size):
        raise typer.BadParameter("a power of two from 1KiB to 64MiB is wanted, such as 8MiB or 1024")
    return size
