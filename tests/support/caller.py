"""A process that makes one system call after another as it is told, and says how each ended and how long it took.

    with Caller() as caller:
        descriptor = caller.call("open", path, os.O_RDONLY).value
        caller.begin("pread", descriptor, 4096, 0)
        ...
        assert caller.end().errno == errno.EIO

For calls on a mount that may take long: the test goes on meanwhile, and starts programs without closing, and so
flushing, what this process holds open. As a script it is that process; it stands alone, so that it starts quickly.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from typing import Any, NamedTuple, Self

END_SECONDS = 60.0


class Called(NamedTuple):
    value: Any
    errno: int
    """0 when it was done."""
    seconds: float


class Caller:
    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._child = subprocess.Popen([sys.executable, "-S", __file__], stdin=pipe, stdout=pipe)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate(timeout=END_SECONDS)

    def begin(self, name: str, *arguments: object) -> None:
        """A function of the os module is called there."""
        assert self._child.stdin is not None
        pickle.dump((name, arguments), self._child.stdin)
        self._child.stdin.flush()

    def end(self) -> Called:
        """What became of the call. No deadline: the mounts have theirs, and are killed when the test's time is over."""
        assert self._child.stdout is not None
        return Called(*pickle.load(self._child.stdout))

    def call(self, name: str, *arguments: object) -> Called:
        self.begin(name, *arguments)
        return self.end()

    def do(self, name: str, *arguments: object) -> Any:
        """The value of a call that is to be done."""
        called = self.call(name, *arguments)
        assert called.errno == 0, f"{name}{arguments}: {os.strerror(called.errno)}"
        return called.value


def _serve() -> None:
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        value, number, began = None, 0, time.monotonic()
        try:
            value = getattr(os, name)(*arguments)
        except OSError as error:
            number = error.errno or -1
        pickle.dump((value, number, time.monotonic() - began), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
