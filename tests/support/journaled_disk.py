"""A disk whose power can be cut: ext4 on a loop device, so the kernel itself says what survives.

    with JournaledDisk(directory, size) as disk:
        ...
        disk.lose_power()        # what was not synced is gone, and nothing can be written any more
        (end whoever uses it)
        disk.come_back()         # as after a reboot: the journal is played back
    disk.rot(content)        # a bit of what lies on it is another; who has it in memory does not notice

The file system is shut down as xfstests do it (FS_IOC_SHUTDOWN without a flush of the journal). Needs root.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import wait_for

FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32), the same for ext4, xfs and f2fs."""
NO_LOG_FLUSH = 2
COMMAND_SECONDS = 60.0
BLOCK_BYTES = 4096


class JournaledDisk:
    def __init__(self, path: Path, size: int) -> None:
        """`path` is the directory to mount it on; beside it lies its image, a sparse file."""
        self.path = path
        self._image = path.with_name(path.name + ".image")
        self._size = size

    def __enter__(self) -> Self:
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size)
        self._run("mkfs.ext4", "-q", "-m", "0", self._image)
        self.come_back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path.is_mount():
            self._run("umount", "-l", self.path)
        self._image.unlink()

    def lose_power(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        if self.path.is_mount():
            self._run("umount", self.path)
            # Who copied our mounts, as a container does that starts just now, still holds the file system that was
            # shut down; mounted before that is over, the disk would be the same one again, and not have come back.
            wait_for(lambda: not self._devices(), f"nobody has {self._image} any more", COMMAND_SECONDS)
        self._run("mount", "-o", "loop", self._image, self.path)

    def rot(self, content: bytes) -> None:
        """`content` is what one synced file begins with, a block or more."""
        with self._image.open("r+b") as image, mmap.mmap(image.fileno(), 0) as blocks:
            at = blocks.find(content[:BLOCK_BYTES])
            assert at >= 0, "it is on the disk"
            assert blocks.find(content[:BLOCK_BYTES], at + 1) < 0, "and there only"
            blocks[at] ^= 1
            blocks.flush()

    def _devices(self) -> bytes:
        """The loop devices that show the image."""
        command: list[str | Path] = ["losetup", "--associated", self._image]
        return subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_SECONDS).stdout

    @staticmethod
    def _run(*command: str | Path) -> None:
        subprocess.run(command, check=True, timeout=COMMAND_SECONDS)
