"""Programs under test as real processes: started, hurt, started again, and ended for certain."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from servers.protocol.storage_api import HEALTH_PATH

WAIT_SECONDS = 30.0
STOP_SECONDS = 30.0
HEALTH_SECONDS = 2.0
POLL_SECONDS = 0.02
POLL_SECONDS_MAX = 0.2
POLL_GROWTH = 1.1
"""What takes long is asked for less often: the asking is work that the others wait for."""
LOG_TAIL_BYTES = 4000
CHECKOUT = Path(__file__).resolve().parents[2]

T = TypeVar("T")

WORKERS_MAX = 8
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS_MAX
_PORTS = range(12_000 + _WORKER, 30_000, WORKERS_MAX)
"""Below the kernel's ephemeral ports, so that no connection takes the port of a server that is down; nor does a test
that another worker runs."""
_LATELY = deque[int](maxlen=len(_PORTS) // 2)
"""Of a server that is not up yet, perhaps, or down for a while."""


def free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        if port in _LATELY:
            continue
        _LATELY.append(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for(fact: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """The first true value of `fact`. Fails the test when there is none in time."""
    deadline, pause = time.monotonic() + seconds, POLL_SECONDS
    while not (value := fact()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not so: {what}"
        time.sleep(pause)
        pause = min(pause * POLL_GROWTH, POLL_SECONDS_MAX)
    return value


@dataclass(frozen=True)
class Place:
    """Where a program listens, and a program that becomes the one it is told to run, there: such as nsenter."""

    host: str = "127.0.0.1"
    through: Sequence[str] = ()


HERE = Place()


class Process:
    """One program with its command, environment and log, over all its lives."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        log: Path,
        is_ready: Callable[[], object] = lambda: True,
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        """May be changed; counts from the next start."""
        self.log = log
        self._command = [str(word) for word in command]
        self._is_ready = is_ready
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} was never started"
        return self._child.pid

    @property
    def exit_status(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def start(self, *, wait: bool = True) -> None:
        assert not self.is_running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, env=self.environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = WAIT_SECONDS) -> None:
        def ready_or_ended() -> bool:
            return bool(self._is_ready()) or not self.is_running

        try:
            wait_for(ready_or_ended, f"{self.name} is ready", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log ends with:\n{self.log_tail()}") from None
        assert self.is_running, f"{self.name} ended with {self.exit_status}; its log ends with:\n{self.log_tail()}"

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Ends it as an operator would, by SIGTERM. Fails the test when it does not end in time."""
        if self._child is None:
            return 0
        if self._child.poll() is None:
            self.resume()
            self._child.terminate()
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end by SIGTERM; its log:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """SIGKILL: no last words."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(STOP_SECONDS)

    def pause(self) -> None:
        """It hangs: connections stay open and nothing answers."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def restart(self) -> None:
        self.stop()
        self.start()

    def log_tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def base_environment() -> dict[str, str]:
    """What every program under test gets: nothing of the cluster settings of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "USER") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**kept, "PATH": path, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}


def is_healthy(address: str) -> bool:
    """What listens there says so. Not by httpx: this is asked again and again while a cluster starts."""
    connection = http.client.HTTPConnection(address, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", HEALTH_PATH)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
