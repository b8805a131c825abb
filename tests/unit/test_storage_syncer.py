"""The syncer on a real directory: what barriers promise, and what they do when it fails."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from servers.protocol.ids import ExtentId, SessionNumber, extent_id
from servers.storage import syncer as subject
from servers.storage.disks import open_disks
from servers.storage.extent_store import ExtentStore
from servers.storage.syncer import Syncer, SyncFailed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> ExtentStore:
    return ExtentStore(open_disks([tmp_path]))


def _extent(number: int) -> ExtentId:
    return extent_id(SessionNumber(1), number)


async def test_a_barrier_returns_when_nothing_waits_any_more(store: ExtentStore) -> None:
    """For few extents and for many, which are synced another way; and for none at once."""
    syncer = Syncer(store)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(syncer.run())
        await syncer.barrier()
        for count in (1, subject.ONE_BY_ONE_MAX, subject.ONE_BY_ONE_MAX + 1):
            for number in range(count):
                store.put(_extent(1000 * count + number), None, b"x", sync=False)
            await syncer.barrier()
            assert store.unsynced()[0] == 0
        store.put(_extent(1), None, b"x", sync=False)
        syncer.stop()
    assert store.unsynced()[0] == 0


async def test_a_loss_fails_barriers_for_a_while_and_no_longer(
    store: ExtentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncer = Syncer(store)
    store.put(_extent(7), None, b"x", sync=False)
    (lost,) = store.take_unsynced()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _fail)
        assert syncer._sync([lost]) == [_extent(7)]
    assert store.length(_extent(7)) is None
    syncer._lost.append((0.0, _extent(7)))
    syncer._begun.set()
    monkeypatch.setattr(time, "monotonic", lambda: subject.LOST_SECONDS - 1)
    with pytest.raises(SyncFailed, match="1-7"):
        await syncer.barrier()
    monkeypatch.setattr(time, "monotonic", lambda: subject.LOST_SECONDS + 1)
    await syncer.barrier()


async def test_a_deleted_extent_is_not_lost(store: ExtentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    syncer = Syncer(store)
    store.put(_extent(7), None, b"x", sync=False)
    batch = store.take_unsynced()
    store.delete(_extent(7))
    monkeypatch.setattr(os, "fdatasync", _fail)
    assert syncer._sync(batch) == []


async def test_a_syncer_that_breaks_answers_no_barrier_with_success(
    store: ExtentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncer = Syncer(store)
    store.put(_extent(1), None, b"x", sync=False)
    monkeypatch.setattr(store, "take_unsynced", lambda: 1 / 0)
    waiting = asyncio.create_task(syncer.barrier())
    with pytest.raises(ZeroDivisionError):
        await syncer.run()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def _fail(fd: int) -> None:
    raise OSError(5, "as the test wants it")


async def test_what_failed_to_be_written_while_the_file_system_was_synced_for_others_is_lost(
    store: ExtentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """syncfs(2) tells each error once: the next one says nothing of what was stored meanwhile, and failed then too."""
    syncer = Syncer(store)
    count = subject.ONE_BY_ONE_MAX + 1
    first, second = range(count), range(count, 2 * count)
    for number in first:
        store.put(_extent(number), None, b"x", sync=False)
    batch = store.take_unsynced()
    errors = [OSError(5, "as the test wants it")]

    def sync_with_one_error(fd: int) -> None:
        for number in second:
            store.put(_extent(number), None, b"x", sync=False)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(subject, "sync_file_system", sync_with_one_error)
    assert syncer._sync(batch) == []
    batch = store.take_unsynced()
    sync, hit = os.fdatasync, batch[3]
    monkeypatch.setattr(os, "fdatasync", lambda fd: _fail(fd) if fd == hit.file.fd else sync(fd))
    assert syncer._sync(batch) == [hit.extent]
    assert syncer._sync([]) == []
