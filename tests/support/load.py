"""Programs that change many small files while servers fail, and know what must be there."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from tests.support.fault_table import note_stall


class Load:
    """Threads that make, rename, rewrite and remove small files, and know what must be there."""

    def __init__(self, directory: Path, threads: int = 3) -> None:
        self.directory = directory
        self.expected: dict[str, bytes] = {}
        self.errors: list[str] = []
        self.steps = 0
        self.longest_seconds = 0.0
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(who,), daemon=True) for who in range(threads)]

    def __enter__(self) -> Self:
        self.directory.mkdir()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        note_stall(self.longest_seconds)

    def _run(self, who: int) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            began = time.monotonic()
            try:
                self._step(who, number)
            except OSError as error:
                self.errors.append(f"{who} {number}: {error}")
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.steps += 1

    def _step(self, who: int, number: int) -> None:
        """Every change is noted when it has returned; names are each thread's own."""
        name, data = f"{who}-{number}", f"{who} {number} ".encode() * (number % 300 + 1)
        (self.directory / name).write_bytes(data)
        self.expected[name] = data
        if number % 3 == 0:
            (self.directory / name).rename(self.directory / f"{name}-renamed")
            self.expected[f"{name}-renamed"] = self.expected.pop(name)
        if number % 4 == 0:
            gone = f"{who}-{number - 2}"
            if gone in self.expected:
                (self.directory / gone).unlink()
                del self.expected[gone]
        if number % 5 == 0:
            (self.directory / f"{name}-directory").mkdir()
            (self.directory / f"{name}-directory").rmdir()

    def check(self, directory: Path) -> None:
        assert self.errors == []
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found.keys() == self.expected.keys()
        assert found == self.expected


def wait_steps(load: Load, count: int) -> None:
    """The load has gone on by so many steps."""
    end, deadline = load.steps + count, time.monotonic() + 60
    while load.steps < end:
        assert time.monotonic() < deadline, f"the load does not go on: {load.errors[:3]}"
        time.sleep(0.02)
