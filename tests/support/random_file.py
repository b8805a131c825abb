"""Random operations on one file, each checked against a copy in memory; after the idea of fsx.

    with RandomFile(path, bytes_max=1 << 20, edge=1024, longest=5000, seed=7) as file:
        file.run(3000)
        with file.put_down():
            mount.remount()
        file.run(3000)
    file.check()

Reads, writes, appends, truncations, mappings, syncs and reopenings, through several descriptors
of one mount, some of them O_DIRECT. The seed decides everything; a failure names it and the last
operations.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

REMEMBERED = 25
PATTERN_BYTES = 977
"""Data repeats after so many bytes: a prime, so that no two chunks or blocks begin alike."""


class RandomFile:
    def __init__(self, path: Path, *, bytes_max: int, edge: int, longest: int, seed: int) -> None:
        """`edge`: offsets lie around its multiples more often than elsewhere. `longest`: bytes of one operation."""
        self.path = path
        """Where the file is; another mount's name of it may be put here while it is put down."""
        self.counts: dict[str, int] = {}
        self._bytes_max = bytes_max
        self._edge = edge
        self._longest = longest
        self._seed = seed
        self._chance = random.Random(seed)
        self._shadow = bytearray()
        self._last: deque[str] = deque(maxlen=REMEMBERED)
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._open_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            try:
                os.close(descriptor)
            except OSError:  # A failed flush; of it the operations have told.
                assert error is not None

    @contextmanager
    def put_down(self) -> Iterator[None]:
        """The file is closed meanwhile, and its mount may be unmounted."""
        self._last.append("put down")
        while self._descriptors:
            os.close(self._descriptors.pop())
        yield
        self._open_all()

    def _open_all(self) -> None:
        self._descriptors = [self._opened(), self._opened()]

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | self._chance.choice((0, 0, 0, 0, os.O_DIRECT)))

    def run(self, count: int) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._write, 330), (self._read, 400), (self._truncate, 25), (self._append, 10), (self._write_mapped, 30),
            (self._read_mapped, 50), (self._sync, 8), (self._reopen, 8), (self._forget_pages, 6), (self._stat, 80),
        ]  # fmt: skip
        acts, weights = [act for act, _ in kinds], [weight for _, weight in kinds]
        for number, act in enumerate(self._chance.choices(acts, weights, k=count)):
            self._last.append(f"{number} {act.__name__[1:]}")
            self.counts[act.__name__] = self.counts.get(act.__name__, 0) + 1
            try:
                act()
            except (AssertionError, OSError) as error:
                story = "\n".join(self._last)
                raise AssertionError(f"seed {self._seed}, size {len(self._shadow)}: {error}\n{story}") from error

    def check(self) -> None:
        """The whole file, through a descriptor of its own."""
        self._compare(self.path.read_bytes(), 0, len(self._shadow), "at the end")

    # What happens.

    def _offset(self, highest: int) -> int:
        if self._chance.random() < 0.4:
            near = self._chance.randrange(highest // self._edge + 1) * self._edge + self._chance.randint(-3, 3)
            return min(max(near, 0), highest)
        return self._chance.randint(0, highest)

    def _length(self, most: int) -> int:
        typical = self._chance.choice((10, 500, 5000, 5000, self._longest))
        return min(self._chance.randint(0, min(typical, self._longest)), most)

    def _range(self) -> tuple[int, int]:
        """Within the file."""
        start = self._offset(len(self._shadow))
        return start, start + self._length(len(self._shadow) - start)

    def _data(self, length: int) -> bytes:
        pattern = self._chance.randbytes(min(length, PATTERN_BYTES))
        return (pattern * (length // PATTERN_BYTES + 1))[:length]

    def _note(self, what: str) -> None:
        self._last[-1] += " " + what

    def _compare(self, got: bytes, start: int, end: int, what: str) -> None:
        want = self._shadow[start:end]
        if got != want:
            wrong = [at for at, (g, w) in enumerate(zip(got, want, strict=False)) if g != w]
            first = start + wrong[0] if wrong else start + min(len(got), len(want))
            sample = f"{got[first - start :][:8]!r} not {want[first - start :][:8]!r}"
            raise AssertionError(
                f"{what} {start}-{end}: {len(got)} bytes came; {len(wrong)} are wrong, the first at {first}: {sample}"
            )

    def _descriptor(self) -> int:
        return self._chance.choice(self._descriptors)

    def _lay(self, start: int, data: bytes) -> None:
        if start > len(self._shadow):
            self._shadow += bytes(start - len(self._shadow))
        self._shadow[start : start + len(data)] = data

    def _write(self) -> None:
        start = self._offset(self._bytes_max - 1)
        if self._chance.random() < 0.7:
            start = min(start, len(self._shadow))
        length = self._length(self._bytes_max - start)
        data = self._data(length)
        self._note(f"{start}+{length}")
        assert os.pwrite(self._descriptor(), data, start) == length
        if length:
            self._lay(start, data)

    def _append(self) -> None:
        length = self._length(self._bytes_max - len(self._shadow))
        data = self._data(length)
        self._note(f"{len(self._shadow)}+{length}")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(descriptor, data) == length
        finally:
            os.close(descriptor)
        self._shadow += data

    def _read(self) -> None:
        start, end = self._range()
        beyond = self._chance.choice((0, 0, 10_000))
        self._note(f"{start}-{end + beyond}")
        got = os.pread(self._descriptor(), end - start + beyond, start)
        self._compare(got, start, min(end + beyond, len(self._shadow)), "read")

    def _truncate(self) -> None:
        size = self._offset(self._bytes_max)
        self._note(f"{len(self._shadow)} to {size}")
        os.ftruncate(self._descriptor(), size)
        del self._shadow[size:]
        self._shadow += bytes(size - len(self._shadow))

    def _write_mapped(self) -> None:
        start, end = self._range()
        if start == end:
            return
        self._note(f"{start}-{end}")
        data = self._data(end - start)
        with mmap.mmap(self._descriptor(), len(self._shadow)) as mapped:
            mapped[start:end] = data
            if self._chance.random() < 0.5:
                mapped.flush()
        self._lay(start, data)

    def _read_mapped(self) -> None:
        start, end = self._range()
        if start == end:
            return
        self._note(f"{start}-{end}")
        with mmap.mmap(self._descriptor(), len(self._shadow), prot=mmap.PROT_READ) as mapped:
            self._compare(mapped[start:end], start, end, "mapped read")

    def _sync(self) -> None:
        os.fsync(self._descriptor())

    def _reopen(self) -> None:
        index = self._chance.randrange(len(self._descriptors))
        os.close(self._descriptors[index])
        self._descriptors[index] = self._opened()

    def _forget_pages(self) -> None:
        """The kernel's clean pages of the file go, so that the next reads reach the mount."""
        os.fsync(self._descriptors[0])
        os.posix_fadvise(self._descriptors[0], 0, 0, os.POSIX_FADV_DONTNEED)

    def _stat(self) -> None:
        for found in (os.fstat(self._descriptor()), self.path.stat()):
            assert found.st_size == len(self._shadow), f"size {found.st_size}, not {len(self._shadow)}"
