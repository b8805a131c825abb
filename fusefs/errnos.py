"""The errno that each of our errors is for a system call."""

from __future__ import annotations

import errno

from servers.protocol.errors import AccessDenied, DcsError, NodeFull, Refused, SessionLost


def errno_of(error: DcsError) -> int:
    """EIO for all that has no better name: trouble is never turned into absence."""
    if isinstance(error, Refused):
        return error.errno
    if isinstance(error, NodeFull):
        return errno.ENOSPC
    if isinstance(error, SessionLost):
        return errno.ESTALE
    if isinstance(error, AccessDenied):
        return errno.EACCES
    return errno.EIO
