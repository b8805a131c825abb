"""Clocks that jump by an hour and back: of a naming server and the nodes, and of a mount."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.caller import Caller
from tests.support.cluster import Cluster, Mount
from tests.support.fault_table import note_stall
from tests.support.load import Load, wait_steps
from tests.support.processes import base_environment
from tests.support.wrong_clock import WrongClock

JUMPS = (3600, 0, -3600, 0)
STALL_SECONDS_MAX = 5.0
SKEW_SECONDS = 2.0
"""What a busy machine adds between a change and our look at it."""
HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path) -> WrongClock:
    """Shown to work, before anything depends on it."""
    made = WrongClock(tmp_path)
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


def changed(mount: Mount, name: str) -> float:
    """When a file that is written now was changed, as the mount shows it."""
    (mount.path / name).write_bytes(b"now")
    return (mount.path / name).stat().st_mtime


@pytest.mark.fault("M15")
def test_the_clocks_of_naming_server_and_nodes_may_jump(cluster: Cluster, clock: WrongClock) -> None:
    """Nothing happens: no error, times are right and never go back, nodes stay alive, deletions are obeyed."""
    for process in (cluster.naming, *cluster.nodes):
        process.environment.update(clock.environment)
        process.restart()
    cluster.wait_alive(3)
    mount = cluster.mount()
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
            assert {row["state"] for row in cluster.rest("GET", "/v1/nodes").json()["nodes"]} == {"alive"}
    note_stall(load.longest_seconds)
    assert load.longest_seconds < STALL_SECONDS_MAX
    clock.set(HOUR)
    mount.remount()
    load.check(mount.path / "load")
    for path in (mount.path / "load").iterdir():
        path.unlink()
    mount.unmount()
    cluster.wait_clean()  # The nodes have deleted what they were told to, with their clocks an hour ahead.


@pytest.mark.fault("C7")
def test_the_clock_of_a_mount_may_jump(cluster: Cluster, clock: WrongClock) -> None:
    """Nothing happens: times are the volume's, and never go back, not even those of files that are being written."""
    mount = cluster.mount(**clock.environment)
    load = Load(mount.path / "load", threads=2)
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
    load.check(mount.path / "load")
