"""Programs that change many small files while servers fail, and know what must be there."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Self

from tests.support.fault_table import note_stall

FORK = multiprocessing.get_context("fork")
END_SECONDS = 60.0


class Load:
    """Threads that make, rename, rewrite and remove small files, and know what must be there.

    Of a process of their own: a test starts programs meanwhile, servers too, and a fork closes, and so flushes,
    what its process has open on a mount; that may wait for the very server.
    """

    def __init__(self, directory: Path, threads: int = 3) -> None:
        self.directory = directory
        self.expected: dict[str, bytes] = {}
        self.errors: list[str] = []
        """Both are known here when the load has ended; an error is printed when it comes."""
        self._steps: Synchronized[int] = FORK.Value("q", 0)
        self._longest_seconds: Synchronized[float] = FORK.Value("d", 0.0)
        self._end = FORK.Event()
        self._told, self._tells = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=self._work, args=(threads,), daemon=True)

    @property
    def steps(self) -> int:
        return self._steps.value

    @property
    def longest_seconds(self) -> float:
        return self._longest_seconds.value

    def __enter__(self) -> Self:
        self.directory.mkdir()
        self._process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        try:
            assert self._told.poll(END_SECONDS), "the load does not end"
            self.expected, self.errors = self._told.recv()
        finally:
            self._process.kill()
            self._process.join()
        note_stall(self.longest_seconds)

    def _work(self, count: int) -> None:
        threads = [threading.Thread(target=self._run, args=(who,), daemon=True) for who in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._tells.send((self.expected, self.errors))

    def _run(self, who: int) -> None:
        number = 0
        while not self._end.is_set():
            number += 1
            began = time.monotonic()
            try:
                self._step(who, number)
            except Exception as error:  # A defect of ours too: nobody else would hear of it.
                self.errors.append(f"{who} {number}: {error!r}")
                print(self.errors[-1], file=sys.stderr, flush=True)
            with self._longest_seconds.get_lock(), self._steps.get_lock():
                self._longest_seconds.value = max(self.longest_seconds, time.monotonic() - began)
                self._steps.value += 1

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
        assert time.monotonic() < deadline, "the load does not go on"
        time.sleep(0.02)
