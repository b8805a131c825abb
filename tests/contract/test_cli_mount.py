"""dcs mount, umount and up, and that the mount and dcs show the same files."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, is_mounted

MIB = 1024 * 1024


@pytest.fixture
def mountpoint(shared_cluster: Cluster) -> Iterator[Path]:
    """Mounted by `dcs mount`; whatever the test leaves is taken away."""
    path = shared_cluster.directory / "by dcs"
    path.mkdir(exist_ok=True)
    shared_cluster.dcs("mount", path, "--log-file", shared_cluster.directory / "logs" / "by-dcs.log")
    yield path
    if is_mounted(path):
        shared_cluster.dcs("umount", path)


def daemons_of(path: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fusefs" in words and os.fsencode(path) in words:
                found.append(int(process.name))
    return found


def test_the_mount_works_when_dcs_mount_returns_and_is_gone_when_umount_does(
    shared_cluster: Cluster, mountpoint: Path
) -> None:
    assert is_mounted(mountpoint)
    assert len(daemons_of(mountpoint)) == 1
    (mountpoint / "there").write_bytes(b"there")
    shared_cluster.dcs("umount", mountpoint)
    assert not is_mounted(mountpoint)
    assert daemons_of(mountpoint) == []
    assert shared_cluster.read("/there") == b"there"


def test_what_dcs_creates_is_in_the_mount_and_the_other_way_round(shared_cluster: Cluster, mountpoint: Path) -> None:
    """create, cp, read, size, delete: one tree."""
    data = random.Random(5).randbytes(3 * MIB + 1)
    shared_cluster.write("/from dcs", data, "--chunk-size", "1MiB")
    assert (mountpoint / "from dcs").read_bytes() == data
    subprocess.run(["cp", mountpoint / "from dcs", mountpoint / "from cp"], check=True, timeout=60)
    assert shared_cluster.read("/from cp") == data
    assert shared_cluster.dcs("size", "from cp").stdout == b"%d\n" % len(data)
    shared_cluster.dcs("delete", "/from cp")
    shared_cluster.dcs("mkdir", "/made")
    shared_cluster.dcs("mv", "/from dcs", "/made")
    assert (mountpoint / "made" / "from dcs").read_bytes() == data


def test_umount_waits_until_all_is_stored(shared_cluster: Cluster, mountpoint: Path) -> None:
    """Even what was written a moment ago and never synced."""
    digest = hashlib.sha256()
    with (mountpoint / "fresh").open("wb") as file:
        for seed in range(64):
            piece = random.Random(seed).randbytes(MIB)
            digest.update(piece)
            file.write(piece)
    shared_cluster.dcs("umount", mountpoint)
    assert hashlib.sha256(shared_cluster.read("/fresh")).hexdigest() == digest.hexdigest()


def test_options_are_passed_on(shared_cluster: Cluster) -> None:
    path = shared_cluster.directory / "read only"
    path.mkdir()
    shared_cluster.dcs("mount", path, "--read-only", "--log-file", shared_cluster.directory / "logs" / "ro.log")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (path / "x").write_bytes(b"")
    finally:
        shared_cluster.dcs("umount", path)


def test_a_busy_mount_stays(shared_cluster: Cluster, mountpoint: Path) -> None:
    """One line says who works there; nothing has changed."""
    with (mountpoint / "open").open("wb") as file:
        file.write(b"still ")
        said = shared_cluster.dcs("umount", mountpoint, expect=1).stderr.decode()
        assert said.startswith("dcs: ")
        assert f"(pid {os.getpid()})" in said
        file.write(b"open")
    assert (mountpoint / "open").read_bytes() == b"still open"


def test_mounting_and_unmounting_what_cannot_be_is_one_line(shared_cluster: Cluster, tmp_path: Path) -> None:
    assert shared_cluster.dcs("umount", tmp_path, expect=1).stderr.decode() == f"dcs: {tmp_path} is not mounted\n"
    said = shared_cluster.dcs("mount", tmp_path / "missing", expect=None)
    assert said.returncode != 0
    assert said.stderr.count(b"\n") == 1


def test_up_shows_that_nothing_runs(shared_cluster: Cluster) -> None:
    """Of a DCS_HOME that was never used."""
    assert b"No cluster runs" in shared_cluster.dcs("up", "--status", expect=1).stdout
    assert shared_cluster.dcs("up", "--stop").stdout == b"Nothing was running.\n"


def test_at_the_end_nothing_is_missing_or_left_over(shared_cluster: Cluster) -> None:
    """After all the tests above."""
    shared_cluster.wait_clean()
