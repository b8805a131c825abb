"""`python -m servers.admin`, installed as `dcs`.

Exit status 0 is success; otherwise one line on stderr says what is wrong. Interrupted, it is
128 plus the signal's number: 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from servers.admin.app import app
from servers.admin.errors import one_line
from servers.protocol.errors import DcsError

BUG = 70
"""EX_SOFTWARE of sysexits.h: not the caller's fault."""


def main() -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        app(prog_name="dcs")
    except (DcsError, OSError) as error:
        _fail(one_line(error), 1)
    except Exception as error:
        if os.environ.get("DCS_TRACEBACK"):
            raise
        _fail(f"a bug: {type(error).__name__}: {one_line(error)}; DCS_TRACEBACK=1 shows where", BUG)
    sys.exit(0)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _fail(line: str, status: int) -> NoReturn:
    print(f"dcs: {line}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
