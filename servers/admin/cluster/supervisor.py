"""Talking to supervisord over its unix socket, and starting it.

It keeps the processes running; the order of starting and what "healthy" means are lifecycle's.
Every call has a deadline. Raises ClusterProblem when supervisord does not answer.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.home import Home
from servers.admin.cluster.leftovers import exists
from servers.admin.cluster.programs import CHECKOUT

CALL_SECONDS = 10.0
LAUNCH_SECONDS = 15.0
EXIT_SECONDS = 10.0

_NOT_RUNNING, _ALREADY_STARTED = 70, 60  # Faults of supervisor.xmlrpc.Faults.


@dataclass(frozen=True)
class ProcessState:
    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int
    """0 when there is no process."""
    exit_status: int
    """Of the last time it ended."""

    @property
    def is_up(self) -> bool:
        return self.pid != 0 and self.state in ("STARTING", "RUNNING")


class Supervisor:
    def __init__(self, home: Home) -> None:
        self._home = home

    def is_running(self) -> bool:
        try:
            return self.pid() > 0
        except ClusterProblem:
            return False

    def pid(self) -> int:
        return int(self._call("getPID"))

    def states(self) -> dict[str, ProcessState]:
        rows = self._call("getAllProcessInfo")
        return {row["name"]: ProcessState(row["name"], row["statename"], row["pid"], row["exitstatus"]) for row in rows}

    def start(self, name: str) -> None:
        """The program was told to start; whether it does is in `states`."""
        self._call("startProcess", name, False, fine=_ALREADY_STARTED)

    def stop(self, name: str, seconds: float) -> None:
        """The program ended; supervisord kills what does not end by itself in its stopwaitsecs."""
        self._call("stopProcess", name, False, fine=_NOT_RUNNING)
        deadline = time.monotonic() + seconds
        while self.states()[name].pid:
            if time.monotonic() > deadline:
                raise ClusterProblem(f"{name} does not end; see {self._home.log(name)}")
            time.sleep(0.05)

    def launch(self, environment: Mapping[str, str]) -> None:
        """supervisord runs, as a daemon, with nothing started yet."""
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._home.supervisor_conf)]
        done = subprocess.run(
            command, env=environment, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=LAUNCH_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ClusterProblem(f"The supervisor did not start: {(done.stderr or done.stdout).strip()[-500:]}")
        deadline = time.monotonic() + LAUNCH_SECONDS
        while not self.is_running():
            if time.monotonic() > deadline:
                raise ClusterProblem(f"The supervisor did not start; see {self._home.log('supervisord')}")
            time.sleep(0.05)

    def shut_down(self) -> None:
        """supervisord ended, and with it all it ran."""
        pid = self.pid()
        self._call("shutdown")
        deadline = time.monotonic() + EXIT_SECONDS
        while exists(pid):
            if time.monotonic() > deadline:
                raise ClusterProblem(f"The supervisor (pid {pid}) does not end; see {self._home.log('supervisord')}")
            time.sleep(0.05)

    def _call(self, method: str, *arguments: object, fine: int | None = None) -> Any:  # Any: XML-RPC says what it says
        try:
            with xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(self._home.socket)) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == fine:
                return None
            raise ClusterProblem(f"The supervisor refused {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise ClusterProblem(f"The supervisor does not answer: {error}") from error


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # Any: as typeshed has it
        connection = _UnixConnection(self._path)
        self._connection = host, connection
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("supervisor", timeout=CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CALL_SECONDS)
        self.sock.connect(os.fspath(self._path))
