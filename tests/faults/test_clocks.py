"""Clocks that jump by an hour and back: of a naming server and the nodes, and of a mount."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.caller import Caller
from tests.support.cluster import Cluster, Mount
from tests.support.fault_table import note_stall
from tests.support.load import Load, wait_steps
from tests.support.processes import base_environment
from tests.support.wrong_clock import WrongClock

pytestmark = pytest.mark.long
JUMPS = (3600, 0, -3600, 0)
STALL_SECONDS_MAX = 5.0
SKEW_SECONDS = 2.0
"""What a busy machine adds between a change and our look at it."""
HOUR = 3600
RIGHT = {"LD_PRELOAD": ""}
"""The environment of a program whose clock is right."""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WrongClock:
    """Shown to work, before anything depends on it."""
    made = WrongClock(tmp_path_factory.mktemp("clock"))
    made.set(HOUR)
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"],
        env={**base_environment(), **made.environment}, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    wall, steady = map(float, told.stdout.split())
    assert abs(wall - time.time() - HOUR) < 30
    assert abs(steady - time.monotonic()) < 30
    made.set(0)
    return made


@pytest.fixture(scope="module")
def wrong(clock: WrongClock, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Those that the test says go by that clock: the naming server, the nodes, or both. Never Redis, whose time is the
    volume's."""
    cluster = Cluster(0, **clock.environment)
    cluster.redis.environment.update(RIGHT)
    if request.param == "nodes":
        cluster.naming.environment.update(RIGHT)
    with cluster:
        cluster.add_nodes(*([RIGHT if request.param == "naming server" else {}] * 3))
        yield cluster


@pytest.fixture(autouse=True)
def right_again(clock: WrongClock) -> Iterator[None]:
    yield
    clock.set(0)


def expect_now(found: os.stat_result) -> None:
    """The file was changed just now, by both of its times."""
    for seconds in (found.st_mtime, found.st_ctime):
        assert abs(seconds - time.time()) < SKEW_SECONDS


def write_now(mount: Mount) -> os.stat_result:
    """What the mount shows of a file that was written just now."""
    (mount.path / "watched").write_bytes(b"now")
    return (mount.path / "watched").stat()


@pytest.mark.fault("M15")
@pytest.mark.parametrize("wrong", ["naming server", "nodes", "all"], indirect=True)
def test_the_clocks_of_naming_server_and_nodes_may_jump(wrong: Cluster, clock: WrongClock) -> None:
    """Nothing happens: no error, times are right and never go back, nodes stay alive, deletions are obeyed, whoever of
    the two is ahead."""
    mount = wrong.mount("right", **RIGHT)
    load = Load(mount.path / "load", threads=2)
    modified = changed = 0.0
    with load:
        for jump in JUMPS:
            clock.set(jump)
            wait_steps(load, 60)
            found = write_now(mount)
            expect_now(found)
            assert found.st_mtime > modified
            assert found.st_ctime > changed
            modified, changed = found.st_mtime, found.st_ctime
            assert {row["state"] for row in wrong.rest("GET", "/v1/nodes").json()["nodes"]} == {"alive"}
    note_stall(load.longest_seconds)
    assert load.longest_seconds < STALL_SECONDS_MAX
    mount.remount()
    load.check(mount.path / "load")
    files = sorted((mount.path / "load").iterdir())
    for jump, some in ((HOUR, files[::2]), (-HOUR, files[1::2])):
        clock.set(jump)
        for path in some:
            path.unlink()
        mount.unmount()
        wrong.wait_clean()  # The nodes have deleted what they were told to.
        mount.start()


@pytest.mark.fault("C7")
@pytest.mark.parametrize("wrong", ["all"], indirect=True)
def test_the_clock_of_a_mount_may_jump(wrong: Cluster, clock: WrongClock) -> None:
    """Nothing happens: times are the volume's, and never go back, not even those of files that are being written."""
    mount = wrong.mount("wrong")
    load = Load(mount.path / "load-of-wrong", threads=2)
    modified = changed = 0.0
    with load, Caller() as caller:
        descriptor = caller.do("open", mount.path / "open", os.O_RDWR | os.O_CREAT)
        for jump in JUMPS:
            clock.set(jump)
            caller.do("write", descriptor, b"not stored yet")
            held = caller.do("fstat", descriptor)
            caller.do("fsync", descriptor)
            stored = caller.do("fstat", descriptor)
            for found in (held, stored):
                expect_now(found)
                assert found.st_mtime >= modified
                assert found.st_ctime >= changed
                modified, changed = found.st_mtime, found.st_ctime
            expect_now(write_now(mount))
            wait_steps(load, 60)
    note_stall(load.longest_seconds)
    assert load.longest_seconds < STALL_SECONDS_MAX
    mount.remount()
    load.check(mount.path / "load-of-wrong")
