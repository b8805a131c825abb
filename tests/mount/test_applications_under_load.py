"""Load generators that check what they read: fio, stress-ng, dbench and bonnie++ on the mount, to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster import Mount
from tests.support.commands import run

FIO_FORMS = {
    "sequential": "--rw=write --bs=256k",
    "random": "--rw=randwrite --bs=4k",
    "mixed": "--rw=randrw --bs=512-64k --bs_unaligned=1 --fsync=32",
    "several jobs": "--rw=randwrite --bs=4k --numjobs=4",
    "mapped": "--rw=randwrite --bs=4k --ioengine=mmap",
    "direct": "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=8",
}
FIO_VERIFIES = "--verify=crc32c --verify_fatal=1 --verify_dump=0 --verify_state_save=0 --group_reporting"

STRESSORS = "aio copy-file dentry dirmany fcntl flock fsize fstat getdent hdd mmap open rename seek utime xattr"
"""Of stress-ng's filesystem class, those that read back what they write or names they made, and end when told."""

ALL_STRESSORS = (
    "access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify fcntl fiemap "
    "file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka "
    "lockf lockofd mknod open rename symlink sync-file touch utime verity xattr"
)
"""Its filesystem class, but for what never touches the directory it is given (procfs, eventfd and the like)."""


# ── fio


@pytest.mark.parametrize("form", FIO_FORMS)
def test_fio_finds_what_it_wrote(form: str, open_place: Path, other_mount: Mount) -> None:
    """Through the mount that wrote it, while it is written and after; then from the nodes, through another mount."""
    _fio(FIO_FORMS[form], open_place, other_mount, size="3M")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", FIO_FORMS)
def test_fio_finds_all_that_it_wrote_to_large_files(form: str, open_place: Path, other_mount: Mount) -> None:
    _fio(FIO_FORMS[form], open_place, other_mount, size="2G" if form == "sequential" else "256M")


def _fio(form: str, place: Path, other_mount: Mount, *, size: str) -> None:
    job = ["fio", "--name=job", f"--size={size}", "--ioengine=psync", *form.split(), *FIO_VERIFIES.split()]
    run(*job, f"--directory={place}", seconds=600)
    assert len(list(place.iterdir())) == (4 if "numjobs" in form else 1)
    if "randrw" not in form:  # What it only read it would not find again.
        elsewhere = other_mount.path / place.name
        run(*job, "--verify_only", f"--directory={elsewhere}", seconds=600)


# ── stress-ng


def test_stress_ng_finds_no_wrong_result(open_place: Path) -> None:
    """One of each at the same time; each checks its own results."""
    words = [word for name in STRESSORS.split() for word in (f"--{name}", "1")]
    _stress(open_place, 5, *words)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stressor", ALL_STRESSORS.split())
def test_stress_ng_finds_no_wrong_result_in_a_minute(stressor: str, open_place: Path) -> None:
    _stress(open_place, 60, f"--{stressor}", "2")


def _stress(place: Path, seconds: int, *stressors: str) -> None:
    run("stress-ng", "--temp-path", place, "--verify", "--timeout", f"{seconds}s", *stressors, seconds=seconds + 400)


# ── dbench and bonnie++


def test_dbench_runs_to_the_end(open_place: Path) -> None:
    """A file server's clients; it stops at the first call that does not do what it did when it was recorded."""
    assert "Throughput" in run("dbench", "-D", open_place, "-t", "5", "2", seconds=120)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_dbench_runs_to_the_end_with_many_clients(open_place: Path) -> None:
    said = run("dbench", "-D", open_place, "-t", "120", "12", seconds=600)
    assert "Throughput" in said
    print(said.splitlines()[-1])


def test_bonnie_runs_to_the_end(open_place: Path) -> None:
    _bonnie(open_place, "-f", "-s", "16M", "-r", "8M", "-n", "0")


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_bonnie_runs_to_the_end_with_many_files_and_single_bytes(open_place: Path) -> None:
    print(_bonnie(open_place, "-s", "512M", "-r", "256M", "-n", "4:16384:0:8"))


def _bonnie(place: Path, *options: str) -> str:
    said = run("bonnie++", "-u", "root", "-q", "-d", place, *options, seconds=2000)
    assert said.startswith("1.98,"), said
    assert not list(place.iterdir())
    return said
