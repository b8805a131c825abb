"""A program that writes into a mount while servers are killed, and the longest it had to wait.

tests/support/promises.py in a process of its own. Each promise is progress; a stall is the longest time between two.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from tests.support import promises
from tests.support.processes import wait_for

LOOK_SECONDS = 0.05
PROGRESS_SECONDS = 60.0


class WritingProgram:
    def __init__(self, directory: Path, manifest: Path, seed: int) -> None:
        self.manifest = manifest
        self.stall_seconds = 0.0
        self._command = [sys.executable, "-S", promises.__file__, str(directory), str(manifest), str(seed)]
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(self._command, stderr=subprocess.PIPE)
        wait_for(self._promises, "something was promised")
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        self._child.kill()
        self._child.communicate(timeout=PROGRESS_SECONDS)

    def must_go_on(self) -> None:
        """It keeps getting promises; it has met no error."""
        before = self._promises()
        wait_for(lambda: self._promises() > before or not self.is_running, "the program goes on", PROGRESS_SECONDS)
        assert self.is_running, f"the program met an error: {self.errno()}"

    @property
    def is_running(self) -> bool:
        return self._child.poll() is None

    def errno(self) -> int:
        """The error that ended it. Waits for the end."""
        self._ended.set()
        _, said = self._child.communicate(timeout=PROGRESS_SECONDS)
        return int(said)

    def stall_since_last_asked(self) -> float:
        stall, self.stall_seconds = self.stall_seconds, 0.0
        return stall

    def _promises(self) -> int:
        return self.manifest.stat().st_size if self.manifest.exists() else 0

    def _measure(self) -> None:
        size, since = self._promises(), time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            now, found = time.monotonic(), self._promises()
            self.stall_seconds = max(self.stall_seconds, now - since)
            if found != size:
                size, since = found, now
