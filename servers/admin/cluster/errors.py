"""What can be wrong with a local cluster, each as one line for the person at the terminal."""

from __future__ import annotations

from servers.protocol.errors import DcsError


class ClusterProblem(DcsError):
    """The cluster cannot be started, stopped or asked; the message is one clear line."""


class MountBusy(ClusterProblem):
    """Somebody works below the mountpoint; nothing was stopped."""
