"""Two mounts of one volume: what one machine does, as another sees it."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

import pytest

from fusefs.vfs.file_writer import COMMIT_CHUNKS
from tests.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.commands import opened, refused
from tests.support.processes import wait_for

CACHE_SECONDS = 1.0
"""How long a mount may believe what it knows of names and attributes."""
SHORT_LEASE_SECONDS = 3


def test_what_was_closed_is_seen_by_whoever_opens_later(place: Path, other_place: Path) -> None:
    """At once, also where an older content was just read, and of whatever sizes."""
    for number in range(30):
        writing, reading = (place, other_place) if number % 2 else (other_place, place)
        content = bytes([65 + number]) * ((number * 7919) % 30_000 + 1)
        (writing / "f").write_bytes(content)
        if number:
            with opened(reading / "f", os.O_RDONLY) as descriptor:
                assert os.read(descriptor, 100_000) == content


def test_an_open_file_shows_what_another_mount_wrote_within_the_cache_time(place: Path, other_place: Path) -> None:
    (place / "f").write_bytes(b"old content")
    with opened(other_place / "f", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 100, 0) == b"old content"
        (place / "f").write_bytes(b"new and longer content")
        wait_for(lambda: os.fstat(descriptor).st_size == 22, "the new size is seen", 2 * CACHE_SECONDS + 1)
        wait_for(lambda: os.pread(descriptor, 100, 0) == b"new and longer content", "the new content is seen", 3)


def test_an_open_file_shows_what_another_mount_wrote_under_the_same_size_and_time(
    place: Path, other_place: Path
) -> None:
    """As rsync --inplace does: by size and time the kernel could not tell that its pages are old."""
    (place / "f").write_bytes(b"old content")
    times = (place / "f").stat()
    with opened(other_place / "f", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 100, 0) == b"old content"
        with opened(place / "f", os.O_WRONLY) as writing:
            os.pwrite(writing, b"new", 0)
        os.utime(place / "f", ns=(times.st_atime_ns, times.st_mtime_ns))

        def shown() -> bytes:
            os.fstat(descriptor)
            return os.pread(descriptor, 100, 0)

        wait_for(lambda: shown() == b"new content", "the new content is seen", 3)


def test_an_open_file_shows_all_that_another_mount_commits_in_several_steps(place: Path, other_place: Path) -> None:
    """They are of one write, and so of one time: the last step looks no newer than the first."""
    chunk = 1024
    size = COMMIT_CHUNKS * chunk + chunk // 2
    os.setxattr(place, "user.dcs.chunk_size", b"%d" % chunk)
    (place / "f").write_bytes(b"o" * size)
    with opened(other_place / "f", os.O_RDONLY) as descriptor:

        def shown() -> bytes:
            os.fstat(descriptor)
            return os.pread(descriptor, size, 0)

        assert shown() == b"o" * size
        with opened(place / "f", os.O_WRONLY) as writing:
            os.pwrite(writing, b"n" * size, 0)
            wait_for(lambda: shown()[:chunk] == b"n" * chunk, "what is committed in the background is seen")
            assert shown()[-1:] == b"o"
        wait_for(lambda: shown() == b"n" * size, "what the close committed is seen", 2 * CACHE_SECONDS + 1)


def test_who_reads_and_appends_sees_what_another_mount_wrote(place: Path, other_place: Path) -> None:
    """Past the kernel's pages, as such a descriptor reads, and without being asked for its size."""
    (place / "f").write_bytes(b"old content")
    with opened(other_place / "f", os.O_RDWR | os.O_APPEND) as descriptor:
        assert os.pread(descriptor, 11, 0) == b"old content"
        with opened(place / "f", os.O_WRONLY) as writing:
            os.pwrite(writing, b"new", 0)
        wait_for(lambda: os.pread(descriptor, 11, 0) == b"new content", "the new content is seen", 3)


def test_names_made_and_removed_elsewhere_are_seen_within_the_cache_time(place: Path, other_place: Path) -> None:
    (place / "a").touch()
    wait_for((other_place / "a").exists, "the new name is seen", 2 * CACHE_SECONDS + 1)
    (place / "a").rename(place / "b")
    wait_for(lambda: os.listdir(other_place) == ["b"], "the new listing is seen", 2 * CACHE_SECONDS + 1)
    wait_for(lambda: not (other_place / "a").exists(), "the old name is gone", 2 * CACHE_SECONDS + 1)
    (other_place / "b").unlink()
    wait_for(lambda: not (place / "b").exists(), "the removed name is gone", 2 * CACHE_SECONDS + 1)


def numbers_for(seconds: float) -> Iterator[int]:
    """0, 1, 2 and so on, until so much time is over."""
    end = time.monotonic() + seconds
    return takewhile(lambda _: time.monotonic() < end, count())


def test_changes_in_a_row_hide_nothing_that_is_done_elsewhere(place: Path, other_place: Path) -> None:
    """What a mount knows of a directory's names it knows for longer while it changes it; but not what others do."""
    (place / "old").touch()
    for number in numbers_for(1.5 * CACHE_SECONDS):
        (place / f"before-{number}").mkdir()
        assert not (place / "new").exists()
    wait_for((other_place / "old").exists, "the other mount sees the name", 2 * CACHE_SECONDS + 1)
    (other_place / "old").unlink()
    (other_place / "new").touch()
    end = time.monotonic() + 2 * CACHE_SECONDS + 1
    for number in count():
        (place / f"after-{number}").mkdir()
        if (place / "new").exists() and not (place / "old").exists():
            break
        assert time.monotonic() < end, "what the other mount did is not seen"


def test_many_changes_of_a_directory_ask_for_no_name(mounted: Cluster, place: Path) -> None:
    """Neither one by one nor by listing it, though they take longer than a name may be believed."""
    began, before, names = time.monotonic(), questions(mounted), []
    for number in numbers_for(2 * CACHE_SECONDS):
        names.append(place / f"{number}")
        names[-1].mkdir()
    for name in names:
        name.rename(name.with_suffix(".new"))
    for name in names:
        name.with_suffix(".new").rmdir()
    # The kernel asks for the name of the directory itself, which nobody changes, once in that time.
    assert questions(mounted) - before < 2 * (time.monotonic() - began) / CACHE_SECONDS + 2


def questions(cluster: Cluster) -> float:
    """How often names were asked for."""
    told = cluster.rest("GET", "/metrics").text
    return sum(map(float, re.findall(r'dcs_naming_operation_seconds_count{verb="(?:lookup|readdir)"} (\S+)', told)))


@pytest.mark.fault("R5")
def test_a_file_unlinked_on_one_mount_stays_usable_where_it_is_open(place: Path, other_place: Path) -> None:
    """For longer than the grace of unlinked files that nobody has open."""
    (place / "f").write_bytes(b"content" * 100_000)
    with opened(other_place / "f", os.O_RDWR) as descriptor:
        (place / "f").unlink()
        with refused(errno.ENOENT):
            (place / "f").stat()
        time.sleep(6)
        assert os.pread(descriptor, 700_001, 0) == b"content" * 100_000
        os.pwrite(descriptor, b"CONTENT", 0)
        os.fsync(descriptor)
        assert os.pread(descriptor, 14, 0) == b"CONTENTcontent"


@pytest.mark.fault("R5")
def test_a_file_renamed_over_on_one_mount_stays_usable_where_it_is_open(place: Path, other_place: Path) -> None:
    (place / "f").write_bytes(b"old" * 100_000)
    with opened(other_place / "f", os.O_RDONLY) as descriptor:
        (place / "g").write_bytes(b"new")
        (place / "g").rename(place / "f")
        time.sleep(6)
        assert os.pread(descriptor, 300_001, 0) == b"old" * 100_000
    with opened(other_place / "f", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 100, 0) == b"new"


@pytest.mark.long
@pytest.mark.fault("R5")
def test_what_is_open_elsewhere_stays_usable_for_longer_than_a_lease(make_cluster: MakeCluster) -> None:
    """As long as its mount renews it; and read for the first time then. Once it is closed its content is deleted."""
    cluster = make_cluster(3, SESSION_LEASE_SECONDS=str(SHORT_LEASE_SECONDS))
    here, there = cluster.mount("here").path, cluster.mount("there").path
    contents = {name: os.urandom(700_000) for name in ("unlinked", "renamed-over")}
    for name, content in contents.items():
        (here / name).write_bytes(content)
    for name in contents:
        wait_for((there / name).exists, "the other mount sees it", 2 * CACHE_SECONDS + 1)
    with opened(there / "unlinked", os.O_RDWR) as unlinked, opened(there / "renamed-over", os.O_RDONLY) as replaced:
        (here / "unlinked").unlink()
        (here / "new").touch()
        (here / "new").rename(here / "renamed-over")
        time.sleep(3 * SHORT_LEASE_SECONDS)  # That something does not happen is no fact to wait for.
        assert os.pread(unlinked, 700_001, 0) == contents["unlinked"]
        assert os.pread(replaced, 700_001, 0) == contents["renamed-over"]
        os.pwrite(unlinked, b"changed", 0)
        os.fsync(unlinked)
        assert os.pread(unlinked, 700_001, 0) == b"changed" + contents["unlinked"][7:]
    wait_for(lambda: not any(node.extents() for node in cluster.nodes), "what nobody has open is deleted", 60)


@pytest.mark.fault("R4")
def test_disjoint_writes_into_one_chunk_both_stay(place: Path, other_place: Path) -> None:
    (place / "f").write_bytes(bytes(200_000))
    with opened(place / "f", os.O_RDWR) as one, opened(other_place / "f", os.O_RDWR) as two:
        for number in range(20):
            os.pwrite(one, b"1" * 3000, number * 10_000)
            os.pwrite(two, b"2" * 3000, number * 10_000 + 5000)
            if number % 4 == 0:
                os.fsync(one)
                os.fsync(two)
    period = b"1" * 3000 + bytes(2000) + b"2" * 3000 + bytes(2000)
    for directory in (place, other_place):
        with opened(directory / "f", os.O_RDONLY) as descriptor:
            assert os.read(descriptor, 200_000) == period * 20


@pytest.mark.fault("R6")
def test_a_truncation_elsewhere_does_not_come_back(place: Path, other_place: Path) -> None:
    """Cut on one mount, made longer on the other: zeros where it was cut."""
    (place / "f").write_bytes(b"x" * 100_000)
    with opened(other_place / "f", os.O_RDWR) as descriptor:
        assert os.pread(descriptor, 10, 0) == b"x" * 10
        os.truncate(place / "f", 10)
        os.ftruncate(descriptor, 50_000)
        os.fsync(descriptor)
    with opened(place / "f", os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 100_000) == b"x" * 10 + bytes(49_990)


@pytest.mark.fault("R6")
def test_what_was_appended_elsewhere_is_no_hole_to_who_writes_the_file_too(place: Path, other_place: Path) -> None:
    """What this mount wrote is not stored yet, and stays on top."""
    (place / "f").write_bytes(b"a" * 100)
    with opened(other_place / "f", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"X", 0)
        with opened(place / "f", os.O_WRONLY | os.O_APPEND) as appending:
            os.write(appending, b"b" * 1000)
        wait_for(lambda: os.fstat(descriptor).st_size == 1100, "the new size is seen", 2 * CACHE_SECONDS + 1)
        assert os.pread(descriptor, 2000, 0) == b"X" + b"a" * 99 + b"b" * 1000


@pytest.mark.fault("R6")
def test_what_was_cut_off_elsewhere_is_no_hole(place: Path, other_place: Path) -> None:
    """Read where the map was not asked for yet, within the time for which the old size may be believed."""
    os.setxattr(place, "user.dcs.chunk_size", b"1024")
    (place / "f").write_bytes(b"a" * 100 * 1024)
    with opened(other_place / "f", os.O_RDONLY) as descriptor:
        (place / "f").write_bytes(b"b" * 10)
        assert set(os.pread(descriptor, 4096, 90 * 1024)) <= {ord("a")}  # As it was, or nothing.
