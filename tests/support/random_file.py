"""Random operations on one file, each checked against a copy in memory; after the idea of fsx.

    with RandomFile(path, bytes_max=1 << 20, seed=7) as file:
        file.run(3000)

Reads, writes, appends, truncations, mappings, syncs and reopenings, through several descriptors
of one mount. The seed decides everything; a failure names it and the last operations.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

REMEMBERED = 25


class RandomFile:
    def __init__(self, path: Path, *, bytes_max: int, edge: int, seed: int) -> None:
        """`edge`: offsets lie around its multiples more often than elsewhere."""
        self.path = path
        self.counts: dict[str, int] = {}
        self._bytes_max = bytes_max
        self._edge = edge
        self._seed = seed
        self._chance = random.Random(seed)
        self._shadow = bytearray()
        self._last: deque[str] = deque(maxlen=REMEMBERED)
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        self._descriptors = [os.open(self.path, os.O_RDWR | os.O_CREAT), os.open(self.path, os.O_RDWR)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            try:
                os.close(descriptor)
            except OSError:  # A failed flush; of it the operations have told.
                assert error is not None

    def run(self, count: int) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._write, 30), (self._read, 30), (self._truncate, 8), (self._append, 4), (self._write_mapped, 8),
            (self._read_mapped, 8), (self._sync, 4), (self._reopen, 4), (self._forget_pages, 2), (self._stat, 4),
        ]  # fmt: skip
        for number in range(count):
            (kind,) = self._chance.choices([k for k, _ in kinds], [weight for _, weight in kinds])
            self._last.append(f"{number} {kind.__name__[1:]}")
            self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1
            try:
                kind()
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
        size = self._chance.choice((10, 5000, 70_000, self._edge + 10, self._bytes_max // 3))
        return self._chance.randint(0, min(size, most))

    def _range(self) -> tuple[int, int]:
        """Within the file."""
        start = self._offset(len(self._shadow))
        return start, start + self._length(len(self._shadow) - start)

    def _data(self, length: int) -> bytes:
        return self._chance.randbytes(min(length, 977)) * (length // 977 + 1)

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
        data = self._data(length)[:length]
        self._note(f"{start}+{length}")
        assert os.pwrite(self._descriptor(), data, start) == length
        if length:
            self._lay(start, data)

    def _append(self) -> None:
        length = self._length(self._bytes_max - len(self._shadow))
        data = self._data(length)[:length]
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
        data = self._data(end - start)[: end - start]
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
        self._descriptors[index] = os.open(self.path, os.O_RDWR)

    def _forget_pages(self) -> None:
        """The kernel's clean pages of the file go, so that the next reads reach the mount."""
        os.fsync(self._descriptors[0])
        os.posix_fadvise(self._descriptors[0], 0, 0, os.POSIX_FADV_DONTNEED)

    def _stat(self) -> None:
        for found in (os.fstat(self._descriptor()), self.path.stat()):
            assert found.st_size == len(self._shadow), f"size {found.st_size}, not {len(self._shadow)}"
