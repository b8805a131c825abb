"""What a node deletes it keeps for a while: brought back, or gone for good in time or for room."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from servers.protocol.errors import ExtentMissing, NodeFull
from servers.protocol.ids import SessionNumber, extent_id
from servers.storage import condemned
from servers.storage.data_directory import DiskSpace
from servers.storage.disk_health import DiskState
from servers.storage.disks import Disk, open_disks
from servers.storage.extent_store import ExtentStore

ONE, TWO = extent_id(SessionNumber(1), 1), extent_id(SessionNumber(1), 2)


def make(path: Path, keep_seconds: float = 3600) -> ExtentStore:
    return ExtentStore(open_disks([path], None, keep_seconds))


@pytest.fixture
def store(tmp_path: Path) -> ExtentStore:
    made = make(tmp_path)
    for extent in (ONE, TWO):
        made.put(extent, None, bytes(1000), sync=False)
    return made


def disk_of(store: ExtentStore) -> Disk:
    (disk,) = store.disks
    return disk


def test_a_condemned_extent_is_gone_until_it_is_brought_back(store: ExtentStore) -> None:
    used = store.used_bytes()
    store.condemn(ONE)
    store.condemn(ONE)
    with pytest.raises(ExtentMissing):
        store.open(ONE)
    assert store.page(None, 10)[0] == [(TWO, 1000)]
    assert disk_of(store).condemned.count == 1
    assert store.used_bytes() + disk_of(store).condemned.file_bytes == used
    (kept,) = disk_of(store).condemned.listing()
    assert store.bring_back(disk_of(store), kept)
    assert not store.bring_back(disk_of(store), kept)
    assert store.read(store.open(ONE), 0, 1000) == bytes(1000)
    assert (disk_of(store).condemned.count, disk_of(store).condemned.file_bytes, store.used_bytes()) == (0, 0, used)


def test_what_was_stored_again_meanwhile_stays(store: ExtentStore) -> None:
    store.condemn(ONE)
    store.put(ONE, None, b"new", sync=False)
    (kept,) = disk_of(store).condemned.listing()
    assert not store.bring_back(disk_of(store), kept)
    assert store.length(ONE) == 3


def test_it_is_deleted_in_time_and_not_before(store: ExtentStore) -> None:
    store.condemn(ONE)
    now = time.time()
    assert disk_of(store).condemned.purge(now + 3600 - 1) == 0
    assert disk_of(store).condemned.purge(now + 2 * 3600) > 1000
    assert list(disk_of(store).condemned.listing()) == []
    assert list((disk_of(store).directory.root / "condemned").iterdir()) == []


def test_it_is_deleted_in_parts_and_counted_once(store: ExtentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored and condemned again within the period it is one file."""
    monkeypatch.setattr(condemned, "PURGED_TOGETHER", 1)
    disk, one = disk_of(store), store.used_bytes() // 2
    for extent in (ONE, TWO, ONE):
        store.put(extent, None, bytes(1000), sync=False)
        store.condemn(extent)
    assert (disk.condemned.count, disk.condemned.file_bytes) == (2, 2 * one)
    assert disk.condemned.purge(time.time() + 2 * 3600) == 2 * one
    assert (disk.condemned.count, disk.condemned.file_bytes) == (0, 0)


def test_it_is_told_before_a_store_that_something_has_to_go_for_it(
    store: ExtentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting many files keeps whoever does it busy: that is not to be the event loop."""
    monkeypatch.setattr(disk_of(store).directory, "space", lambda *_: DiskSpace(1000, 10_000, "disk"))
    assert not store.must_make_room(2000), "nothing could go"
    store.condemn(ONE)
    assert store.must_make_room(2000)
    assert not store.must_make_room(500)


def test_it_makes_room_for_a_store(store: ExtentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full but for what is condemned."""
    store.condemn(ONE)
    disk = disk_of(store)

    def space(condemned_bytes: int = 0) -> DiskSpace:
        return DiskSpace(10_000 if condemned_bytes or not disk.condemned.count else 0, 10_000, "disk")

    monkeypatch.setattr(disk.directory, "space", space)
    three = extent_id(SessionNumber(1), 3)
    assert store.put(three, None, b"x", sync=False)
    assert disk_of(store).condemned.count == 0
    monkeypatch.setattr(disk_of(store).directory, "space", lambda *_: DiskSpace(0, 10_000, "disk"))
    with pytest.raises(NodeFull):
        store.put(extent_id(SessionNumber(1), 4), None, b"x", sync=False)


def test_an_error_as_it_deletes_counts_for_the_disk(store: ExtentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other: by order, and when its time is over."""
    disk = disk_of(store)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "a test")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="a test"):
            store.condemn(ONE)
    assert disk.health.errors == 1
    store.condemn(ONE)
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(OSError, match="a test"):
        disk.purge(1)
    assert disk.health.errors == 2
    assert disk.health.state is DiskState.FAILED


def test_an_error_as_it_makes_room_counts_for_the_disk(store: ExtentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.condemn(ONE)
    disk = disk_of(store)
    monkeypatch.setattr(disk.directory, "space", lambda condemned_bytes=0: DiskSpace(condemned_bytes, 10_000, "disk"))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "a test")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(OSError, match="a test"):
        store.put(extent_id(SessionNumber(1), 3), None, b"x", sync=False)
    assert disk.health.state is DiskState.READ_ONLY


def test_it_is_still_there_after_a_restart(store: ExtentStore, tmp_path: Path) -> None:
    store.condemn(ONE)
    disk_of(store).directory.close()
    again = disk_of(make(tmp_path)).condemned
    assert (again.count, again.file_bytes) == (1, disk_of(store).condemned.file_bytes)


def test_without_a_time_to_keep_it_is_deleted_at_once(tmp_path: Path) -> None:
    store = make(tmp_path, 0)
    store.put(ONE, None, b"x", sync=False)
    store.condemn(ONE)
    assert disk_of(store).condemned.count == 0
    assert not list(tmp_path.glob("*/*/1-1"))
