"""A mount sleeps for longer than its lease: what it had not committed never covers what others did meanwhile."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import opened, refused
from tests.support.processes import wait_for

CHUNK = 64 * 1024
OLD, OURS, THEIRS = b"o" * 100_000, b"u" * 100_000, b"t" * 70_000
"""More than a chunk: of what is written one extent is stored at once, the rest waits."""


@pytest.fixture(params=[3, pytest.param(60, marks=pytest.mark.long)])
def lease_seconds(request: pytest.FixtureRequest) -> int:
    seconds: int = request.param
    return seconds


@pytest.fixture
def cluster(lease_seconds: int) -> Iterator[Cluster]:
    with Cluster(
        SESSION_LEASE_SECONDS=str(lease_seconds), CHUNK_SIZE=str(CHUNK), GARBAGE_GRACE_SECONDS="600"
    ) as cluster:
        yield cluster


def sessions(cluster: Cluster) -> int:
    count: int = cluster.status()["sessions"]
    return count


def sleep_through_the_lease(cluster: Cluster, mount: Mount, lease_seconds: int) -> None:
    """The mount's daemon stands still; its session is over, the others' are not."""
    before = sessions(cluster)
    mount.process.pause()
    if lease_seconds >= 60:
        time.sleep(90)
    wait_for(lambda: sessions(cluster) == before - 1, "the session of the mount that sleeps is over", 30)


def write_and_hold(path: Path, flags: int = 0) -> int:
    """A descriptor of the file, which has been written over and not been closed."""
    descriptor = os.open(path, os.O_RDWR | flags)
    os.write(descriptor, OURS)
    return descriptor


def end_with_losses(mount: Mount, lost: Path) -> None:
    """The daemon says that something is lost, and what, by its exit status and in its log."""
    subprocess.run(["fusermount3", "-u", mount.path], check=True, timeout=30)
    wait_for(lambda: not mount.process.is_running, "the daemon has ended", 60)
    assert mount.process.exit_status == 1
    assert f"(b'{lost.name}'): {len(OURS)} written bytes are lost" in mount.process.log.read_text()


@pytest.mark.timeout(300)
@pytest.mark.fault("C2")
def test_what_was_written_before_the_sleep_never_covers_what_others_wrote_meanwhile(
    cluster: Cluster, lease_seconds: int
) -> None:
    """ESTALE where the file was changed, at whatever moment the mount hears of it; where it was not, all is as if
    nothing had been."""
    # No program may be started while a descriptor is open: it would close its copy of it, and so flush.
    sleeper, other = cluster.mount("sleeper"), cluster.mount("other")
    for name in ("at-once", "after-a-look", "much-later", "appended", "removed", "kept", "read"):
        (other.path / name).write_bytes(OLD)
    wait_for((sleeper.path / "read").exists, "the other mount's files are seen")
    at_once, looked, later, kept = (
        write_and_hold(sleeper.path / name) for name in ("at-once", "after-a-look", "much-later", "kept")
    )
    appended = write_and_hold(sleeper.path / "appended", os.O_APPEND)
    removed = write_and_hold(sleeper.path / "removed")
    with opened(sleeper.path / "read", os.O_RDONLY) as read:
        sleep_through_the_lease(cluster, sleeper, lease_seconds)
        for name in ("at-once", "after-a-look", "much-later", "appended"):
            (other.path / name).write_bytes(THEIRS)
        (other.path / "removed").unlink()
        (other.path / "removed").write_bytes(THEIRS)
        before = sessions(cluster)
        sleeper.process.resume()
        with refused(errno.ESTALE):
            os.close(at_once)
        assert os.fstat(looked).st_size >= len(THEIRS)
        with refused(errno.ESTALE):
            os.close(looked)
        wait_for(lambda: sessions(cluster) == before + 1, "the mount has another session")
        time.sleep(1.5)  # What it knew of the file is too old to be believed: it asks, and knows of the change.
        os.fstat(later)
        with refused(errno.ESTALE):
            os.fsync(later)
        os.fsync(later)  # It was told once.
        assert os.pread(later, len(OURS), 0) == THEIRS
        os.pwrite(later, b"again", 0)
        os.close(later)
        with refused(errno.ESTALE):
            os.close(appended)
        # Its file has no name any more and may be gone altogether: then it is told so.
        try:
            os.close(removed)
        except OSError as error:
            assert error.errno == errno.ESTALE
        os.close(kept)
        assert os.pread(read, len(OLD), 0) == OLD
    for mount in (sleeper, other):
        for name in ("at-once", "after-a-look", "appended", "removed"):
            assert (mount.path / name).read_bytes() == THEIRS, (mount, name)
        assert (mount.path / "kept").read_bytes() == OURS
        assert (mount.path / "much-later").read_bytes() == b"again" + THEIRS[5:]
    end_with_losses(sleeper, sleeper.path / "at-once")


@pytest.mark.long
@pytest.mark.fault("C2")
def test_what_was_stored_before_the_sleep_and_collected_meanwhile_is_refused() -> None:
    """Not committed: a file would show extents that are gone."""
    with Cluster(
        SESSION_LEASE_SECONDS="3", CHUNK_SIZE=str(CHUNK), GARBAGE_GRACE_SECONDS="0.5", GARBAGE_BRAKE_SHARE="1"
    ) as cluster:
        mount = cluster.mount()
        (mount.path / "f").write_bytes(OLD)
        kept = cluster.nodes[0].extents()
        descriptor = write_and_hold(mount.path / "f")
        wait_for(lambda: cluster.nodes[0].extents() > kept, "a chunk is stored")
        sleep_through_the_lease(cluster, mount, 3)
        wait_for(lambda: cluster.nodes[0].extents() == kept, "what was not committed is collected", 60)
        mount.process.resume()
        with refused(errno.ESTALE):
            os.close(descriptor)
        assert (mount.path / "f").read_bytes() == OLD
        end_with_losses(mount, mount.path / "f")
