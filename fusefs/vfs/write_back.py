"""Stores and commits what programs have written to files that they keep open, without being asked.

What is written and not committed is lost with this machine, and seen by no other. And what is stored and not committed
nobody counts: no repair copies it, and a node that is drained is called empty though it lies there. So

    written so long ago, or stored on a node that is being drained ──▶ flushed, as close(2) does
    its commit got no answer ──▶ likewise: other operations of the mount wait for it, sooner or later

Run by the mount; knows open inodes, and their writers by `dirty_since`, `rests_on` and `flush`. A file is written back
at most once in its time, few at once, the oldest first: who fails goes to the end. Its failure is the writer's to tell.

A node that is to be drained is known here within NODES_SECONDS and looked for every LOOK_SECONDS, and a flush takes its
deadline and COMMIT_SECONDS_MIN at most: together less than `drain_grace_seconds` of the naming servers, after which the
node is called empty. For when they could not be asked, or flushes failed, see LATE_SECONDS of the writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

import trio

from fusefs.vfs.inodes import OpenInode
from servers.protocol.errors import DcsError
from servers.protocol.ids import NodeNumber

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FILES_AT_ONCE = 8


def due(inodes: Iterable[OpenInode], draining: Collection[NodeNumber], seconds: float, now: float) -> list[OpenInode]:
    """What is to be written back now, first what has waited longest. Not what nobody has open: the last close sees to
    that; nor, for its age alone, what has no name: nobody reads it once this mount is gone."""

    def is_urgent(inode: OpenInode) -> bool:
        return inode.writer.is_unanswered or (bool(draining) and inode.writer.rests_on(draining))

    def due_at(inode: OpenInode) -> float:
        if is_urgent(inode):
            return inode.written_back_at + LOOK_SECONDS
        return max(inode.writer.dirty_since, inode.written_back_at) + seconds

    waiting = [
        inode for inode in inodes
        if inode.handles and inode.writer.is_dirty and due_at(inode) <= now
        and (inode.attributes.nlink or is_urgent(inode))
    ]  # fmt: skip
    return sorted(waiting, key=due_at)


class WriteBack:
    def __init__(
        self,
        inodes: Callable[[], Iterable[OpenInode]],
        draining: Callable[[], Collection[NodeNumber]],
        seconds: float,
    ) -> None:
        self._inodes = inodes
        self._draining = draining
        self._seconds = seconds
        self._done = self._failed = 0

    def statistics(self) -> dict[str, int]:
        return {"written_back": self._done, "write_backs_failed": self._failed}

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            files = due(self._inodes(), self._draining(), self._seconds, trio.current_time())
            async with trio.open_nursery() as nursery:
                for inode in files[:FILES_AT_ONCE]:
                    nursery.start_soon(self._write_back, inode)
            if len(files) <= FILES_AT_ONCE:
                await trio.sleep(LOOK_SECONDS)

    async def _write_back(self, inode: OpenInode) -> None:
        try:
            await inode.writer.flush(sync=False, unasked=True)
            self._done += 1
        except DcsError as error:
            self._failed += 1
            log.info("inode %d: what was written could not be stored in the background: %s", inode.ino, error)
        finally:
            inode.written_back_at = trio.current_time()
