"""A whole cluster of real processes for tests: Redis, a naming server, storage nodes, mounts.

    with Cluster(nodes=3) as cluster:
        cluster.write("/a", b"hello")
        cluster.corrupt_chunk_on_disk(cluster.replicas_of("/a")[0])
        assert cluster.read("/a") == b"hello"

Every part is a `Process` that a test may kill, stop, pause and start again; it keeps its port
and its data. Graces and intervals are short, see SHORT. Leaving the `with` ends all that was
started and removes all that was made, whatever happened; it fails when something did not end
by itself. Blocking; from async code, use a thread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from servers.client.http import no_tls
from servers.protocol.names import escape
from tests.support.processes import (
    CHECKOUT,
    STOP_SECONDS,
    Place,
    Process,
    base_environment,
    free_port,
    is_healthy,
    wait_for,
)
from tests.support.redis_ha import RedisGroup

SECRET = "the-secret-of-a-test-cluster"
SHORT = {
    "ORPHAN_GRACE_SECONDS": "2",
    "CONDEMNED_GRACE_SECONDS": "2",
    "GARBAGE_GRACE_SECONDS": "3",
    "GARBAGE_INTERVAL_SECONDS": "1",
    "GARBAGE_BRAKE_SHARE": "1",
    "BACKGROUND_INTERVAL_SECONDS": "0.2",
    "TRASH_DAYS": "0",
    "SNAPSHOT_INTERVAL_SECONDS": "0",
    "RETURNS_TOLERATED": "1000",
}
"""Settings of the naming server that make the background jobs quick enough to wait for, nodes that are killed
again and again trusted as at first, and garbage deleted of volumes that have nothing else."""
COMMAND_SECONDS = 120.0
CALL_SECONDS = 30.0
BUSY_SECONDS = 5.0
DRAIN_SECONDS = 120.0
"""Longer than the lease of a session that was killed."""


LIVING: set[Cluster] = set()
"""The clusters of this test run that are not closed yet."""


@dataclass(frozen=True)
class Replica:
    """One node's copy of an extent, as it lies on that node's disk."""

    extent: str
    node: int
    path: Path
    chunk: int
    length: int
    """Bytes of data; the file goes on with the footer."""


class Node(Process):
    """A storage node. `number` is the naming server's name for it. Restarted under strace it can be hurt inside any
    system call."""

    number = 0
    data_dir: Path
    address: str

    def path_of(self, extent: str) -> Path | None:
        """Where the replica lies on this node's disk; None when it has none."""
        return next((self.data_dir / "extents").glob(f"*/{extent}"), None)

    def extents(self) -> set[str]:
        return {name for _, _, names in os.walk(self.data_dir / "extents") for name in names}

    def restart_with(self, *faults: str) -> None:
        """Stops it if it runs, and starts it under strace with these arguments; without any, as it is."""
        if self.is_running:
            self.stop()
        plain = self._command[self._command.index("--") + 1 :] if self._is_traced else self._command
        # Without --seccomp-bpf: strace 6.1 misses injected signals with it.
        strace = [shutil.which("strace") or "strace", "-f", "-qq", "-o", "/dev/null", *faults, "--"]
        self._command = [*strace, *plain] if faults else plain
        self.start()

    @property
    def _is_traced(self) -> bool:
        return self._command[0].endswith("strace")

    def _signal_traced(self, number: signal.Signals) -> None:
        """strace ends with what it traces, which has to be told itself."""
        if self._is_traced and self.is_running:
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                os.kill(int(child), number)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        if self._is_traced and self.is_running:
            self._signal_traced(signal.SIGTERM)
            wait_for(lambda: not self.is_running, "strace has ended")
        return super().stop(seconds)

    def kill(self) -> None:
        self._signal_traced(signal.SIGKILL)
        super().kill()


class Mount:
    """`python -m fusefs` in the foreground on a directory of its own."""

    def __init__(self, path: Path, process: Process) -> None:
        self.path = path
        self.process = process

    def start(self) -> None:
        self.process.start()

    def unmount(self) -> None:
        """All that was written is stored and the daemon has ended well."""
        command = ["fusermount3", "-u", str(self.path)]

        def is_unmounted() -> bool:
            return subprocess.run(command, capture_output=True, timeout=CALL_SECONDS).returncode == 0

        # Whoever looks up a path in it at this very moment, any program of the machine, makes it busy.
        wait_for(is_unmounted, f"nobody uses {self.path} any more", BUSY_SECONDS)
        wait_for(lambda: not self.process.is_running, f"the daemon of {self.path} has ended", 60)
        assert self.process.exit_status == 0, self.process.log_tail()

    def remount(self) -> None:
        self.unmount()
        self.start()

    def kill(self) -> None:
        """The daemon dies by SIGKILL; the kernel's dead mount is taken away."""
        self.process.kill()
        self.detach()

    def detach(self) -> None:
        if is_mounted(self.path):
            subprocess.run(["fusermount3", "-uz", str(self.path)], capture_output=True, timeout=CALL_SECONDS)


def is_mounted(path: Path) -> bool:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        # proc(5): blanks and backslashes of the path are octal escapes.
        if re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split()[4]) == os.fsencode(path):
            return True
    return False


class Cluster:
    namings_at_start = 1
    host = "127.0.0.1"
    """Where the naming servers and the storage nodes listen."""

    def __init__(self, nodes: int = 3, **settings: str) -> None:
        """`settings` are environment variables of all its programs, over SHORT; CHUNK_SIZE="1024" and so on."""
        self.directory = Path(tempfile.mkdtemp(prefix="dcs-test-")).resolve()
        (self.directory / "logs").mkdir()
        self.redis_port = free_port()
        self.redis_data = self.directory / "redis"
        naming_ports = [free_port() for _ in range(self.namings_at_start)]
        self.addresses = [f"{self._place_of_naming(i).host}:{port}" for i, port in enumerate(naming_ports, 1)]
        """Of the naming servers."""
        self.address = self.addresses[0]
        self.naming_url = f"http://{self.address}"
        """Of the first."""
        self.naming_urls = ",".join(f"http://{address}" for address in self.addresses)
        self.secret = SECRET
        self.environment = {
            **base_environment(), "DCS_SECRET": SECRET, "DCS_HOME": str(self.directory / "home"), "LOG_LEVEL": "info",
            "NAMING_URL": self.naming_urls, **SHORT, **settings,
        }  # fmt: skip
        """What a client of this cluster, and each of its programs, has in its environment."""
        self._http = httpx.Client(
            base_url=self.naming_url,
            headers={"authorization": f"Bearer {SECRET}"},
            trust_env=False,
            verify=no_tls(),
            timeout=CALL_SECONDS,
        )
        self.redis = self._make_redis(self.redis_port)
        self.namings = [self._make_naming(index, port) for index, port in enumerate(naming_ports, 1)]
        self.naming = self.namings[0]
        self.nodes: list[Node] = []
        self.mounts: list[Mount] = []
        self.cleanups = ExitStack()
        """Called when all processes have ended, before the directory goes."""
        self._nodes_at_start = nodes
        LIVING.add(self)

    # Living and dying.

    def __enter__(self) -> Self:
        try:
            self._start_redis()
            for naming in self.namings:
                naming.start(wait=False)
            for naming in self.namings:
                naming.wait_ready()
            self.add_nodes(*({} for _ in range(self._nodes_at_start)))
        except AssertionError as error:
            logs = self.log_tails()
            self.close(kill=True)
            raise AssertionError(f"{error}\n{logs}") from error
        except BaseException:
            self.close(kill=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kill=error is not None)

    def close(self, *, kill: bool = False) -> None:
        """Nothing of it is left. Fails, afterwards, when a program did not end by itself; not with `kill`."""
        problems: list[str] = []
        for mount in self.mounts:
            self._end_mount(mount, kill, problems)
        for process in (*self.nodes, *self.namings, *self._redis_programs()):
            if kill:
                process.kill()
        for process in (
            *self.nodes,
            *self.namings,
            *self._redis_programs(),
        ):  # Redis last: the naming server says goodbye to it.
            try:
                process.stop()
            except AssertionError as error:
                problems.append(str(error))
        self._http.close()
        self.cleanups.close()
        shutil.rmtree(self.directory)
        LIVING.discard(self)
        assert not problems, "\n".join(problems)

    def _end_mount(self, mount: Mount, kill: bool, problems: list[str]) -> None:
        if not kill and mount.process.is_running and is_mounted(mount.path):
            try:
                mount.process.resume()
                mount.unmount()
            except (AssertionError, subprocess.SubprocessError) as error:
                problems.append(f"unmount {mount.path}: {error}")
        mount.kill()
        if is_mounted(mount.path):
            problems.append(f"{mount.path} is still mounted")

    def log_tails(self) -> str:
        """How every program's log ends."""
        programs = (*self._redis_programs(), *self.namings, *self.nodes, *(mount.process for mount in self.mounts))
        return "\n".join(f"== {program.name}\n{program.log_tail()}" for program in programs)

    def kill_mounts(self) -> None:
        """Whoever waits for one of its mounts gets ENOTCONN at once; callable from any thread."""
        for mount in self.mounts:
            mount.process.signal(signal.SIGKILL)

    # Its parts.

    def _process(
        self, name: str, command: list[str | Path], is_ready: Callable[[], object], **environment: str
    ) -> Process:
        log = self.directory / "logs" / f"{name}.log"
        return Process(name, command, {**self.environment, **environment}, log, is_ready)

    def _make_redis(self, port: int) -> Process:
        self.redis_data.mkdir()
        words = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --maxmemory-policy noeviction"
        words += " --repl-diskless-sync-delay 0 --shutdown-timeout 0"
        command: list[str | Path] = ["redis-server", *words.split(), "--save", "", "--dir", self.redis_data]
        return self._process("redis", command, lambda: self.ask_redis("PING") == "PONG")

    def _redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/0"

    def _redis_programs(self) -> Sequence[Process]:
        return [self.redis]

    def _start_redis(self) -> None:
        self.redis.start()

    def _place_of_naming(self, index: int) -> Place:
        return Place(self.host)

    def _make_naming(self, index: int, port: int) -> Process:
        place = self._place_of_naming(index)
        command: list[str | Path] = [*place.through, sys.executable, "-m", "servers.naming"]
        return self._process(
            "naming" if index == 1 else f"naming{index}", command, lambda: is_healthy(f"{place.host}:{port}"),
            HOST=place.host, PORT=str(port), REDIS_URL=self._redis_url(),
        )  # fmt: skip

    def limit_disk(self, index: int, size: int) -> None:
        """The data of node `index`, which is yet to be added, lies on a file system of so many bytes. Needs root."""
        path = self.directory / f"node{index}"
        path.mkdir()
        self._limit(path, size)

    def limit_redis_disk(self, size: int) -> None:
        """As `limit_disk`; before the cluster starts."""
        self._limit(self.redis_data, size)

    def _limit(self, path: Path, size: int) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "dcs-test", path], check=True, timeout=CALL_SECONDS
        )
        self.cleanups.callback(lambda: subprocess.run(["umount", "-l", path], check=True, timeout=CALL_SECONDS))

    def _new_node(self) -> Node:
        index, port = len(self.nodes) + 1, free_port()
        address = f"{self.host}:{port}"
        data_dir = self.directory / f"node{index}"
        environment = {**self.environment, "HOST": self.host, "PORT": str(port), "DATA_DIR": str(data_dir)}
        log = self.directory / "logs" / f"node{index}.log"
        node = Node(
            f"node{index}", [sys.executable, "-m", "servers.storage"], environment, log, lambda: is_healthy(address)
        )
        node.data_dir, node.address = data_dir, address
        self.nodes.append(node)
        return node

    def add_node(self) -> Node:
        """One more storage node, alive."""
        (node,) = self.add_nodes({})
        return node

    def add_nodes(self, *settings: Mapping[str, str]) -> list[Node]:
        """So many more storage nodes, alive, each with these settings of its own; RACK="r1" and so on."""
        added = [self._new_node() for _ in settings]
        for node, own in zip(added, settings, strict=True):
            node.environment.update(own)
            node.start(wait=False)
        for node in added:
            node.wait_ready()
        self.wait_alive(len(self.nodes))
        return added

    def mount(self, name: str = "mnt", *options: str, through: Sequence[str] = (), **environment: str) -> Mount:
        """A mount below the cluster's directory, working. `options` as `python -m fusefs` takes them; `through` is
        a program that becomes the one it is told to run, such as nsenter."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        command: list[str | Path] = [
            *through, sys.executable, "-m", "fusefs", path, "--naming-url", self.naming_urls, "--foreground", *options,
        ]  # fmt: skip
        mount = Mount(path, self._process(f"mount-{name}", command, lambda: is_mounted(path), **environment))
        self.mounts.append(mount)
        mount.start()
        return mount

    # Asking.

    def rest(self, method: str, target: str, content: object = None) -> httpx.Response:
        """A request to the naming server's JSON routes, with the secret."""
        return self._http.request(method, target, json=content)

    def status(self) -> dict[str, Any]:
        answer = self.rest("GET", "/v1/status")
        assert answer.status_code == 200, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def wait_alive(self, count: int) -> None:
        """So many nodes have registered and are alive; their `number` is known from here on."""

        def alive() -> dict[str, int]:
            rows = self.rest("GET", "/v1/nodes").json()["nodes"]
            found = {row["address"]: row["number"] for row in rows if row["state"] == "alive"}
            return found if len(found) >= count else {}

        numbers = wait_for(alive, f"{count} storage nodes are alive") if count else {}
        for node in self.nodes:
            node.number = numbers.get(node.address, node.number)

    def wait_state(self, node: Node, state: str, seconds: float = 60) -> None:
        def has_state() -> bool:
            rows = self.rest("GET", "/v1/nodes").json()["nodes"]
            return any(row["number"] == node.number and row["state"] == state for row in rows)

        wait_for(has_state, f"{node.name} is {state}", seconds)

    def ask_redis(self, *command: str) -> str:
        """A Redis command's answer as redis-cli prints it."""
        asked = subprocess.run(
            ["redis-cli", "-p", str(self.redis_port), *command], capture_output=True, text=True, timeout=CALL_SECONDS
        )
        return asked.stdout.strip()

    def dcs(
        self,
        *arguments: str | bytes | Path,
        stdin: bytes = b"",
        expect: int | None = 0,
        seconds: float = COMMAND_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """`dcs ARGUMENTS` as a person would call it; fails the test for another exit status than expected."""
        command = [sys.executable, "-m", "servers.admin", *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, cwd=CHECKOUT, timeout=seconds,
            env={**self.environment, **(environment or {})},
        )  # fmt: skip
        said = done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr, said
        said += done.stdout[:1000].decode(errors="replace")
        assert expect is None or done.returncode == expect, f"dcs {arguments}: {done.returncode}, {said}"
        return done

    def start_dcs(self, *arguments: str | bytes | Path) -> subprocess.Popen[bytes]:
        """`dcs ARGUMENTS` in the background, with pipes; for `with`, which waits for its end."""
        command = [sys.executable, "-m", "servers.admin", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.environment, cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe)

    def dcs_json(self, *arguments: str | bytes | Path, expect: int | None = 0, seconds: float = COMMAND_SECONDS) -> Any:
        return json.loads(self.dcs(*arguments, "--json", expect=expect, seconds=seconds).stdout)

    # Files.

    def write(self, name: str | bytes, data: bytes, *options: str) -> None:
        self.dcs("create", *options, "-", name, stdin=data)

    def read(self, name: str | bytes) -> bytes:
        return self.dcs("read", name, "-").stdout

    def replicas_of(self, name: str | bytes) -> list[Replica]:
        """All replicas of the file's extents, chunk by chunk, as they lie on the disks."""
        raw = os.fsencode(name)
        found = self.rest("GET", str(httpx.URL("/files", params={"name": escape(raw)})))
        assert found.status_code == 200, found.text
        file = found.json()
        replicas = []
        for index in range(-(-file["size"] // file["chunk_size"])):
            for part in self.rest("GET", f"/files/{file['file_id']}/chunks/{index}").json()["parts"]:
                length = part["extent_offset"] + part["length"]
                for server in part["servers"]:
                    path = self.node(server["node"]).path_of(part["extent"])
                    if path is not None:
                        replicas.append(Replica(part["extent"], server["node"], path, index, length))
        return replicas

    def all_replicas_of(self, name: str | bytes, copies: int = 3) -> list[Replica]:
        """As `replicas_of`, once each extent has so many. A mount's write does with fewer when a node is slow on a busy
        machine, and repair brings the others."""

        def found() -> list[Replica]:
            replicas = self.replicas_of(name)
            return replicas if set(Counter(r.extent for r in replicas).values()) == {copies} else []

        return wait_for(found, f"all of {name!r} has {copies} copies", 60)

    def node(self, number: int) -> Node:
        return next(node for node in self.nodes if node.number == number)

    # Faults.

    def corrupt_chunk_on_disk(self, replica: Replica, at: int = 0) -> None:
        """One bit of the replica's data is another."""
        with replica.path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    def truncate_chunk_on_disk(self, replica: Replica, length: int | None = None) -> None:
        """The replica's file ends early; by default in the middle of its data."""
        os.truncate(replica.path, replica.length // 2 if length is None else length)

    def delete_chunk_on_disk(self, replica: Replica) -> None:
        replica.path.unlink()

    # Judging.

    def damaged_nodes(self, extent: str) -> set[int]:
        """The nodes whose replica of the extent is known to be damaged; the status counts them too."""
        reported = [row for row in self.rest("GET", "/v1/damage").json()["damaged"] if row["extent"] == extent]
        assert self.status()["damaged"] >= len(reported)
        return {row["node"] for row in reported}

    def damage_met(self) -> int:
        """Grows with each damaged replica that is reported, whether it is repaired by now or not."""
        status = self.status()
        return int(status["damaged"] + status["repair"]["copies"])

    def states_of(self, name: str | bytes) -> list[list[str]]:
        """Of each extent of the file, what became of its replicas: ok, damaged, missing or unknown."""
        chunks = self.dcs_json("explain", name)["chunks"]
        return [[r["state"] for r in segment["replicas"]] for chunk in chunks for segment in chunk["segments"]]

    def wait_whole(self, name: str | bytes, copies: int = 3, seconds: float = 60) -> None:
        """Every extent of the file has so many good replicas, and no other."""
        wait_for(
            lambda: all(states == ["ok"] * copies for states in self.states_of(name)),
            f"all of {name!r} has {copies} good copies", seconds,
        )  # fmt: skip

    def wait_clean(self, seconds: float = DRAIN_SECONDS) -> None:
        """Nothing is missing, and once what was deleted is gone no node has what metadata does not know."""
        self.dcs("fsck", "--wait", str(int(seconds)), seconds=seconds + COMMAND_SECONDS)


class ReplicatedCluster(Cluster):
    """With two naming servers, and several Redis processes in place of one."""

    namings_at_start = 2

    def __init__(self, make_redis: Callable[[Path], RedisGroup], nodes: int = 3, **settings: str) -> None:
        self._make_group = make_redis
        super().__init__(nodes, **settings)

    def _redis_url(self) -> str:
        return self.redises.url

    @cached_property
    def redises(self) -> RedisGroup:
        directory = self.directory / "replicated"
        directory.mkdir()
        return self._make_group(directory)

    def _redis_programs(self) -> Sequence[Process]:
        return self.redises.programs

    def _start_redis(self) -> None:
        self.redises.start()
