"""Numbers for open files and directories, as the kernel gives them back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fusefs.vfs.file_reader import ReadPattern
from fusefs.vfs.inodes import OpenInode

T = TypeVar("T")


@dataclass(slots=True)
class FileHandle:
    inode: OpenInode
    append: bool
    sync: bool
    """Opened with O_SYNC or O_DSYNC: every write is an fsync."""
    writes: bool
    noatime: bool
    """Opened with O_NOATIME: reading it leaves no trace."""
    direct: bool
    """What is written comes past the kernel's pages, and nobody tells who writes it."""
    failures_told: int = 0
    pattern: ReadPattern = field(default_factory=ReadPattern)


class HandleTable(Generic[T]):
    """A number is not used again while the mount lives."""

    def __init__(self) -> None:
        self._open: dict[int, T] = {}
        self._last = 0

    def add(self, thing: T) -> int:
        self._last += 1
        self._open[self._last] = thing
        return self._last

    def __getitem__(self, number: int) -> T:
        return self._open[number]

    def pop(self, number: int) -> T:
        return self._open.pop(number)

    def __len__(self) -> int:
        return len(self._open)
