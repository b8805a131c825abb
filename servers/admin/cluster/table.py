"""The report on a local cluster as people read it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from servers.admin.cluster.lifecycle import Report
from servers.protocol.names import escape


def show(report: Report, console: Console) -> None:
    console.print(render(report), highlight=False)


def render(report: Report) -> RenderableType:
    if not report.is_running:
        return Text(f"No cluster runs for {report.home}.")
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "pid", "where", "data", "log"):
        table.add_column(heading, overflow="fold")
    for service in report.services:
        table.add_row(
            service.name,
            service.state if service.problem is None else f"{service.state}, not healthy",
            str(service.pid or "-"),
            _text(service.where),
            _text(str(service.data.relative_to(report.home))) if service.data else "-",
            _text(str(service.log.relative_to(report.home))),
            style="red" if service.problem else None,
        )
    title = Text(f"Cluster in {_text(str(report.home))}")
    return Group(title, table, *(Text(problem, style="red") for problem in report.problems))


def try_next(report: Report) -> str:
    """Three commands that show that it works, ready to be pasted."""
    # deploy/up runs a dcs that is not on PATH.
    dcs = "dcs" if shutil.which("dcs") else shlex.quote(str(Path(sys.executable).with_name("dcs")))
    file = shlex.quote(str(report.mountpoint / "hello")) if report.mountpoint else "hello"
    return f"Try:\n  echo hello > {file} && cat {file}\n  {dcs} explain /hello\n  {dcs} status"


def _text(value: str) -> str:
    return escape(value.encode(errors="surrogateescape"))
