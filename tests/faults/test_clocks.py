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
def wrong(clock: WrongClock) -> Iterator[Cluster]:
    """All go by that clock but Redis, whose time is the volume's."""
    cluster = Cluster(3, **clock.environment)
    cluster.redis.environment["LD_PRELOAD"] = ""
    with cluster:
        yield cluster


@pytest.fixture(autouse=True)
def right_again(clock: WrongClock) -> Iterator[None]:
    yield
    clock.set(0)


def changed(mount: Mount, name: str) -> float:
    """When a file that is written now was changed, as the mount shows it."""
    (mount.path / name).write_bytes(b"now")
    return (mount.path / name).stat().st_mtime


@pytest.mark.fault("M15")
def test_the_clocks_of_naming_server_and_nodes_may_jump(wrong: Cluster, clock: WrongClock) -> None:
    """Nothing happens: no error, times are right and never go back, nodes stay alive, deletions are obeyed."""
    mount = wrong.mount("right", LD_PRELOAD="")
    load = Load(mount.path / "load", threads=2)
    last = 0.0
    with load:
        for jump in JUMPS:
            clock.set(jump)
            wait_steps(load, 60)
            found = changed(mount, "watched")
            assert abs(found - time.time()) < SKEW_SECONDS
            assert found > last
            last = found
            assert {row["state"] for row in wrong.rest("GET", "/v1/nodes").json()["nodes"]} == {"alive"}
    note_stall(load.longest_seconds)
    assert load.longest_seconds < STALL_SECONDS_MAX
    clock.set(HOUR)
    mount.remount()
    load.check(mount.path / "load")
    for path in (mount.path / "load").iterdir():
        path.unlink()
    mount.unmount()
    wrong.wait_clean()  # The nodes have deleted what they were told to, with their clocks an hour ahead.


@pytest.mark.fault("C7")
def test_the_clock_of_a_mount_may_jump(wrong: Cluster, clock: WrongClock) -> None:
    """Nothing happens: times are the volume's, and never go back, not even those of files that are being written."""
    mount = wrong.mount("wrong")
    load = Load(mount.path / "load-of-wrong", threads=2)
    last = 0.0
    with load, Caller() as caller:
        descriptor = caller.do("open", mount.path / "open", os.O_RDWR | os.O_CREAT)
        for jump in JUMPS:
            clock.set(jump)
            caller.do("write", descriptor, b"not stored yet")
            held = caller.do("fstat", descriptor).st_mtime
            caller.do("fsync", descriptor)
            stored = caller.do("fstat", descriptor).st_mtime
            for found in (held, stored):
                assert abs(found - time.time()) < SKEW_SECONDS
                assert found >= last
                last = found
            assert abs(changed(mount, "watched") - time.time()) < SKEW_SECONDS
            wait_steps(load, 60)
    note_stall(load.longest_seconds)
    assert load.longest_seconds < STALL_SECONDS_MAX
    mount.remount()
    load.check(mount.path / "load-of-wrong")
