"""python -m servers.admin.cluster up MOUNTPOINT | up --status | up --stop"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from servers.admin.cluster import lifecycle, table
from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.settings import ClusterSettings


def main(arguments: list[str]) -> int:
    out, err = Console(), Console(stderr=True)

    def say(line: str) -> None:
        err.print(line, markup=False, highlight=False, soft_wrap=True)

    settings = ClusterSettings()
    try:
        match arguments:
            case ["up", "--status"]:
                report = lifecycle.status(settings)
                table.show(report, out)
                return 0 if report.is_healthy else 1
            case ["up", "--stop"]:
                out.print("Stopped." if lifecycle.down(settings, say) else "Nothing was running.")
            case ["up", where]:
                report = lifecycle.up(Path(where), settings, say)
                if not report.changed:
                    out.print("It is running already; nothing was changed.")
                table.show(report, out)
                out.print(
                    table.try_next(report, str(Path(sys.executable).with_name("dcs"))),
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            case _:
                say(__doc__ or "")
                return 2
    except ClusterProblem as problem:
        say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
