"""`--watch`: shows the same again every 2 s, until Ctrl-C, and goes on over trouble that passes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import typer

from servers.admin.errors import one_line
from servers.protocol.errors import DcsError

WATCH_SECONDS = 2.0
_CLEAR = "\x1b[H\x1b[2J"


def show_again(show: Callable[[], None], *, watch: bool) -> None:
    """Calls `show`, with `watch` again and again; raises what it raises only without."""
    if not watch:
        show()
        return
    while True:
        if sys.stdout.isatty():
            typer.echo(_CLEAR, nl=False)
        try:
            show()
        except DcsError as error:
            typer.echo(one_line(error), err=True)
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)
