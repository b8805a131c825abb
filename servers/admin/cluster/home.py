"""DCS_HOME: everything that one local cluster keeps on disk.

    secret            the cluster secret, mode 0400, made at the first start
    settings          the ports, kept from the first start
    redis/            the metadata: Redis's append-only file
    node1/ node2/ ... one data directory for each storage node
    logs/             one log for each process, rotated by the supervisor
    run/              of the running cluster only: configuration, socket, lock, mountpoint

Only `run/` may be deleted, and only while nothing runs. One start or stop at a time: `locked`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from servers.admin.cluster import ports
from servers.admin.cluster.errors import ClusterProblem

SECRET_BYTES = 32
LOCK_SECONDS = 120.0
"""Longer than any start or stop takes."""
PATH_BYTES_MAX = 80
"""So that the supervisor's socket below it fits into sun_path of unix(7), 108 bytes."""


@dataclass(frozen=True)
class Home:
    path: Path

    @property
    def secret_file(self) -> Path:
        return self.path / "secret"

    @property
    def settings_file(self) -> Path:
        return self.path / "settings"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def supervisor_conf(self) -> Path:
        return self.run / "supervisord.conf"

    @property
    def redis_conf(self) -> Path:
        return self.run / "redis.conf"

    @property
    def mountpoint_file(self) -> Path:
        return self.run / "mountpoint"

    def node(self, number: int) -> Path:
        return self.path / f"node{number}"

    def log(self, program: str) -> Path:
        return self.path / "logs" / f"{program}.log"

    def secret(self) -> str:
        """Raises ClusterProblem when there is none."""
        try:
            text = self.secret_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise ClusterProblem(f"Cannot read the cluster secret: {error}") from error
        if not text:
            raise ClusterProblem(f"The cluster secret in {self.secret_file} is empty")
        return text

    def kept_ports(self) -> ports.Ports | None:
        try:
            return ports.load(self.settings_file.read_text("ascii"))
        except FileNotFoundError:
            return None

    def keep_ports(self, chosen: ports.Ports) -> None:
        write_file(self.settings_file, chosen.dump().encode())

    def mountpoint(self) -> Path | None:
        """Where the cluster is mounted, or was when it last ran."""
        try:
            return Path(os.fsdecode(self.mountpoint_file.read_bytes()))
        except FileNotFoundError:
            return None

    def keep_mountpoint(self, mountpoint: Path) -> None:
        write_file(self.mountpoint_file, os.fsencode(mountpoint))

    def make(self) -> None:
        """The directories and the secret are there. Raises ClusterProblem."""
        if len(os.fsencode(self.path)) > PATH_BYTES_MAX or not str(self.path).isprintable():
            raise ClusterProblem(f"DCS_HOME must be a printable path of at most {PATH_BYTES_MAX} bytes: {self.path!r}")
        try:
            for directory in (self.path, self.redis, self.run, self.path / "logs"):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.secret_file.exists():
                write_file(self.secret_file, secrets.token_hex(SECRET_BYTES).encode() + b"\n", mode=0o400)
        except OSError as error:
            raise ClusterProblem(f"Cannot use {self.path} as DCS_HOME: {error}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else starts or stops this cluster meanwhile. Raises ClusterProblem after LOCK_SECONDS."""
        deadline = time.monotonic() + LOCK_SECONDS
        with (self.run / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ClusterProblem(f"Another start or stop of {self.path} does not end") from error
                    time.sleep(0.1)
            yield


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """The file has the content, whole and durable, or is as it was."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
