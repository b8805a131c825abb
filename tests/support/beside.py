"""The same deeds on a plain local directory and on a mount: what happens must be the same.

    def deed(place: Path) -> object:
        (place / "a").mkdir(0o750)
        return attempt(os.rmdir, place / "missing"), facts(place)

    beside.same(deed)

So the expectation is the local kernel's, not ours. Each deed gets an empty directory of its own on either side.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

AT_FDCWD = -100
CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it
KINDS = ("file", "directory", "fifo", "socket", "character", "block", "symlink")
TIMES = ("atime", "mtime", "ctime")


class Beside:
    """`same` runs a deed on both sides."""

    def __init__(self, local: Path, mounted: Path) -> None:
        self.local = local
        self.mounted = mounted
        self._count = 0

    def same(self, deed: Callable[[Path], T]) -> T:
        """What the deed returned, on both sides alike."""
        self._count += 1
        found = []
        for side in (self.local, self.mounted):
            place = side / f"deed{self._count}"
            place.mkdir(mode=0o755)
            place.chmod(0o755)
            try:
                found.append(deed(place))
            finally:
                remove(place)
        plain, mounted = found
        assert mounted == plain, f"{difference(plain, mounted)}"
        return mounted


def difference(plain: object, mounted: object, where: str = "") -> str:
    """Only what differs, with the way to it."""
    if isinstance(plain, dict) and isinstance(mounted, dict):
        keys = [*plain, *(key for key in mounted if key not in plain)]
        pairs = [(key, plain.get(key, "(nothing)"), mounted.get(key, "(nothing)")) for key in keys]
    elif isinstance(plain, list | tuple) and isinstance(mounted, list | tuple) and len(plain) == len(mounted):
        pairs = [(index, a, b) for index, (a, b) in enumerate(zip(plain, mounted, strict=True))]
    else:
        return f"{where}: locally {plain!r}, on the mount {mounted!r}"
    return "\n".join(difference(a, b, f"{where}[{key}]") for key, a, b in pairs if a != b)


def remove(place: Path) -> None:
    """The tree is gone, also where its modes forbid it to others."""
    shutil.rmtree(place, onerror=lambda function, path, _: None)
    if os.path.lexists(place):
        shutil.rmtree(place)


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The name of the errno, or "done"."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def make(kind: str, path: str | Path) -> None:
    """A thing of one of KINDS, and some that are variations of these."""
    if kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    elif kind == "directory":
        os.mkdir(path, 0o755)
    elif kind == "full directory":
        os.mkdir(path, 0o755)
        make("file", os.path.join(path, "inside"))
    elif kind == "fifo":
        os.mkfifo(path, 0o644)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    elif kind == "character":
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))
    elif kind == "block":
        os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(259, 300))
    elif kind == "symlink":
        os.symlink("nowhere", path)
    elif kind == "loop":
        os.symlink(os.path.basename(path), path)
    elif kind == "symlink to a file":
        make("file", f"{path}-target")
        os.symlink(f"{os.path.basename(path)}-target", path)
    elif kind == "symlink to a directory":
        make("directory", f"{path}-target")
        os.symlink(f"{os.path.basename(path)}-target", path)
    else:
        assert kind == "nothing", kind


def facts(path: str | Path) -> dict[str, object]:
    """What lstat(2) says that must be the same everywhere."""
    found = os.lstat(path)
    is_directory = stat.S_ISDIR(found.st_mode)
    return {
        "mode": oct(found.st_mode), "owner": (found.st_uid, found.st_gid), "links": found.st_nlink,
        "size": None if is_directory else found.st_size, "device": found.st_rdev,
    }  # fmt: skip


def tree(place: Path) -> dict[str, object]:
    """The facts of everything below."""
    found: dict[str, object] = {".": facts(place)}
    for directory, names, files in os.walk(place):
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, place)
            found[shown if len(shown) < 60 else f"{shown[:60]}...{len(shown)}"] = facts(path)
    return found


def changed_times(call: Callable[[], object], **paths: str | Path) -> dict[str, object]:
    """Which times of the paths a call changed; none may have been looked at less than a clock's tick before."""
    before = {name: os.lstat(path) for name, path in paths.items()}
    wait_for_the_clock()
    result = attempt(call)
    after = {name: os.lstat(path) for name, path in paths.items()}
    found: dict[str, object] = {"result": result}
    for name in paths:
        fields = ((t, f"st_{t}_ns") for t in TIMES)
        found[name] = " ".join(t for t, f in fields if getattr(before[name], f) != getattr(after[name], f))
    return found


def wait_for_the_clock() -> None:
    """The clock that the kernel takes file times from has ticked, twice to be sure."""
    for _ in range(2):
        began = time.clock_gettime(CLOCK_REALTIME_COARSE)
        while time.clock_gettime(CLOCK_REALTIME_COARSE) == began:
            time.sleep(0.001)


def rename2(source: str | Path, target: str | Path, flags: int) -> None:
    """renameat2(2). Raises OSError as os.rename."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")
