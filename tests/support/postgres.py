"""A PostgreSQL server with its data on a directory of a test's choice.

    with Postgres(place) as postgres:
        postgres.start()
        postgres.program("pgbench", "--initialize")

PostgreSQL refuses to run as root: there it runs as the user `postgres`, who needs a way to the directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.commands import run
from tests.support.processes import free_port, wait_for

START_SECONDS = 120
LOAD_SECONDS = 60
PROGRAM_SECONDS = 300.0


def _programs() -> Path:
    """Where Debian keeps those of the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    assert found, "PostgreSQL is not here; `deploy/prepare --test` installs it"
    return found[-1].parent


class Postgres:
    def __init__(self, directory: Path) -> None:
        """initdb below `directory`."""
        self._programs = _programs()
        self._data = directory / "data"
        self._log = directory / "log"
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._sockets = Path(tempfile.mkdtemp(prefix="dcs-pg-"))
        self._as_user: list[str | Path] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
            for path in (directory, self._sockets):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._run("initdb", "--pgdata", self._data, "--auth=trust", "--username=postgres", "--no-locale")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self.kill()
        shutil.rmtree(self._sockets)

    def start(self) -> None:
        """It answers; after a crash, it has recovered."""
        options = (f"--port={self._port}", "-k", self._sockets, "-c", "listen_addresses=")
        with self._log.open("ab") as log:
            self._server = server = subprocess.Popen(
                [*self._as_user, self._programs / "postgres", "-D", self._data, *options],
                cwd=self._sockets, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

        def answers_or_ended() -> bool:
            asked = subprocess.run(self._command("pg_isready"), capture_output=True, timeout=PROGRAM_SECONDS)
            return server.poll() is not None or asked.returncode == 0

        wait_for(answers_or_ended, "PostgreSQL answers", START_SECONDS)
        assert server.returncode is None, f"PostgreSQL has ended:\n{self.log()[-2000:]}"

    def stop(self) -> None:
        """As `pg_ctl --mode=fast stop`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGINT)
        assert self._server.wait(START_SECONDS) == 0, self.log()[-2000:]
        self._server = None

    def kill(self) -> None:
        """SIGKILL for the server and each of its processes."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)  # It makes no more of them.
        for process in run("ps", "-o", "pid=", "--ppid", str(self._server.pid), expect=None).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        self._server.kill()
        self._server.wait(START_SECONDS)
        self._server = None

    def kill_under_load(self, *, after_transactions: int) -> int:
        """Killed while clients write; returns how many transactions there were before, at least."""
        before = int(self.ask("select count(*) from pgbench_history"))
        load = [*self._command("pgbench"), "--no-vacuum", "--client=4", f"--time={LOAD_SECONDS}", "postgres"]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as clients:
            seen = 0

            def enough() -> bool:
                nonlocal seen
                seen = int(self.ask("select count(*) from pgbench_history"))
                return seen >= before + after_transactions

            wait_for(enough, f"{after_transactions} transactions under load", LOAD_SECONDS)
            self.kill()
            clients.wait(LOAD_SECONDS)
        return seen

    def program(self, name: str, *options: str) -> str:
        """One of PostgreSQL's programs, for the server's database."""
        return run(*self._command(name), *options, "postgres", cwd=self._sockets, seconds=PROGRAM_SECONDS)

    def ask(self, query: str) -> str:
        return self.program("psql", "--no-align", "--tuples-only", "--command", query).strip()

    def log(self) -> str:
        return self._log.read_text()

    def _command(self, name: str) -> list[str | Path]:
        connection = [f"--host={self._sockets}", f"--port={self._port}", "--username=postgres"]
        return [*self._as_user, self._programs / name, *connection]

    def _run(self, name: str, *options: str | Path) -> str:
        return run(*self._as_user, self._programs / name, *options, cwd=self._sockets, seconds=PROGRAM_SECONDS)
