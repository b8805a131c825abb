"""A mount's own network: one wire to the servers, which a test can cut, half or whole, reset, slow down and divert.

    with Wire() as wire, WiredCluster(wire) as cluster:
        mount = cluster.mount(through=wire.enter)
        with wire.cut(cluster.nodes[0].address):
            ...

The servers listen at this end of a veth pair, the mount runs at the other, in a network namespace that
holds all the rules. It ends with the last process in it, so nothing stays behind, whatever happens. A
shell in it does what a test asks: this process starts no program meanwhile, because a fork closes, and
so flushes, the files it holds open on a mount. Needs root, iproute2 and iptables.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tests.support.cluster import Cluster, ReplicatedCluster
from tests.support.processes import Place
from tests.support.redis_ha import SentinelRedis

COMMAND_SECONDS = 20.0
DONE = "done"
FAR_DEVICE = "dcs0"
ANSWER_BYTES_MIN = 100
"""What is smaller belongs to TCP alone: its headers and, as a connection begins, its options."""


class Wire:
    def __init__(self) -> None:
        block = random.randrange(1 << 14) * 4
        self._network = f"10.213.{block >> 8}."
        self.host = f"{self._network}{(block & 255) + 1}"
        """Where the servers are to listen."""
        self._far_host = f"{self._network}{(block & 255) + 2}"
        self._device = f"dcs{block:x}"

    def __enter__(self) -> Self:
        self._shell = subprocess.Popen(
            ["unshare", "--net", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            self.run("ip link set lo up")  # Answered: it has left our namespace.
            pair = f"link add {self._device} type veth peer name {FAR_DEVICE} netns {self._shell.pid}"
            for command in (pair, f"addr add {self.host}/30 dev {self._device}", f"link set {self._device} up"):
                subprocess.run(["ip", *command.split()], check=True, timeout=COMMAND_SECONDS)
            self.run(f"ip addr add {self._far_host}/30 dev {FAR_DEVICE} && ip link set {FAR_DEVICE} up")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._shell.communicate(timeout=COMMAND_SECONDS)  # The end of its input ends it.
        gone = ["ip", "link", "del", self._device]  # Unless the namespace has taken it along already.
        subprocess.run(gone, check=False, capture_output=True, timeout=COMMAND_SECONDS)

    @property
    def enter(self) -> Sequence[str]:
        """What a command is to begin with to run at the far end."""
        return ["nsenter", f"--net=/proc/{self._shell.pid}/ns/net"]

    def run(self, command: str) -> str:
        """What the command, run at the far end, says; fails the test when it fails."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}; }} </dev/null 2>&1; echo {DONE} $?\n")
        said: list[str] = []
        for line in self._shell.stdout:
            if line.startswith(DONE):
                assert line == f"{DONE} 0\n", f"{command}: {''.join(said)}"
                return "".join(said)
            said.append(line)
        raise AssertionError(f"the shell of the network ended at: {command}")

    @property
    def far(self) -> Place:
        """For a server that is to be at the far end."""
        return Place(self._far_host, self.enter)

    @contextmanager
    def crossed(self) -> Iterator[None]:
        """This thread makes its connections from the far end meanwhile, and starts its programs there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as near, open(f"/proc/{self._shell.pid}/ns/net") as far:
            assert libc.setns(far.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(near.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    # Faults, each for the time of a `with`. The addresses are host:port of servers.

    def cut(self, *addresses: str) -> _Rules:
        """No packet arrives, in either direction."""
        return self._rules([rule for a in addresses for rule in (f"OUTPUT {_to(a)} DROP", f"INPUT {_of(a)} DROP")])

    def cut_all(self) -> _Rules:
        """As `cut`, whoever it is from or for."""
        return self._rules([f"OUTPUT -o {FAR_DEVICE} -j DROP", f"INPUT -i {FAR_DEVICE} -j DROP"])

    def lose_all_from(self, *addresses: str) -> _Rules:
        """What is sent arrives there, and nothing comes back: no answers, and no acknowledgements either."""
        return self._rules([f"INPUT {_of(address)} DROP" for address in addresses])

    def lose_answers(self, *addresses: str) -> _Rules:
        """Connections are made and requests arrive and are acknowledged, but their answers are lost."""
        length = f"-m length --length {ANSWER_BYTES_MIN}:65535"
        return self._rules([f"INPUT {_of(address, length)} DROP" for address in addresses])

    def refuse(self, *addresses: str) -> _Rules:
        """New connections are refused, and those that are there are reset as soon as they are used."""
        return self._rules([f"OUTPUT {_to(address)} REJECT --reject-with tcp-reset" for address in addresses])

    def _rules(self, rules: Sequence[str]) -> _Rules:
        return _Rules(self, rules)

    @contextmanager
    def divert(self, address: str, to: str) -> Iterator[None]:
        """New connections to the one address end at the other; the mount is to have none there yet."""
        host, _, port = address.rpartition(":")
        rule = f"OUTPUT -p tcp -d {host} --dport {port} -j DNAT --to-destination {to}"
        self.run(f"iptables -w 10 -t nat -A {rule}")
        try:
            yield
        finally:
            self.run(f"iptables -w 10 -t nat -D {rule}")

    @contextmanager
    def slow(self, bits_per_second: int) -> Iterator[None]:
        """So much passes, in each direction."""
        limit = f"root tbf rate {bits_per_second}bit burst 16kb latency 1s"
        near = ["tc", "qdisc", "add", "dev", self._device, *limit.split()]
        subprocess.run(near, check=True, timeout=COMMAND_SECONDS)
        self.run(f"tc qdisc add dev {FAR_DEVICE} {limit}")
        try:
            yield
        finally:
            self.run(f"tc qdisc del dev {FAR_DEVICE} root")
            subprocess.run(["tc", "qdisc", "del", "dev", self._device, "root"], check=True, timeout=COMMAND_SECONDS)


class _Rules:
    """Rules of the far end's firewall, there within a `with`, which can be entered again."""

    def __init__(self, wire: Wire, rules: Sequence[str]) -> None:
        self._wire = wire
        self._rules = rules
        self.packets = 0
        """How many they met, once they are gone."""

    def __enter__(self) -> Self:
        self._wire.run(" && ".join(f"iptables -w 10 -A {rule}" for rule in self._rules))
        return self

    def __exit__(self, *_: object) -> None:
        self.packets = self._met()
        self._wire.run(" && ".join(f"iptables -w 10 -D {rule}" for rule in self._rules))

    def _met(self) -> int:
        rows = [line.split() for line in self._wire.run("iptables -w 10 -nvxL").splitlines()]
        return sum(int(row[0]) for row in rows if len(row) > 2 and row[2] in ("DROP", "REJECT"))


def _to(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"-p tcp -d {host} --dport {port} -j"


def _of(address: str, more: str = "") -> str:
    host, _, port = address.rpartition(":")
    return f"-p tcp -s {host} --sport {port} {more} -j"


class WiredCluster(Cluster):
    """Its servers listen at this end of a wire."""

    def __init__(self, wire: Wire, nodes: int = 3, **settings: str) -> None:
        self.host = wire.host
        super().__init__(nodes, **settings)


class SplitCluster(ReplicatedCluster):
    """The first primary of Redis and a naming server are at the far end of a wire, as its one mount is to be: all
    else is here, where the Sentinels are."""

    def __init__(self, wire: Wire, nodes: int = 3, **settings: str) -> None:
        self.host = wire.host
        self._wire = wire
        super().__init__(lambda path: SentinelRedis(path, Place(wire.host), wire.far), nodes, **settings)

    def _place_of_naming(self, index: int) -> Place:
        return self._wire.far if index == 1 else Place(self.host)
