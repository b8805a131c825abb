"""Processes on one or several mounts that make system calls at the same moment.

with Racers([mount_a / "x", mount_b / "x"]) as racers:
    assert sorted(racers.race([("mkdir", "d"), ("mkdir", "d")])) == [0, errno.EEXIST]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.support import racer

HEAD_START_SECONDS = 0.004
"""Long enough for all to have read what they are to do, on a machine that is not busy."""
END_SECONDS = 60.0

Call = tuple[Any, ...]
"""A verb of tests/support/racer.py, and its arguments."""


class Racers:
    """A process for each directory."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._children = [
            subprocess.Popen(
                [sys.executable, "-S", racer.__file__, str(directory)], stdin=pipe, stdout=pipe, text=True, bufsize=1
            )
            for directory in self._directories
        ]
        # Each has started and answered before anything counts.
        assert self.race([("stat", ".")] * len(self._children)) == [0] * len(self._children)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate(timeout=END_SECONDS)

    def race(self, calls: Sequence[Call]) -> list[int]:
        """What became of the calls, the first made by the first process and so on: an errno, or 0."""
        moment = time.monotonic() + HEAD_START_SECONDS
        runners = list(zip(self._children, calls, strict=False))
        for child, call in runners:
            assert child.stdin is not None
            child.stdin.write(json.dumps([moment, *call]) + "\n")
        return [int(self._answer(child)) for child, _ in runners]

    @staticmethod
    def _answer(child: subprocess.Popen[str]) -> str:
        """No deadline: the mounts have theirs, and are killed when the test's time is over."""
        assert child.stdout is not None
        return child.stdout.readline()
