"""Unmounting for certain: the kernel has let go, and the mount's process has stored all it held and ended.

fusermount3 returns when the kernel has let go; the daemon may still be storing then. It is
found beforehand among the processes, by its command line, and waited for through a pidfd.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

from servers.admin.cluster import mountpoint
from servers.admin.errors import Problem
from servers.protocol.names import escape


def unmount(where: Path, seconds: float) -> None:
    """Raises Problem or ClusterProblem when it is not mounted, is busy, or its process does not end in time."""
    place = mountpoint.canonical(where)
    shown = escape(os.fsencode(place))
    if not mountpoint.is_mounted(place):
        raise Problem(f"{shown} is not mounted")
    daemons = _open_daemons(place)
    try:
        mountpoint.clear_dead(place)
        if mountpoint.is_mounted(place):
            mountpoint.unmount(place)
        for pid, pidfd in daemons:
            if not select.select([pidfd], [], [], seconds)[0]:
                raise Problem(f"{shown} is unmounted, but its process (pid {pid}) is still storing data")
    finally:
        for _, pidfd in daemons:
            os.close(pidfd)


def _open_daemons(place: Path) -> list[tuple[int, int]]:
    """The pid and a pidfd of every process that serves the mount."""
    found = []
    for pid in _daemons(place):
        with contextlib.suppress(ProcessLookupError):
            found.append((pid, os.pidfd_open(pid)))
    return found


def _daemons(place: Path) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"fusefs" in words and _serves(process, words[words.index(b"fusefs") + 1 :], place):
                yield int(process.name)


def _serves(process: Path, words: list[bytes], place: Path) -> bool:
    """One of the words is the mountpoint, as seen from where the process was started."""
    cwd = os.readlink(process / "cwd")
    return any(word and mountpoint.canonical(Path(cwd, os.fsdecode(word))) == place for word in words)
