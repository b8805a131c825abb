"""The mountpoint as the kernel sees it: mounted, dead, busy, or fit to be mounted on.

Reads /proc instead of touching the mount where it can, because a file system that hangs makes
everyone hang who looks at it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from servers.admin.cluster.errors import ClusterProblem, MountBusy

COMMAND_SECONDS = 10.0
FUSE_SUPER_MAGIC = b"65735546"  # statfs(2)
USERS_SHOWN = 5


def canonical(path: Path) -> Path:
    """The path as mountinfo has it; the last part is not looked at, for it may be a mount that hangs."""
    absolute = Path(os.path.abspath(path))
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def is_mounted(mountpoint: Path) -> bool:
    return any(path == mountpoint for path in _mounts())


def _mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # proc(5): blanks and backslashes of the path are octal escapes.
        path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split()[4])
        yield Path(os.fsdecode(path))


def is_dead(mountpoint: Path) -> bool:
    """The kernel has the mount, but its process is gone."""
    try:
        os.statvfs(mountpoint)  # Asks the process each time; stat(2) may answer from what the kernel knows.
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def clear_dead(mountpoint: Path) -> None:
    """A mount whose process is gone is taken away; any other is left alone."""
    if is_mounted(mountpoint) and is_dead(mountpoint):
        subprocess.run(
            ["fusermount3", "-uz", str(mountpoint)], capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
        if is_mounted(mountpoint):
            raise ClusterProblem(
                f"{mountpoint} is a dead mount that cannot be taken away; as root: umount -l {mountpoint}"
            )


def make_ready(mountpoint: Path) -> None:
    """An empty directory that nothing is mounted on; it is made when its parent is there. Raises ClusterProblem."""
    if is_mounted(mountpoint):
        raise ClusterProblem(f"{mountpoint} is already a mountpoint; take another directory or unmount it")
    try:
        with contextlib.suppress(FileExistsError):
            mountpoint.mkdir()
        with os.scandir(mountpoint) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        raise ClusterProblem(f"Cannot mount on {mountpoint}: {error.strerror}") from error
    if not is_empty:
        raise ClusterProblem(f"Cannot mount on {mountpoint}: it is not empty, and a mount would hide what is there")
    if not os.access(mountpoint, os.W_OK):
        raise ClusterProblem(f"Cannot mount on {mountpoint}: you may not write to it")


def check_fuse() -> None:
    """FUSE can be used by this user. Raises ClusterProblem."""
    if not os.path.exists("/dev/fuse"):
        raise ClusterProblem("There is no /dev/fuse; as root: modprobe fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ClusterProblem("You may not use /dev/fuse; as root: chmod 666 /dev/fuse, or join its group")
    if os.geteuid() != 0 and not os.path.exists("/etc/mtab"):
        raise ClusterProblem(
            "There is no /etc/mtab, so you could not unmount; as root: ln -s /proc/self/mounts /etc/mtab"
        )


def works(mountpoint: Path) -> bool:
    """It is mounted and answers: the answer is that of a FUSE file system, not of the directory beneath."""
    if not is_mounted(mountpoint):
        return False
    # In a process of its own, which can be given up when the mount hangs.
    try:
        asked = subprocess.run(
            ["stat", "--file-system", "--format=%t", str(mountpoint)], capture_output=True, timeout=COMMAND_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return asked.stdout.strip() == FUSE_SUPER_MAGIC


def unmount(mountpoint: Path) -> None:
    """The kernel let the mount go; its process ends as soon as it has stored what it holds.

    Raises MountBusy while somebody works there: then nothing has changed.
    """
    done = subprocess.run(
        ["fusermount3", "-u", str(mountpoint)], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode == 0 or not is_mounted(mountpoint):
        return
    if "busy" not in done.stderr:
        raise ClusterProblem(f"Cannot unmount {mountpoint}: {done.stderr.strip()}")
    who = ", ".join(users(mountpoint)) or "a process of another user"
    raise MountBusy(f"{mountpoint} is in use by {who}; everything keeps running. End that, then try again")


def users(mountpoint: Path) -> list[str]:
    """The processes that have something open below the mountpoint, as far as this user may see."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and any(_is_below(path, mountpoint) for path in _open_paths(process)):
            with contextlib.suppress(OSError):
                found.append(f"{(process / 'comm').read_text(errors='replace').strip()} (pid {process.name})")
    return found[:USERS_SHOWN] + (["..."] if len(found) > USERS_SHOWN else [])


def _open_paths(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield os.readlink(process / "cwd")
        yield os.readlink(process / "root")
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(link)
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            yield line[73:]  # The path's column, proc(5).


def _is_below(path: str, mountpoint: Path) -> bool:
    return path == str(mountpoint) or path.startswith(f"{mountpoint}/")
