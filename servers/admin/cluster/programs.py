"""What runs in a local cluster: commands, environment, and the configuration files made of them.

The supervisor's file holds only fixed text. Paths and secrets reach the commands through the
environment and `sh`, because supervisord has no quoting that survives every character a path
may have (% expands, `;` after a space comments out).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.home import Home
from servers.admin.cluster.ports import Ports

LOOPBACK = "127.0.0.1"
CHECKOUT = Path(__file__).resolve().parents[3]
MARK = "DCS_CLUSTER"
"""In the environment of every process of a cluster: its home. So they are found when the supervisor is gone."""

START_SECONDS = 2
START_RETRIES = 3
STOP_SECONDS = 30
MOUNT_STOP_SECONDS = 40
"""A mount may need its whole flush deadline of 30 s."""


@dataclass(frozen=True)
class Program:
    name: str
    kind: Literal["redis", "naming", "storage", "mount"]
    command: str
    """For sh; the last command replaces the shell, so the process is the program."""
    where: str
    """Its address, or the mountpoint."""
    data: Path | None
    stop_seconds: int = STOP_SECONDS


def programs(home: Home, ports: Ports, mountpoint: Path) -> tuple[Program, ...]:
    """In the order of starting; each needs those before it."""
    python = 'exec env {} "$DCS_PYTHON" -m {}'
    return (
        Program(
            "redis", "redis", 'exec redis-server "$DCS_HOME/run/redis.conf"', f"{LOOPBACK}:{ports.redis}", home.redis
        ),
        Program(
            "naming",
            "naming",
            python.format(f"PORT={ports.naming}", "servers.naming"),
            f"{LOOPBACK}:{ports.naming}",
            None,
        ),
        *(
            Program(
                f"storage{number}",
                "storage",
                python.format(f'PORT={port} DATA_DIR="$DCS_HOME/node{number}"', "servers.storage"),
                f"{LOOPBACK}:{port}",
                home.node(number),
            )
            for number, port in enumerate(ports.storage, start=1)
        ),
        Program(
            "mount",
            "mount",
            'exec "$DCS_PYTHON" -m fusefs "$DCS_MOUNTPOINT" --foreground',
            str(mountpoint),
            None,
            MOUNT_STOP_SECONDS,
        ),
    )


def naming_url(ports: Ports) -> str:
    return f"http://{LOOPBACK}:{ports.naming}"


def redis_password(secret: str) -> str:
    """Other users of this machine reach loopback too; the cluster secret itself stays out of Redis's configuration."""
    return hmac.new(secret.encode(), b"redis", hashlib.sha256).hexdigest()


def environment(home: Home, ports: Ports, mountpoint: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """What every process gets: what the person has set, and what makes them one cluster."""
    password = redis_password(home.secret())
    return {
        "REPLICATION_FACTOR": "3",
        # Whoever starts the cluster first owns the root of its volume.
        "ROOT_UID": str(os.getuid()),
        "ROOT_GID": str(os.getgid()),
        **{name: value for name, value in inherited.items() if name not in ("DCS_SECRET", "PORT", "DATA_DIR")},
        MARK: str(home.path),
        "DCS_HOME": str(home.path),
        "DCS_MOUNTPOINT": str(mountpoint),
        "DCS_PYTHON": sys.executable,
        "DCS_SECRET_FILE": str(home.secret_file),
        "HOST": LOOPBACK,
        "NAMING_URL": naming_url(ports),
        "PYTHONUNBUFFERED": "1",
        "REDIS_URL": f"redis://:{password}@{LOOPBACK}:{ports.redis}/0",
    }


def redis_conf(home: Home, ports: Ports) -> bytes:
    """deploy/redis.conf and what belongs to this cluster."""
    source = CHECKOUT / "deploy" / "redis.conf"
    try:
        base = source.read_bytes()
    except OSError as error:
        raise ClusterProblem(f"A local cluster is started from a checkout of the project: {error}") from error
    password = redis_password(home.secret())
    own = [
        b"bind %s" % LOOPBACK.encode(),
        b"port %d" % ports.redis,
        b"requirepass %s" % password.encode(),
        b"dir %s" % _redis_quoted(home.redis),
        # A title of its own would overwrite the environment, and with it the mark.
        b"set-proc-title no",
    ]
    return base + b"\n# This cluster's own.\n" + b"\n".join(own) + b"\n"


def _redis_quoted(path: Path) -> bytes:
    """A path as redis.conf takes it, whatever bytes it has."""
    return b'"' + b"".join(b"\\x%02x" % byte for byte in os.fsencode(path)) + b'"'


def supervisor_conf(wanted: tuple[Program, ...]) -> bytes:
    # Without this line supervisord warns that it runs as root; whom it runs as is the caller's choice.
    user = "user=root\n" if os.geteuid() == 0 else ""
    return (_SUPERVISOR.format(user=user) + "".join(_section(program) for program in wanted)).encode()


def _section(program: Program) -> str:
    # A mount that ends with 0 was unmounted on purpose; everything else has to run.
    restart = "unexpected" if program.kind == "mount" else "true"
    return _PROGRAM.format(
        name=program.name, command=program.command, restart=restart, start=START_SECONDS, retries=START_RETRIES,
        stop=program.stop_seconds,
    )  # fmt: skip


_SUPERVISOR = """\
[supervisord]
logfile=%(here)s/../logs/supervisord.log
logfile_maxbytes=10MB
logfile_backups=3
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s/../logs
umask=077
nocleanup=true
{user}
[unix_http_server]
file=%(here)s/supervisor.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM = """
[program:{name}]
command=/bin/sh -c '{command}'
autostart=false
autorestart={restart}
startsecs={start}
startretries={retries}
stopwaitsecs={stop}
killasgroup=true
redirect_stderr=true
stdout_logfile=%(here)s/../logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
