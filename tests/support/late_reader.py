"""Runs a mount that takes up a request only when it is told to.

    python -m tests.support.late_reader DIRECTORY PYTHON -m fusefs MOUNTPOINT ...

While the file `hold` is in the directory, the mount makes the file `held` when the kernel has a request for it, and
reads it after `hold` is gone: as if it were busy for so long between poll(2) and read(2).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import trio

from fusefs.__main__ import main

HELD_SECONDS_MAX = 60.0
wait_readable = trio.lowlevel.wait_readable


def delay_requests(directory: Path) -> None:
    async def wait(file: int) -> None:
        await wait_readable(file)
        if (directory / "hold").exists() and os.readlink(f"/proc/self/fd/{file}") == "/dev/fuse":
            (directory / "held").touch()
            end_at = time.monotonic() + HELD_SECONDS_MAX
            while (directory / "hold").exists() and time.monotonic() < end_at:
                time.sleep(0.01)

    trio.lowlevel.wait_readable = wait  # type: ignore[assignment]


if __name__ == "__main__":
    delay_requests(Path(sys.argv[1]))
    sys.exit(main(sys.argv[5:]))
