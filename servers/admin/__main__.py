"""`python -m servers.admin`, installed as `dcs`.

Exit status 0 is success; otherwise one line on stderr says what is wrong, and 2 is for words that make no
command. Interrupted, it is 128 plus the signal's number: 130 for Ctrl-C, 141 when nobody reads on.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from servers.admin.app import app
from servers.admin.errors import Problem, one_line
from servers.protocol.errors import DcsError

BUG = 70
"""EX_SOFTWARE of sysexits.h: not the caller's fault."""


def main() -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        status = app(prog_name="dcs", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:  # It was called with the wrong words.
        _fail(_usage_line(error), error.exit_code)
    except BrokenPipeError:
        _end_unread()
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Typer makes 1 of it, and says nothing.
            _end_unread()
        raise
    except (DcsError, OSError) as error:
        _fail(one_line(error), 1)
    except Exception as error:
        if os.environ.get("DCS_TRACEBACK"):
            raise
        _fail(f"a bug: {type(error).__name__}: {one_line(error)}; DCS_TRACEBACK=1 shows where", BUG)
    sys.exit(status or 0)


def _usage_line(error: typer.TyperException) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dcs"
    return f"{one_line(Problem(error.format_message())).rstrip('.')} (see {command} --help)"


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_unread() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # What is left to print goes nowhere, in silence.
    sys.exit(128 + signal.SIGPIPE)


def _fail(line: str, status: int) -> NoReturn:
    print(f"dcs: {line}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
