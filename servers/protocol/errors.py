"""The errors of the cluster: one tree; a class exists because somebody acts differently.

DcsError
├── Refused            an operation's answer is an errno: the caller's doing, no retry helps
├── TryAgain           nobody could be asked, or no answer came in time
│   └── Unavailable    the deadline is over
├── SessionLost        the lease ran out: open a new session; what was unsaved is fenced off
├── NodeFailed         this storage node cannot help now: take another
│   ├── NodeFull       it has no room
│   └── ExtentMissing  it answered, and does not have the extent
├── ExtentDamaged      bytes did not match their sums: report, then take another replica
├── TooFewNodes        fewer live storage nodes than the write needs
└── AccessDenied       the cluster secret is missing or wrong
"""

from __future__ import annotations

import errno
import os


class DcsError(Exception):
    """Anything this project raises on purpose."""


class Refused(DcsError):
    """The metadata refused an operation; `errno` says why, as the man page of the call has it."""

    def __init__(self, number: int, what: str = "") -> None:
        self.errno = number
        super().__init__(f"{what + ': ' if what else ''}{os.strerror(number)}")

    @property
    def name(self) -> str:
        return errno.errorcode.get(self.errno, str(self.errno))


class TryAgain(DcsError):
    """Nobody could be asked or no answer came; the operation may or may not have happened."""


class Unavailable(TryAgain):
    """The deadline passed while trying."""


class SessionLost(DcsError):
    """The session's lease ran out or it was closed."""

    perhaps_done = False
    """The operation was sent before, without an answer: what it did then is not known any more."""


class NodeFailed(DcsError):
    """A storage node refused, failed or did not answer."""


class NodeFull(NodeFailed):
    """The node has no room for the extent."""


class ExtentMissing(NodeFailed):
    """The node answered that it does not have the extent."""


class ExtentDamaged(DcsError):
    """Bytes of a replica did not match their checksums."""


class TooFewNodes(DcsError):
    """Not enough live storage nodes for the replicas asked for."""


class AccessDenied(DcsError):
    """The cluster secret is missing or wrong."""
