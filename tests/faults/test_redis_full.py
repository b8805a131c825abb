"""Redis has no memory or disk left, its log is cut short or damaged: told, and nothing acknowledged is missing."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers.naming.redis_store import PROBE_SECONDS
from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB, opened, refused
from tests.support.load import Load, wait_steps
from tests.support.processes import wait_for

DISK_BYTES = 16 * MIB


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    """A cluster whose Redis has a small disk; root may make one."""
    cluster = Cluster(SESSION_LEASE_SECONDS="25", METADATA_DEADLINE_SECONDS="3")
    if os.geteuid() == 0:
        cluster.limit_redis_disk(DISK_BYTES)
    with cluster:
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def mount(small: Cluster) -> Mount:
    return small.mount()


def log_of(cluster: Cluster) -> Path:
    """The file that Redis appends to now."""
    return max((cluster.redis_data / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)


def health(cluster: Cluster) -> httpx.Response:
    return httpx.get(f"{cluster.naming_url}/health", trust_env=False)


@pytest.mark.timeout(120)
@pytest.mark.fault("M11")
def test_a_full_redis_takes_nothing_new_and_deleting_helps(small: Cluster, mount: Mount) -> None:
    """ENOSPC for what needs room, at once or at the close; reading, and deleting, go on."""
    place = mount.path / "redis-full"
    (place / "directory").mkdir(parents=True)
    for number in range(5):
        (place / f"old-{number}").write_bytes(b"old" * 100)
    descriptor = os.open(place / "old-0", os.O_WRONLY)
    small.ask_redis("CONFIG", "SET", "maxmemory", "1")
    for make in (
        (place / "new").touch,
        (place / "new").mkdir,
        lambda: (place / "new").symlink_to("old-1"),
        lambda: os.link(place / "old-1", place / "new"),
    ):
        with refused(errno.ENOSPC):
            make()
    os.pwrite(descriptor, b"new", 0)
    with refused(errno.ENOSPC):
        os.fsync(descriptor)
    assert (place / "old-1").read_bytes() == b"old" * 100
    assert sorted(os.listdir(place)) == ["directory", *(f"old-{number}" for number in range(5))]
    (place / "old-1").unlink()
    (place / "directory").rmdir()
    small.dcs("delete", "/redis-full/old-2")
    assert b"full" in small.dcs("mkdir", "/redis-full/by-dcs", expect=None).stderr
    small.ask_redis("CONFIG", "SET", "maxmemory", "0")
    os.fsync(descriptor)
    os.close(descriptor)
    (place / "new").write_bytes(b"room again")
    mount.remount()
    assert (place / "old-0").read_bytes() == b"new" + b"old" * 99
    assert sorted(os.listdir(place)) == ["new", "old-0", "old-3", "old-4"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount small disks")
@pytest.mark.timeout(120)
@pytest.mark.fault("M11")
def test_the_full_disk_of_redis_is_a_stall_and_no_error_once_there_is_room(small: Cluster, mount: Mount) -> None:
    """Redis ends rather than acknowledge what it cannot write; started with room, it has all it had acknowledged."""
    load = Load(mount.path / "redis-disk-full")
    filler = small.redis_data / "filler"
    with load:
        wait_steps(load, 50)
        with filler.open("wb", buffering=0) as file, refused(errno.ENOSPC):
            while True:
                file.write(bytes(4096))
        wait_for(lambda: not small.redis.is_running, "Redis has ended")
        assert "AOF" in small.redis.log_tail()
        wait_for(lambda: health(small).status_code == 503, "the naming server says so")
        filler.unlink()
        small.redis.start()
        wait_steps(load, 50)
    mount.remount()
    load.check(mount.path / "redis-disk-full")


@pytest.mark.fault("M14")
def test_a_log_cut_short_in_what_was_not_acknowledged_is_whole(small: Cluster, mount: Mount) -> None:
    """As a crash in the middle of a write leaves it."""
    load = Load(mount.path / "log-torn")
    with load:
        wait_steps(load, 50)
        small.redis.kill()
        with log_of(small).open("ab") as log:
            log.write(b"*8\r\n$5\r\nFCALL\r\n$12\r\ncomm")
        small.redis.start()
        wait_steps(load, 50)
    assert "aof-load-truncated is enabled" in small.redis.log.read_text()
    mount.remount()
    load.check(mount.path / "log-torn")


@pytest.mark.timeout(120)
@pytest.mark.fault("M14")
def test_a_log_damaged_in_the_middle_stops_the_start_and_everybody_says_so(small: Cluster, mount: Mount) -> None:
    """Nothing is made up and nothing forgotten: with the log repaired, all is as it was."""
    (mount.path / "log-damaged").write_bytes(b"kept")
    small.redis.kill()
    log = log_of(small)
    content = log.read_bytes()
    at = content.index(b"\r\n*", len(content) // 2) + 2
    log.write_bytes(content[:at] + b"+" + content[at + 1 :])
    small.redis.start(wait=False)
    wait_for(lambda: not small.redis.is_running, "Redis refuses to start")
    assert small.redis.exit_status != 0
    assert "Bad file format reading the append only file" in small.redis.log_tail()
    assert "edis is away" in health(small).json()["detail"]
    said = small.dcs("status", expect=None)
    assert said.returncode != 0
    assert b"redis is away" in said.stderr
    log.write_bytes(content)
    small.redis.start()
    wait_for(lambda: health(small).status_code == 200, "the naming server works again")
    with opened(mount.path / "log-damaged", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 10, 0) == b"kept"
    mount.remount()
    assert (mount.path / "log-damaged").read_bytes() == b"kept"


@pytest.mark.fault("M14")
def test_a_log_that_lacks_what_was_acknowledged_is_noticed(cluster: Cluster) -> None:
    """SAFE mode: the volume is read-only and says why; nothing is deleted."""
    mount = cluster.mount()
    (mount.path / "file").write_bytes(b"x" * 1000)
    for number in range(100):
        (mount.path / f"directory-{number}").mkdir()
    time.sleep(2 * PROBE_SECONDS)  # The naming server looks at the volume so often.
    before = [node.extents() for node in cluster.nodes]
    cluster.redis.kill()
    log = log_of(cluster)
    os.truncate(log, log.stat().st_size - 20_000)
    cluster.redis.start()

    def safe_because() -> str:
        answer = cluster.rest("GET", "/v1/status")
        return answer.json()["safe_because"] if answer.status_code == 200 else ""

    assert re.fullmatch(r"the metadata ends at change \d+, but .* \d+.*", wait_for(safe_because, "it is read-only"))
    with refused(errno.EROFS):
        (mount.path / "new").mkdir()
    assert [node.extents() for node in cluster.nodes] == before
