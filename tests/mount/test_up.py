"""A local cluster under one supervisor: started, started again, hurt, stopped, started once more."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servers.admin.cluster import leftovers, lifecycle, mountpoint, ports
from servers.admin.cluster.errors import ClusterProblem, MountBusy
from servers.admin.cluster.home import Home
from servers.admin.cluster.lifecycle import Report
from servers.admin.cluster.settings import ClusterSettings
from servers.admin.cluster.supervisor import Supervisor

WAIT_SECONDS = 40.0


class LocalCluster:
    """One cluster with a home, ports and a mountpoint of its own."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mount point"
        free: set[int] = set()
        while len(free) < 5:
            free.add(ports.any_free())
        redis, naming, *storage = free
        self.settings = ClusterSettings(
            home=directory / "home", redis_port=redis, naming_port=naming, storage_ports=tuple(storage)
        )
        self.home = Home(self.settings.home)

    def up(self) -> Report:
        return lifecycle.up(self.mountpoint, self.settings)

    def down(self) -> bool:
        return lifecycle.down(self.settings)

    def status(self) -> Report:
        return lifecycle.status(self.settings)

    def pids(self) -> dict[str, int]:
        return {service.name: service.pid for service in self.status().services}

    def is_gone(self) -> bool:
        return not leftovers.find(self.home) and not mountpoint.is_mounted(self.mountpoint)


@contextlib.contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """Not started yet; at the end it is stopped, and has left nothing."""
    directory = Path(tempfile.mkdtemp(prefix="dcs-"))  # Short: the supervisor's socket has to fit.
    cluster = LocalCluster(directory)
    yield cluster
    cluster.down()
    assert cluster.is_gone()
    shutil.rmtree(directory)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[LocalCluster]:
    """Up and healthy, for tests that leave it so."""
    with local_cluster() as made:
        made.up()
        yield made


def wait_until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"still not so after {WAIT_SECONDS} s: {what}"
        time.sleep(0.1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_everything_is_healthy_when_up_returns(running: LocalCluster) -> None:
    """Redis, naming, three storage nodes and the mount run, and nothing of it is open to other users."""
    report = running.status()

    assert report.is_healthy, report.problems
    assert [service.name for service in report.services] == [
        "redis", "naming", "storage1", "storage2", "storage3", "mount",
    ]  # fmt: skip
    assert mountpoint.is_mounted(running.mountpoint)
    assert running.home.secret_file.stat().st_mode & 0o777 == 0o400
    assert running.home.path.stat().st_mode & 0o077 == 0


def test_starting_again_changes_nothing(running: LocalCluster) -> None:
    """The second start reports the same processes as the first."""
    before = running.status()
    again = running.up()

    assert not again.changed
    assert again == before


def test_a_cluster_has_one_mountpoint(running: LocalCluster) -> None:
    """Another mountpoint while it runs is refused, and the first one goes on."""
    with pytest.raises(ClusterProblem, match="already mounted at"):
        lifecycle.up(running.mountpoint.with_name("other"), running.settings)
    assert running.status().is_healthy


def test_files_are_there_after_a_stop(cluster: LocalCluster) -> None:
    """Whatever was written before `--stop` is found by the next start, byte by byte, on the same ports."""
    first = cluster.up()
    content = random.Random(7).randbytes(20_000_000)
    (cluster.mountpoint / "file").write_bytes(content)
    assert cluster.down()
    assert cluster.is_gone()
    assert list(cluster.mountpoint.iterdir()) == []

    second = cluster.up()

    assert sha256(cluster.mountpoint / "file") == hashlib.sha256(content).hexdigest()
    assert [service.where for service in second.services] == [service.where for service in first.services]


def test_what_dies_is_restarted(running: LocalCluster) -> None:
    """kill -9 of each process in turn: soon everything is healthy again, with a new process in its place."""
    (running.mountpoint / "before").write_text("kept")
    for name, killed in running.pids().items():
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: running.pids()[name] not in (0, killed) and running.status().is_healthy, f"{name} is back")  # noqa: B023 - called in the same turn
        assert (running.mountpoint / "before").read_text() == "kept", name


def test_what_keeps_dying_is_reported(cluster: LocalCluster) -> None:
    """A node whose directory is gone for good ends up in the status, and the next `up` says which."""
    cluster.up()
    supervisor = Supervisor(cluster.home)
    supervisor.stop("storage2", 30)
    shutil.rmtree(cluster.home.node(2))
    cluster.home.node(2).write_text("a file where a directory should be")

    with pytest.raises(ClusterProblem, match="storage2"):
        cluster.up()

    report = cluster.status()
    assert not report.is_healthy
    assert any("storage2" in problem for problem in report.problems)


@pytest.mark.long
@pytest.mark.fault("M14")
def test_a_damaged_log_of_redis_is_reported_and_nothing_made_in_its_place(cluster: LocalCluster) -> None:
    """`up` and `--status` say what Redis says; with the log repaired, every file is there."""
    cluster.up()
    for number in range(20):
        (cluster.mountpoint / f"file-{number}").write_text("kept")
    assert cluster.down()
    log = next((cluster.home.redis / "appendonlydir").glob("*.incr.aof"))
    content = log.read_bytes()
    at = content.index(b"\r\n*", len(content) // 2) + 2
    log.write_bytes(content[:at] + b"+" + content[at + 1 :])

    with pytest.raises(ClusterProblem, match=r"redis keeps ending.*Bad file format reading the append only file"):
        cluster.up()

    assert any("redis is" in problem and "Bad file format" in problem for problem in cluster.status().problems)
    log.write_bytes(content)
    assert cluster.up().is_healthy
    assert (cluster.mountpoint / "file-19").read_text() == "kept"


def test_a_busy_mount_is_not_stopped(cluster: LocalCluster) -> None:
    """One line says who is in the way; everything keeps running, and the file that is open can be finished."""
    before = cluster.up()
    with (cluster.mountpoint / "open").open("w") as file:
        with pytest.raises(MountBusy, match=f"pid {os.getpid()}"):
            cluster.down()
        file.write("finished")

    assert cluster.status().services == before.services
    assert cluster.down()
    cluster.up()
    assert (cluster.mountpoint / "open").read_text() == "finished"


def test_two_clusters_run_side_by_side(running: LocalCluster, cluster: LocalCluster) -> None:
    """Another DCS_HOME is another cluster: its own files, its own end."""
    cluster.up()
    (running.mountpoint / "name").write_text("one")
    (cluster.mountpoint / "name").write_text("two")

    assert cluster.down()

    assert running.status().is_healthy
    assert (running.mountpoint / "name").read_text() == "one"


@pytest.mark.parametrize("who", ["everything", "supervisor"])
def test_a_crash_is_cleaned_up_by_the_next_start(cluster: LocalCluster, who: str) -> None:
    """kill -9 of all, or of the supervisor alone: the next start ends what is left and finds every file."""
    assert cluster.up().changed
    (cluster.mountpoint / "file").write_text("kept")
    supervisor = Supervisor(cluster.home).pid()
    targets = [supervisor] if who == "supervisor" else [supervisor, *cluster.pids().values()]
    for pid in targets:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not {left.pid for left in leftovers.find(cluster.home)} & set(targets), "they are dead")

    report = cluster.up()

    assert report.changed
    assert report.is_healthy, report.problems
    assert (cluster.mountpoint / "file").read_text() == "kept"


def test_stopping_after_a_crash_leaves_nothing(cluster: LocalCluster) -> None:
    """Also without its supervisor, a stop ends every process and takes the mount away."""
    cluster.up()
    os.kill(Supervisor(cluster.home).pid(), signal.SIGKILL)
    wait_until(lambda: not Supervisor(cluster.home).is_running(), "the supervisor is dead")

    assert cluster.down()
    assert cluster.is_gone()
    assert not cluster.down()


def test_unmounting_by_hand_is_respected(running: LocalCluster) -> None:
    """`fusermount3 -u` is no crash: the mount stays away, the status says so, and `up` mounts again."""
    supervisor = Supervisor(running.home)
    wait_until(lambda: supervisor.states()["mount"].state == "RUNNING", "ending now does not look like a failed start")
    subprocess.run(["fusermount3", "-u", running.mountpoint], check=True)
    wait_until(lambda: supervisor.states()["mount"].state == "EXITED", "the mount has ended")
    assert not running.status().is_healthy

    report = running.up()

    assert report.changed
    assert report.is_healthy


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs")
def test_what_answers_in_the_mounts_place_is_not_taken_for_it(running: LocalCluster) -> None:
    """Any other file system that answers at the mountpoint, as the directory beneath does for a moment."""
    subprocess.run(["mount", "-t", "tmpfs", "dcs-test", running.mountpoint], check=True)
    try:
        assert [s.name for s in running.status().services if s.problem] == ["mount"]
    finally:
        subprocess.run(["umount", running.mountpoint], check=True)
    assert running.status().is_healthy


def test_a_mountpoint_must_be_an_empty_directory(cluster: LocalCluster) -> None:
    """Nothing is hidden under a mount, and nothing was started by the attempt."""
    cluster.mountpoint.mkdir()
    (cluster.mountpoint / "mine").write_text("important")
    with pytest.raises(ClusterProblem, match="not empty"):
        cluster.up()
    with pytest.raises(ClusterProblem, match="No such file"):
        lifecycle.up(cluster.mountpoint / "no" / "where", cluster.settings)
    assert cluster.is_gone()


def test_the_command_says_one_line_and_fails(cluster: LocalCluster) -> None:
    """What cannot be done is one line on stderr and a non-zero exit."""
    cluster.mountpoint.write_text("a file")
    done = subprocess.run(
        [sys.executable, "-m", "servers.admin", "up", cluster.mountpoint],
        env={**os.environ, "DCS_HOME": str(cluster.settings.home)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"dcs: Cannot mount on {cluster.mountpoint}")
    assert done.stderr.count("\n") == 1
