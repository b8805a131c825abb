"""What REDIS_URL says: one Redis, or where to ask for the primary of several. Pure.

redis://[[user]:password@]host[:port][/db]
unix://[[user]:password@]/path[?db=N]
redis+sentinel://[[user]:password@]host[:port],.../SERVICE[/db]      the Sentinels
redis+cluster://[[user]:password@]host[:port],...                    some nodes of a Redis Cluster
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote

REDIS_PORT = 6379
SENTINEL_PORT = 26379

Kind = Literal["one", "sentinel", "cluster"]
_KINDS: dict[str, Kind] = {
    "redis": "one", "unix": "one", "redis+sentinel": "sentinel", "redis+cluster": "cluster",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisPlace:
    kind: Kind
    endpoints: tuple[Endpoint, ...] = ()
    """The Redis, the Sentinels or the cluster's nodes; none for a socket."""
    path: str = ""
    service: str = ""
    """What the Sentinels call the primary and its replicas."""
    db: int = 0
    username: str = ""
    password: str = ""

    @property
    def is_replicated(self) -> bool:
        return self.kind != "one"


def parse_redis_url(url: str) -> RedisPlace:
    """Raises ValueError, whose message says what is wanted and has no password in it."""
    scheme, separator, rest = url.strip().partition("://")
    kind = _KINDS.get(scheme)
    if kind is None or not separator:
        raise ValueError(
            "REDIS_URL: redis://host:port/db, unix:///path, redis+sentinel://host:port,host:port/SERVICE or "
            f"redis+cluster://host:port,host:port is wanted, not {scheme if separator else ''}://"
        )
    credentials, _, rest = rest.rpartition("@")
    username, _, password = credentials.partition(":")
    username, password = unquote(username), unquote(password)
    rest, _, query = rest.partition("?")
    asked_db = parse_qs(query).get("db", [""])[0]
    if scheme == "unix":
        if not rest.startswith("/"):
            raise ValueError(f"REDIS_URL: unix:///path is wanted, not unix://{rest}")
        return RedisPlace(kind, path=unquote(rest), db=_db(asked_db), username=username, password=password)
    hosts, *path = rest.split("/")
    endpoints = tuple(_endpoint(text, SENTINEL_PORT if kind == "sentinel" else REDIS_PORT) for text in hosts.split(","))
    path = [unquote(part) for part in path if part]
    if kind == "sentinel":
        if len(path) not in (1, 2):
            raise ValueError(
                "REDIS_URL: the name of the service that the Sentinels watch is wanted at the end: "
                f"{scheme}://{hosts}/SERVICE"
            )
        return RedisPlace(
            kind,
            endpoints,
            service=path[0],
            db=_db(path[1] if path[1:] else asked_db),
            username=username,
            password=password,
        )
    if kind == "cluster":
        if path not in ([], ["0"]) or asked_db not in ("", "0"):
            raise ValueError("REDIS_URL: a Redis Cluster has no databases but 0: leave out what follows the hosts")
        return RedisPlace(kind, endpoints, username=username, password=password)
    if len(endpoints) > 1 or len(path) > 1:
        raise ValueError(
            "REDIS_URL: redis:// names one Redis, as redis://host:port/db; "
            "for several there are redis+sentinel:// and redis+cluster://"
        )
    return RedisPlace(kind, endpoints, db=_db(path[0] if path else asked_db), username=username, password=password)


def _endpoint(text: str, port: int) -> Endpoint:
    host, colon, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host, number = text, str(port)
    host = host.strip("[]")
    if not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError(f"REDIS_URL: host:port is wanted, not {text!r}")
    return Endpoint(host, int(number))


def _db(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError(f"REDIS_URL: the number of a database is wanted, not {text!r}")
    return int(text or 0)
