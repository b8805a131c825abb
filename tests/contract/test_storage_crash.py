"""A storage node that is killed inside a store, or whose disk fails, at every step there is."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers.protocol.limits import MIB
from tests.support.processes import wait_for
from tests.support.storage_node import StorageNode

SMALL, LARGE = 5_000, MIB + 100
TMP = "tmp/01/1-1.1"
"""Where the second store of a process writes."""
BUCKET = "extents/01"

STEPS = {
    "when the temporary file is made": (TMP, "openat", LARGE),
    "in the middle of the data": (TMP, "write", LARGE),
    "before the footer": (TMP, "writev", LARGE),
    "before the rename": (TMP, "renameat2", SMALL),
    "before the data is synced": (f"{BUCKET}/1-1", "fsync", LARGE),
    "before the name is synced": (BUCKET, "fsync", SMALL),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[StorageNode]:
    """Not started yet: tests say what shall go wrong in it."""
    made = StorageNode(tmp_path)
    yield made
    made.close()


def _start_with_fault(node: StorageNode, path: str, call: str, what: str) -> None:
    """Starts it, to fail in the first such system call on this path; and stores one extent before that."""
    node.restart_with("-P", str(node.data_dir / path), "-e", f"trace={call}", "-e", f"inject={call}:{what}:when=1")
    assert node.put("2-2", b"from before", sync=True) == 201


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.fault("S7")
def test_a_crash_inside_a_store_leaves_all_or_nothing(node: StorageNode, step: str) -> None:
    """Nothing partial is ever listed or served, the used bytes are right, and the store can be done again."""
    path, call, size = STEPS[step]
    body = os.urandom(size)
    _start_with_fault(node, path, call, "signal=KILL")
    with pytest.raises(httpx.TransportError):
        node.put("1-1", body, sync=True)
    node.wait_killed()
    node.restart_with()
    assert node.temporary_files() == []
    listed = dict(node.inventory())
    assert listed.pop("2-2") == 11
    if listed:
        assert listed == {"1-1": size}
        assert node.get("1-1").content == body
        assert node.http.get("/v1/extents/1-1/description").json()["verified"]
    else:
        assert node.get("1-1").status_code == 404
    assert bool(listed) == (call == "fsync"), "only the syncs come after the rename"
    assert node.put("1-1", body, sync=True) == (200 if listed else 201)
    files = [path for path in (node.data_dir / "extents").rglob("*") if path.is_file()]
    assert node.http.get("/v1/space").json()["used_bytes"] == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("path", "call", "error", "status"),
    [
        (TMP, "openat", "EMFILE", 503),
        (TMP, "write", "ENOSPC", 507),
        (TMP, "write", "EIO", 503),
        (TMP, "writev", "ENOSPC", 507),
        (TMP, "writev", "EDQUOT", 507),
        (TMP, "renameat2", "EIO", 503),
        (f"{BUCKET}/1-1", "fsync", "EIO", 503),
        (f"{BUCKET}/1-1", "fsync", "ENOSPC", 507),
        (BUCKET, "fsync", "EIO", 503),
    ],
)
@pytest.mark.fault("S13")
def test_a_disk_that_fails_inside_a_store_leaves_nothing(
    node: StorageNode, path: str, call: str, error: str, status: int
) -> None:
    """The sender learns that this node cannot, and the next store works."""
    _start_with_fault(node, path, call, f"error={error}")
    used = node.http.get("/v1/space").json()["used_bytes"]
    body = os.urandom(LARGE)
    assert node.put("1-1", body, sync=True) == status
    assert node.get("1-1").status_code == 404
    assert node.temporary_files() == []
    assert node.http.get("/v1/space").json()["used_bytes"] == used
    assert node.statistics()["sync_failures"] == ("sync" in call)
    assert node.statistics()["unsyncable"] == 0
    assert node.put("1-1", body, sync=True) == 201
    assert node.get("1-1").content == body


def test_a_file_system_without_direct_writes_is_written_the_other_way(node: StorageNode) -> None:
    body = os.urandom(LARGE)
    _start_with_fault(node, TMP, "write", "error=EINVAL")
    assert node.put("1-1", body) == 201
    assert node.get("1-1").content == body


def test_a_barrier_fails_for_what_could_not_be_synced(node: StorageNode) -> None:
    """The replica is dropped, never synced again; the barrier names it, and so do later ones for a while."""
    _start_with_fault(node, f"{BUCKET}/1-1", "fdatasync", "error=EIO")
    assert [node.put("1-1", b"lost"), node.put("1-2", b"kept")] == [201, 201]
    for _ in range(2):
        answer = node.http.post("/v1/barrier")
        assert answer.status_code == 500
        assert "1-1" in answer.json()["detail"]
        assert "1-2" not in answer.json()["detail"]
    assert node.get("1-1").status_code == 404
    assert node.get("1-2").content == b"kept"
    assert node.statistics()["sync_failures"] == node.statistics()["unsyncable"] == 1
    assert node.statistics()["unsynced"] == 0
    assert node.put("1-1", b"lost") == 201


def test_a_barrier_fails_for_names_that_could_not_be_synced(node: StorageNode) -> None:
    _start_with_fault(node, BUCKET, "fsync", "error=EIO")
    assert [node.put("1-1", b"lost"), node.put("1-2", b"kept")] == [201, 201]
    answer = node.http.post("/v1/barrier")
    assert (answer.status_code, "1-1" in answer.json()["detail"]) == (500, True)
    assert dict(node.inventory()) == {"1-2": 4, "2-2": 11}


def test_when_the_whole_file_system_cannot_be_synced_each_file_is_asked(node: StorageNode) -> None:
    """syncfs does not say whose write failed; nothing is dropped on its word."""
    node.restart_with("-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO:when=1")
    for number in range(1, 41):
        assert node.put(f"1-{number:x}", b"kept") == 201
    assert node.http.post("/v1/barrier").status_code == 200
    assert len(node.inventory()) == 40
    assert node.statistics()["unsynced"] == 0


def test_one_flush_serves_all_who_wait(node: StorageNode) -> None:
    """Twenty barriers at once, while every sync takes 200 ms, are done after two flushes at most."""
    node.restart_with("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=200000")
    assert node.put("1-1", b"x") == 201
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(node.http.post("/v1/barrier").status_code)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20
    assert 0.2 <= time.monotonic() - started < 1.5


def test_a_barrier_covers_what_a_flush_under_way_has_taken(node: StorageNode) -> None:
    """A store that is being synced already is not forgotten by a barrier that comes meanwhile."""
    node.restart_with("-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=500000")
    node.put("1-1", b"x")
    first = threading.Thread(target=lambda: node.http.post("/v1/barrier"))
    first.start()
    wait_for(lambda: node.statistics()["unsynced"] == 0, "the flush has taken the extent")
    started = time.monotonic()
    assert node.http.post("/v1/barrier").status_code == 200
    first.join()
    assert time.monotonic() - started > 0.2


def test_a_store_killed_at_a_random_moment_is_all_or_nothing(node: StorageNode) -> None:
    """kill -9 in the middle of traffic, several times: what was acknowledged is there, all that is there is whole."""
    acknowledged: dict[str, bytes] = {}
    node.start()
    for life in (1, 2, 3):
        writer = threading.Thread(target=_store_until_it_dies, args=(node, life, acknowledged))
        enough = len(acknowledged) + 10 * life
        writer.start()
        _wait_for_length(acknowledged, enough)
        node.kill()
        writer.join()
        node.start()
        assert node.temporary_files() == []
    listed = dict(node.inventory())
    assert acknowledged
    assert set(acknowledged) <= set(listed)
    assert -1 not in listed.values()
    for extent, body in acknowledged.items():
        assert node.get(extent).content == body
    for extent in listed:
        assert node.http.get(f"/v1/extents/{extent}/description").json()["verified"]


def _wait_for_length(acknowledged: dict[str, bytes], enough: int) -> None:
    wait_for(lambda: len(acknowledged) >= enough, "stores were acknowledged")


def _store_until_it_dies(node: StorageNode, life: int, acknowledged: dict[str, bytes]) -> None:
    for number in range(1, 100_000):
        extent, body = f"{life:x}-{number:x}", os.urandom(300 if number % 3 else 400_000)
        try:
            if node.put(extent, body) == 201:
                acknowledged[extent] = body
        except httpx.TransportError:
            return
