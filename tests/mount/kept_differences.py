"""Where the mount may do otherwise than a local file system, each with its reason; all of them are the README's Limits.

The model test asks here before it calls a difference an error. What the model test does not do
at all, because the kernel never asks a mount made with pyfuse3: fallocate and hole punching, SEEK_HOLE and
SEEK_DATA, O_TMPFILE, locks between mounts, ioctls of inode flags, birth times. Sizes of directories and
st_blocks belong to each file system alone. The largest file is 4 PiB, a path's target 4,095 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.support.tree_calls import Call, Object, Outcome


@dataclass(frozen=True)
class Difference:
    what: str
    reason: str
    is_it: Callable[[Call, Outcome, Outcome], bool]
    """The call, what the plain directory did, what the mount did."""
    keeps_mode_of: Literal["", "plain", "mounted"] = ""
    """Whose mode both files have then, so that all that follows can be compared."""


def _only_times_moved_more(call: Call, plain: Outcome, mounted: Outcome) -> bool:
    """All is the same, but that the mount moved times that the plain directory left."""
    pairs = list(zip(plain.seen, mounted.seen, strict=True))
    return plain.result == mounted.result and all(
        a._replace(moved=b.moved) == b and set(a.moved) <= set(b.moved) for a, b in pairs
    )


def _is_of_a_directory(outcome: Outcome) -> bool:
    return bool(outcome.seen) and isinstance(outcome.seen[0].now, Object) and outcome.seen[0].now.mode[0] == "d"


def _only_fifo_times_moved_less(call: Call, plain: Outcome, mounted: Outcome) -> bool:
    """All is the same, but that the mount left times of a FIFO that the plain directory moved."""
    pairs = [(a, b) for a, b in zip(plain.seen, mounted.seen, strict=True) if a != b]
    return plain.result == mounted.result and all(
        isinstance(a.now, Object) and a.now.mode[0] == "p" and b._replace(moved=a.moved) == a for a, b in pairs
    )


def _keeps_setgid(call: Call, plain: Outcome, mounted: Outcome) -> bool:
    """All is the same, but that the plain file lost set-group-id without the group's right to execute."""
    pairs = [(a.now, b.now) for a, b in zip(plain.seen, mounted.seen, strict=True) if a != b]
    return plain.result == mounted.result and all(
        isinstance(a, Object)
        and isinstance(b, Object)
        and b.mode[6] == "S"
        and a == b._replace(mode=f"{b.mode[:6]}-{b.mode[7:]}")
        for a, b in pairs
    )


def _loses_set_ids(plain: Outcome, mounted: Outcome) -> bool:
    """All is the same, but that the mounted file lost what a write by anybody but root ends."""
    pairs = [(a.now, b.now) for a, b in zip(plain.seen, mounted.seen, strict=True) if a != b]
    return plain.result == mounted.result and all(
        isinstance(a, Object) and isinstance(b, Object) and b == a._replace(mode=_without_set_ids(a.mode))
        for a, b in pairs
    )


def _without_set_ids(mode: str) -> str:
    """As `ls -l` shows it: set-group-id without the group's right to execute, S, stays."""
    owner, group = {"s": "x", "S": "-"}.get(mode[3], mode[3]), {"s": "x"}.get(mode[6], mode[6])
    return f"{mode[:3]}{owner}{mode[4:6]}{group}{mode[7:]}"


KEPT = [
    Difference(
        "set-group-id without the group's right to execute stays when somebody outside the group writes or cuts",
        "Linux takes it off a local file since 6.2, but does not ask a FUSE mount to",
        lambda call, plain, mounted: (
            call.verb in ("write", "pwrite", "copy_file_range", "truncate") and _keeps_setgid(call, plain, mounted)
        ),
        keeps_mode_of="mounted",
    ),
    Difference(
        "through a descriptor that appends, root's writes end set-user-id too, where it was given after the open",
        "such writes come past the kernel's pages, and pyfuse3 does not tell whose they are: so it ends for all",
        lambda call, plain, mounted: (
            call.verb in ("write", "pwrite", "copy_file_range") and call.user == 0 and _loses_set_ids(plain, mounted)
        ),
        keeps_mode_of="plain",
    ),
    Difference(
        "where lseek may go in a directory, but for its beginning and where readdir has been",
        "POSIX leaves it open; tmpfs has no end of a directory, the kernel takes one for FUSE",
        lambda call, plain, mounted: call.verb == "lseek" and _is_of_a_directory(plain),
    ),
    Difference(
        "what is written to a FIFO or read from it does not move its times",
        "the kernel keeps what is in a FIFO to itself: no file system made with FUSE is told",
        lambda call, plain, mounted: (
            call.verb in ("write", "read") and _only_fifo_times_moved_less(call, plain, mounted)
        ),
    ),
    Difference(
        "truncate to the size that a file has already moves its times",
        "truncate(2) leaves it open, ftruncate(2) asks for it; tmpfs does not, ext4 and the mount do",
        lambda call, plain, mounted: (
            call.verb == "truncate" and plain.result is None and _only_times_moved_more(call, plain, mounted)
        ),
    ),
    Difference(
        "a directory's times move by a nanosecond at least",
        "tmpfs gives a directory the coarse time of what was taken out of it, which may be the one that it had",
        lambda call, plain, mounted: (
            call.verb in ("unlink", "rmdir", "rename", "link", "open", "close_slot")
            and not isinstance(plain.result, str)
            and _only_times_moved_more(call, plain, mounted)
        ),
    ),
]


def kept(call: Call, plain: Outcome, mounted: Outcome) -> Difference | None:
    """Why this difference is right, if it is."""
    return next((difference for difference in KEPT if difference.is_it(call, plain, mounted)), None)
