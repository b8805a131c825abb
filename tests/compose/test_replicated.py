"""deploy/compose.ha.yaml: two naming servers, three Redis with Sentinel. Any one container may be killed."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose_stack import Stack
from tests.support.docker_engine import Engine
from tests.support.manifest import Manifest
from tests.support.processes import wait_for
from tests.support.writing_program import WritingProgram

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

STALL_SECONDS_MAX = 15.0
SLACK_SECONDS = 10.0
"""For a machine on which many others are at work; what was measured is printed."""
SENTINELS = ("sentinel1", "sentinel2", "sentinel3")
REDIS = ("redis", "redis2", "redis3")


@pytest.fixture(scope="module")
def replicated(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(engine, tmp_path_factory.mktemp("replicated"), "deploy/compose.ha.yaml") as stack:
        stack.build()
        print(f"up in {stack.up('--wait'):.1f} s")
        yield stack


def test_each_container_is_killed_in_turn_under_load(replicated: Stack, tmp_path: Path) -> None:
    """The primary stays dead until another has taken over, the others come back at once: no error, no long stall.

    Then the mount dies, and every promise is kept.
    """
    directory = replicated.mountpoint / "promises"
    directory.mkdir()
    first = primary(replicated)
    with WritingProgram(directory, tmp_path / "manifest", 1) as program:
        replicated.engine.docker("kill", replicated.containers(first)[0])
        wait_for(lambda: primary(replicated) != first, "another Redis is the primary", 60)
        program.must_go_on()
        failover = program.stall_since_last_asked()
        print(f"{first} killed: longest stall {failover:.1f} s")
        assert failover < STALL_SECONDS_MAX + SLACK_SECONDS
        replicated.compose("start", first)
        wait_for(lambda: replicas(replicated) == 2, "the old primary is a replica of the new one", 60)
        for service in (*SENTINELS, "naming_server", "naming_server_2", *(s for s in REDIS if s != first)):
            program.must_go_on()
            replicated.crash(replicated.containers(service)[0])
            program.must_go_on()
            stall = program.stall_since_last_asked()
            print(f"{service} killed: longest stall {stall:.1f} s")
            assert stall < STALL_SECONDS_MAX + SLACK_SECONDS
            wait_for(lambda: replicas(replicated) == 2, "both replicas follow", 60)
        replicated.crash(replicated.containers("fuse")[0])
        assert program.errno() in (errno.ENOTCONN, errno.ECONNABORTED)
    replicated.wait_usable()
    manifest = Manifest()
    manifest.read(tmp_path / "manifest")
    manifest.check(directory, manifest.names)
    assert json.loads(replicated.dcs("status", "--json"))["missing"] == 0


def test_all_of_it_stops_and_starts(replicated: Stack) -> None:
    """Whoever was the primary then: nothing is lost and changes are taken again."""
    (replicated.mountpoint / "kept").write_text("through stop and start")
    began = time.monotonic()
    replicated.compose("stop", seconds=240)
    replicated.compose("up", "--detach", "--wait", seconds=240)
    replicated.wait_usable()
    print(f"stopped and started in {time.monotonic() - began:.1f} s")
    assert (replicated.mountpoint / "kept").read_text() == "through stop and start"
    (replicated.mountpoint / "after").write_text("works")


def primary(stack: Stack) -> str:
    """The service that most Sentinels call the primary."""
    said = [ask(stack, name, "-p", "26379", "sentinel", "get-master-addr-by-name", "dcs") for name in SENTINELS]
    names = [answer.split()[0] for answer in said if answer.split()]
    name = max(names, key=names.count)
    return "redis" if name == "redis1" else name


def replicas(stack: Stack) -> int:
    """That are connected to the primary."""
    return ask(stack, primary(stack), "info", "replication").count("state=online")


def ask(stack: Stack, service: str, *command: str) -> str:
    return stack.compose("exec", "-T", service, "redis-cli", *command, expect=None)
