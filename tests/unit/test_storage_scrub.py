"""The pace of the scrub, its cursor, and when a disk is believed no more."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.protocol.ids import SessionNumber, extent_id
from servers.storage import disk_health
from servers.storage.disk_health import DiskHealth, DiskState
from servers.storage.disks import open_disks
from servers.storage.extent_store import ExtentStore
from servers.storage.holdings import Held, held, total
from servers.storage.scrub import REPLICA_COST_BYTES, STALLED_SECONDS, Scrub, bytes_per_second
from servers.storage.scrub_cursor import Cursor, load_cursor, save_cursor

EXTENTS = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30)


@given(st.integers(0, 10**7), st.integers(1, 2**45), st.floats(1, 10**7))
def test_a_pass_is_through_within_the_period(count: int, size: int, period: float) -> None:
    rate = bytes_per_second(Held(count, 0, size), period, rate_max=float("inf"))
    assert (size + count * REPLICA_COST_BYTES) / rate <= period
    assert bytes_per_second(Held(count, 0, size), period, rate_max=5.0) <= 5.0


@given(EXTENTS, EXTENTS)
def test_a_digest_tells_sets_apart_whatever_their_order(some: list[int], others: list[int]) -> None:
    def digest(counters: list[int]) -> str:
        return str(total(held(extent_id(SessionNumber(1), counter), 5) for counter in counters))

    assert digest(some) == digest(some[::-1])
    assert (digest(some) == digest(others)) == (set(some) == set(others))
    both = total(held(extent_id(SessionNumber(1), counter), 5) for counter in some)
    assert str(both - total([both])) == str(Held())


def test_the_cursor_is_found_again_and_a_strange_one_begins_anew(tmp_path) -> None:
    path = tmp_path / "scrub"
    assert load_cursor(path, 1000.5) == Cursor(None, 1000, 1000)
    cursor = Cursor(extent_id(SessionNumber(42), 31), 1001, 900)
    save_cursor(path, cursor)
    assert path.read_text() == "2a-1f 1001 900\n"
    assert load_cursor(path, 2000) == cursor
    save_cursor(path, cursor.completed(3000))
    assert load_cursor(path, 4000) == Cursor(None, 3000, 3000)
    path.write_bytes(b"\xff\xff")
    assert load_cursor(path, 5000) == Cursor(None, 5000, 5000)


def test_a_scrub_that_stands_still_is_late_long_before_its_period_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour without a replica verified, unless so few are there that it plans to rest for longer."""
    week = 7 * 24 * 3600
    (disk,) = disks = open_disks([tmp_path])
    store = ExtentStore(disks)
    for counter in range(1000):
        store.put(extent_id(SessionNumber(1), counter + 1), None, b"x", sync=False)
    many, few = Scrub(store, disk, week, 1e9), Scrub(store, disk, 1000 * week, 1e9)
    assert not many.state().is_late
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + STALLED_SECONDS + 3 * week / 1000)
    assert many.state().is_late
    assert not few.state().is_late


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> DiskHealth:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return DiskHealth("/disk")


def test_two_errors_within_ten_minutes_are_one_too_many(health: DiskHealth, monkeypatch: pytest.MonkeyPatch) -> None:
    health.note(OSError(errno.EIO, "first"))
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + disk_health.WINDOW_SECONDS + 1)
    health.note(OSError(errno.EIO, "second"))
    assert health.state == DiskState.GOOD.value
    for number in (errno.ENOSPC, errno.EMFILE, errno.ENOENT, errno.EACCES):
        health.note(OSError(number, "not the disk's fault"))
    assert health.state == DiskState.GOOD.value
    health.note(OSError(errno.EUCLEAN, "third"))
    assert health.state == DiskState.FAILED.value
    health.is_writable_again()
    assert health.state == DiskState.FAILED.value


def test_a_read_only_disk_can_become_good_and_can_fail(health: DiskHealth) -> None:
    health.note(OSError(errno.EROFS, "read-only"))
    assert health.state == DiskState.READ_ONLY.value
    health.is_writable_again()
    assert health.state == DiskState.GOOD.value
    health.note(OSError(errno.EROFS, "read-only"))
    for _ in range(2):
        health.note(OSError(errno.EIO, "worse"))
    assert health.state == DiskState.FAILED.value
