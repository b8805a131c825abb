"""Processes of a cluster whose supervisor is gone: found by the mark in their environment, and ended.

Only our own user's processes can be read and so be found; that is who started them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.home import Home
from servers.admin.cluster.programs import MARK, MOUNT_STOP_SECONDS, STOP_SECONDS


@dataclass(frozen=True)
class Leftover:
    pid: int
    command: str

    @property
    def is_mount(self) -> bool:
        return "-m fusefs" in self.command


def find(home: Home) -> list[Leftover]:
    mark = b"\0" + os.fsencode(f"{MARK}={home.path}") + b"\0"
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in b"\0" + (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(Leftover(int(process.name), command.strip()))
    return found


def end(home: Home) -> list[Leftover]:
    """None is left; returns those there were. Mounts go first, and are never killed: they may hold data."""
    ended = find(home)
    mounts = [leftover for leftover in ended if leftover.is_mount]
    if not _signal_and_wait(mounts, signal.SIGTERM, MOUNT_STOP_SECONDS):
        raise ClusterProblem(f"A mount of an earlier start does not end: pid {mounts[0].pid}")
    others = [leftover for leftover in ended if not leftover.is_mount]
    if not _signal_and_wait(others, signal.SIGTERM, STOP_SECONDS):
        remaining = find(home)
        if not _signal_and_wait(remaining, signal.SIGKILL, STOP_SECONDS):
            raise ClusterProblem(f"Processes of an earlier start do not end: {remaining}")
    return ended


def _signal_and_wait(leftovers: list[Leftover], number: signal.Signals, seconds: float) -> bool:
    for leftover in leftovers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leftover.pid, number)
    deadline = time.monotonic() + seconds
    while any(exists(leftover.pid) for leftover in leftovers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def exists(pid: int) -> bool:
    """The process runs. A zombie has ended: whoever adopted it will notice in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
