"""One of several processes that make system calls at the same moment.

    python -S racer.py DIRECTORY

Each line of its input is a JSON list: the moment (CLOCK_MONOTONIC, which all processes of a machine share),
a verb, and its arguments, paths relative to the directory. It answers with the errno, 0 for done. Ends with its input.

Stands alone, so that it starts quickly; tests/support/racers.py drives it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def rename2(source: str, target: str, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def write(path: str, flags: int, offset: int, letter: str, length: int) -> None:
    """By one call, to be flushed as one commit by the close. O_APPEND has the offset ignored."""
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        assert os.pwrite(descriptor, letter.encode() * length, offset) == length
    finally:
        os.close(descriptor)


VERBS: dict[str, Callable[..., object]] = {
    "create": create, "mkdir": os.mkdir, "rmdir": os.rmdir, "link": os.link, "unlink": os.unlink, "stat": os.stat,
    "rename": os.rename, "rename2": rename2, "write": write, "truncate": os.truncate,
}  # fmt: skip


def main() -> None:
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        moment, verb, *arguments = json.loads(line)
        time.sleep(max(0.0, moment - time.monotonic()))
        try:
            VERBS[verb](*arguments)
        except OSError as error:
            print(error.errno, flush=True)
        else:
            print(0, flush=True)


if __name__ == "__main__":
    main()
