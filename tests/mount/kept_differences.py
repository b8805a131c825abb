"""Where the mount may do otherwise than a local file system, each with its reason; all of them are the README's Limits.

The model test asks here before it calls a difference an error. What the model test does not do
at all, because the kernel never asks a mount made with pyfuse3: fallocate and hole punching, SEEK_HOLE and
SEEK_DATA, O_TMPFILE, locks between mounts, ioctls of inode flags, birth times. Sizes of directories and
st_blocks belong to each file system alone. The largest file is 4 PiB, a path's target 4,095 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.tree_calls import Call, Outcome


@dataclass(frozen=True)
class Difference:
    what: str
    reason: str
    is_it: Callable[[Call, Outcome, Outcome], bool]
    """The call, what the plain directory did, what the mount did."""


def _only_times_moved_more(call: Call, plain: Outcome, mounted: Outcome) -> bool:
    """All is the same, but that the mount moved times that the plain directory left."""
    pairs = list(zip(plain.seen, mounted.seen, strict=True))
    return plain.result == mounted.result and all(
        a._replace(moved=b.moved) == b and set(a.moved) <= set(b.moved) for a, b in pairs
    )


KEPT = [
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
