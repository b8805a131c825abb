"""How answers look: tables for people, JSON for programs, bars for the patient."""

from __future__ import annotations

import contextlib
import json
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

WIDE = 10_000
"""Columns where there is no terminal: a pipe gets every line whole."""


def print_json(answer: object) -> None:
    json.dump(answer, sys.stdout, indent=2)
    print()


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Rows below their headings; the columns in `numbers` to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(str(value)))
    _print(table)


def _print(table: Table) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())


def warn(line: str) -> None:
    print(f"dcs: {line}", file=sys.stderr)


class Bar:
    """How far a transfer is; shows nothing by itself."""

    def begin(self, total: int | None) -> None:
        """So many bytes will come; None when nobody knows."""

    def advance(self, count: int) -> None:
        """So many more have come."""


class _ShownBar(Bar):
    def __init__(self, bars: Progress, what: str) -> None:
        self._bars = bars
        self._task = bars.add_task(what, total=None)

    def begin(self, total: int | None) -> None:
        self._bars.update(self._task, total=total)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Bar]:
    """A bar on stderr while inside, if that is a terminal."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True),
               TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _ShownBar(bars, what)


def human_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


def shown_mode(mode: int) -> str:
    return stat.filemode(mode)


def shown_time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds // 1_000_000_000))
