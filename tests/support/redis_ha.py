"""Several Redis processes that stand in for each other: three with Sentinels, or six as a Redis Cluster.

With the configuration in `deploy/`. Like a `Process` for a `Cluster`, which starts and ends them;
a test kills, stops and cuts off single ones, and asks which is the primary now.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from servers.naming.redis_primary import SLOTS, slot_of
from tests.support.processes import CHECKOUT, HERE, Place, Process, base_environment, free_port, wait_for

ASK_SECONDS = 2.0
START_SECONDS = 60.0
VOLUME_KEY = "dcs:{main}:volume"


class RedisServer(Process):
    """One redis-server, a Sentinel or a node of a Redis Cluster."""

    port: int
    place: Place

    def ask(self, *command: str) -> str:
        """The answer as redis-cli prints it; "" when there is none in time."""
        words = [*self.place.through, "redis-cli", "-h", self.place.host, "-p", str(self.port), *command]
        try:
            return (
                subprocess.run(words, capture_output=True, timeout=ASK_SECONDS).stdout.decode(errors="replace").strip()
            )
        except subprocess.TimeoutExpired:
            return ""

    @property
    def is_primary(self) -> bool:
        return self.is_running and self.ask("ROLE").startswith("master")


def _server(directory: Path, name: str, *options: str, place: Place = HERE) -> RedisServer:
    data, port = directory / name, free_port()
    data.mkdir()
    shutil.copy(CHECKOUT / "deploy/redis.conf", data)  # Sentinels have it rewritten.
    command: list[str | Path] = [
        *place.through, "redis-server", data / "redis.conf", "--include", CHECKOUT / "deploy/redis.ha.conf",
        "--port", str(port), "--bind", place.host, "--protected-mode", "no", "--dir", data, *options,
    ]  # fmt: skip
    return _at(place, port, name, command, directory)


def _at(place: Place, port: int, name: str, command: Sequence[str | Path], directory: Path) -> RedisServer:
    server = RedisServer(name, command, base_environment(), directory / f"{name}.log", lambda: _answers(server))
    server.place, server.port = place, port
    return server


def _answers(server: RedisServer) -> bool:
    return server.ask("PING") == "PONG"


class RedisGroup:
    """What both have in common. All of `programs` live in `directory`."""

    url: str

    def __init__(self, servers: Sequence[RedisServer], watchers: Sequence[RedisServer] = ()) -> None:
        self.servers = list(servers)
        self.watchers = list(watchers)

    @property
    def programs(self) -> list[RedisServer]:
        return [*self.watchers, *self.servers]

    def start(self) -> None:
        for program in self.programs:
            program.start(wait=False)
        for program in self.programs:
            program.wait_ready()

    def mend(self) -> None:
        """All run, and two replicas are in step with the primary of the volume."""
        for program in self.programs:
            program.resume()
            if not program.is_running:
                program.start()
        wait_for(self.is_whole, "two replicas are in step with the primary of Redis", START_SECONDS)

    def is_whole(self) -> bool:
        """Two replicas are in step with the one that says it is the primary of two."""
        return any(s.is_running and s.ask("INFO", "replication").count("state=online") >= 2 for s in self.servers)

    def primary(self) -> RedisServer:
        """The one that has the volume, by its own word; waits while there is none."""
        raise NotImplementedError

    def primary_by_role(self) -> RedisServer:
        """By its own word alone."""
        return next(server for server in self.servers if server.is_primary)

    def replicas(self) -> list[RedisServer]:
        primary = self.primary()
        return [server for server in self.servers if server is not primary]


class SentinelRedis(RedisGroup):
    """A primary, two replicas, and three Sentinels; the first primary perhaps in another place."""

    def __init__(self, directory: Path, place: Place = HERE, place_of_first: Place = HERE) -> None:
        first = _server(directory, "redis1", place=place_of_first)
        follow = ("--replicaof", place_of_first.host, str(first.port))
        replicas = [_server(directory, f"redis{i}", *follow, place=place) for i in (2, 3)]
        sentinels = [_sentinel(directory, f"sentinel{i}", first, place) for i in (1, 2, 3)]
        super().__init__([first, *replicas], sentinels)
        hosts = ",".join(f"{place.host}:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{hosts}/dcs"

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        # A Sentinel learns of replicas that it does not see at first only 10 s later.
        wait_for(super().is_whole, "the replicas are in step", START_SECONDS)
        for sentinel in self.watchers:
            sentinel.start(wait=False)
        wait_for(self.is_whole, "the Sentinels know each other and the replicas", START_SECONDS)

    def is_whole(self) -> bool:
        return super().is_whole() and all(self._is_informed(sentinel) for sentinel in self.watchers)

    def _is_informed(self, sentinel: RedisServer) -> bool:
        words = sentinel.ask("SENTINEL", "MASTER", "dcs").splitlines()
        fields = dict(zip(words[::2], words[1::2], strict=False))
        return fields.get("num-slaves") == "2" and fields.get("num-other-sentinels") == "2"

    def primary(self) -> RedisServer:
        def named() -> RedisServer | None:
            """By most of the Sentinels that answer, and by its own word."""
            answers = [s.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "dcs") for s in self.watchers if s.is_running]
            ports = [int(answer.split()[-1]) for answer in answers if answer]
            for server in self.servers:
                if ports.count(server.port) * 2 > len(ports) and server.is_primary:
                    return server
            return None

        found = wait_for(named, "the Sentinels have a primary", START_SECONDS)
        assert found is not None
        return found


def _sentinel(directory: Path, name: str, primary: RedisServer, place: Place) -> RedisServer:
    data, port = directory / name, free_port()
    data.mkdir()
    text = (CHECKOUT / "deploy/sentinel.conf").read_text("ascii")
    text = text.replace("port 26379", f"port {port}\nbind {place.host}").replace("dir /tmp", f"dir {data}")
    text = text.replace("redis1 6379", f"{primary.place.host} {primary.port}")
    (data / "sentinel.conf").write_text(text)
    command: list[str | Path] = [*place.through, "redis-server", data / "sentinel.conf", "--sentinel"]
    return _at(place, port, name, command, directory)


class ClusterRedis(RedisGroup):
    """Three masters with the slots, and three replicas: two of the volume's master, one of the next."""

    def __init__(self, directory: Path) -> None:
        super().__init__([
            _server(directory, f"redis{i}", "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            for i in range(1, 7)
        ])  # fmt: skip
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        self.slot = slot_of(VOLUME_KEY.encode())

    def start(self) -> None:
        super().start()
        masters, replicas = self.servers[:3], self.servers[3:]
        edges = [SLOTS * i // 3 for i in range(4)]
        owner = next(i for i in range(3) if edges[i] <= self.slot < edges[i + 1])
        for i, master in enumerate(masters):
            master.ask("CLUSTER", "ADDSLOTSRANGE", str(edges[i]), str(edges[i + 1] - 1))
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", str(i + 1))
        for server in self.servers[1:]:
            bus = server.ask("CONFIG", "GET", "cluster-port").split()[-1]
            self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", str(server.port), bus)
        self._wait_all("cluster_known_nodes:6")
        for replica, index in zip(replicas, (owner, owner, (owner + 1) % 3), strict=True):
            replica.ask("CLUSTER", "REPLICATE", self.node_id(masters[index]))
        self._wait_all("cluster_state:ok")
        wait_for(self.is_whole, "the replicas are in step", START_SECONDS)

    def _wait_all(self, fact: str) -> None:
        def is_so() -> bool:
            return all(fact in server.ask("CLUSTER", "INFO") for server in self.servers)

        wait_for(is_so, f"{fact} at each node", START_SECONDS)

    def node_id(self, server: RedisServer) -> str:
        return server.ask("CLUSTER", "MYID")

    def primary(self) -> RedisServer:
        def owner() -> RedisServer | None:
            for server in self.servers:
                if server.is_primary and server.ask("EXISTS", VOLUME_KEY).isdecimal():
                    return server
            return None

        found = wait_for(owner, "the volume's slot has a master", START_SECONDS)
        assert found is not None
        return found

    def other_master(self) -> RedisServer:
        """With a replica, and without the volume."""
        for server in self.servers:
            replication = server.ask("INFO", "replication")
            if "state=online" in replication and not server.ask("EXISTS", VOLUME_KEY).isdecimal():
                return server
        raise AssertionError("no other master has a replica")

    def move_slot(self, source: RedisServer, target: RedisServer) -> None:
        """As `redis-cli --cluster reshard` does it, with the volume's slot."""
        slot = str(self.slot)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, "100").split():
            answer = source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
            assert answer in ("OK", "NOKEY"), answer
        for server in (target, source):
            answer = server.ask("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target))
            assert answer == "OK", answer
