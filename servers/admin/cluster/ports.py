"""Which ports a local cluster uses: a pure choice from what is set, kept and free.

What the environment names wins, then what an earlier start used, then the defaults. Only where
nobody has named a port is another taken when the default is not free: addresses that people
have written down do not change behind their back.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from servers.admin.cluster.errors import ClusterProblem
from servers.admin.cluster.settings import ClusterSettings

REDIS_PORT = 6390
"""Not 6379: Debian's own Redis may be there."""
NAMING_PORT = 8000
STORAGE_PORTS = (5001, 5002, 5003)
_OTHER_PORTS = range(12_000, 30_000)
"""Below those that Linux gives to connections; see ip_local_port_range in ip(7)."""


@dataclass(frozen=True)
class Ports:
    redis: int
    naming: int
    storage: tuple[int, ...]

    def dump(self) -> str:
        """As lines that a shell can read, too."""
        storage = ",".join(map(str, self.storage))
        return f"DCS_REDIS_PORT={self.redis}\nDCS_NAMING_PORT={self.naming}\nDCS_STORAGE_PORTS={storage}\n"


def load(text: str) -> Ports:
    """Raises ClusterProblem for what `dump` never wrote."""
    values = dict(line.split("=", 1) for line in text.split() if "=" in line)
    try:
        storage = tuple(int(port) for port in values["DCS_STORAGE_PORTS"].split(","))
        return Ports(int(values["DCS_REDIS_PORT"]), int(values["DCS_NAMING_PORT"]), storage)
    except (KeyError, ValueError) as error:
        raise ClusterProblem(f"The kept ports cannot be read ({error}): {text[:200]!r}") from error


@dataclass(frozen=True)
class Choice:
    ports: Ports
    notes: tuple[str, ...]
    """What a person should be told: defaults that were taken."""


def choose(
    settings: ClusterSettings, kept: Ports | None, is_free: Callable[[int], bool], any_free: Callable[[], int]
) -> Choice:
    """Free and distinct ports. Raises ClusterProblem when a port that was named or kept is taken."""
    taken: set[int] = set()
    notes: list[str] = []

    def pick(name: str, named: int | None, before: int | None, default: int) -> int:
        port = named or before or default
        if port in taken or not is_free(port):
            if named or before:
                raise ClusterProblem(
                    f"Port {port} ({name}) is in use by another program; stop that or set another {_VARIABLES[name]}"
                )
            port = next(p for p in iter(any_free, None) if p not in taken)
            notes.append(f"Port {default} ({name}) is in use; taking {port}, and keeping it")
        taken.add(port)
        return port

    redis = pick("redis", settings.redis_port, kept.redis if kept else None, REDIS_PORT)
    naming = pick("naming", settings.naming_port, kept.naming if kept else None, NAMING_PORT)
    named, before = settings.storage_ports or (), kept.storage if kept else ()
    if named and len(named) < len(before):
        raise ClusterProblem(
            f"DCS_STORAGE_PORTS names {len(named)} storage nodes, but {len(before)} hold data; name as many or more"
        )
    wanted = named or before or STORAGE_PORTS
    storage = [
        pick("storage", port if named else None, port if before and not named else None, port) for port in wanted
    ]
    return Choice(Ports(redis, naming, tuple(storage)), tuple(notes))


_VARIABLES: Mapping[str, str] = {
    "redis": "DCS_REDIS_PORT",
    "naming": "DCS_NAMING_PORT",
    "storage": "DCS_STORAGE_PORTS",
}


def is_free(port: int) -> bool:
    """Nobody listens on the port on loopback. Connections that are closing do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def any_free() -> int:
    """A port that nobody listens on, and that no connection takes while the cluster is stopped."""
    return next(port for port in iter(lambda: random.choice(_OTHER_PORTS), None) if is_free(port))
