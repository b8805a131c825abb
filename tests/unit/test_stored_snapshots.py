"""Which snapshot of the metadata is read back from the nodes, and which of the changes after it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from servers.client.storage import StorageClient
from servers.naming.stored_snapshots import Fetched, Unusable, fetch_newest
from servers.protocol.errors import DcsError, ExtentDamaged, ExtentMissing, NodeFailed, TryAgain
from servers.protocol.ids import ExtentId
from servers.protocol.snapshots import MANIFEST, TAIL, Manifest, part_id

pytestmark = pytest.mark.anyio

CHANGE = b"*2\r\n$3\r\nDEL\r\n$1\r\n%d\r\n"
HALF = b"*1\r\n$5\r\nMULTI\r\n"


@dataclass
class Nodes:
    """Fake: two of them, with the same extents."""

    extents: dict[ExtentId, bytes] = field(default_factory=dict)
    problems: dict[tuple[str, ExtentId], DcsError] = field(default_factory=dict)

    def store(self, number: int, parts: list[bytes], tail: list[bytes]) -> None:
        whole = b"".join(parts)
        manifest = Manifest("v", "main", number, 1, len(parts), len(whole), hashlib.sha256(whole).hexdigest())
        self.extents |= {part_id(number, at): data for at, data in enumerate(parts)}
        self.extents |= {part_id(number, TAIL + at): data for at, data in enumerate(tail)}
        self.extents[part_id(number, MANIFEST)] = manifest.pack()

    def spoil(self, number: int, part: int, error: DcsError, *addresses: str) -> None:
        self.problems |= {(address, part_id(number, part)): error for address in addresses or ("a", "b")}

    async def get_whole(self, address: str, extent: ExtentId, **seconds: float) -> tuple[None, bytes]:
        if problem := self.problems.get((address, extent)):
            raise problem
        return None, self.extents[extent]


@pytest.fixture
def nodes() -> Nodes:
    """Two snapshots, each with its tail."""
    made = Nodes()
    made.store(5, [b"old", b"er"], [CHANGE % 1, CHANGE % 2])
    made.store(9, [b"new", b"er"], [CHANGE % 3, CHANGE % 4, CHANGE % 5])
    return made


async def fetch(nodes: Nodes, directory: Path) -> tuple[Fetched | None, bytes, bytes]:
    held = {address: set(nodes.extents) for address in ("a", "b")}
    rdb, changes = directory / "rdb", directory / "changes"
    fetched = await fetch_newest(cast(StorageClient, nodes), held, rdb, changes)
    return fetched, rdb.read_bytes() if fetched else b"", changes.read_bytes() if fetched else b""


async def test_the_newest_is_taken_from_whichever_node_has_it_whole(nodes: Nodes, tmp_path: Path) -> None:
    nodes.spoil(9, 0, ExtentDamaged("rotten"), "a")
    nodes.spoil(9, 1, NodeFailed("its disk errs"), "b")
    nodes.spoil(9, MANIFEST, TryAgain("away"), "a")
    fetched, rdb, changes = await fetch(nodes, tmp_path)
    assert (rdb, changes) == (b"newer", CHANGE % 3 + CHANGE % 4 + CHANGE % 5)
    assert fetched is not None
    assert (fetched.manifest.seq, fetched.parts, fetched.passed_over) == (9, 3, ())


@pytest.mark.parametrize("part", [0, 1, MANIFEST])
async def test_an_older_one_goes_with_its_own_changes_only(nodes: Nodes, tmp_path: Path, part: int) -> None:
    """The newer one's begin later: made after the older one they would be changes with a gap before them."""
    nodes.spoil(9, part, ExtentDamaged("rotten"))
    fetched, rdb, changes = await fetch(nodes, tmp_path)
    assert (rdb, changes) == (b"older", CHANGE % 1 + CHANGE % 2)
    assert fetched is not None
    assert (fetched.manifest.seq, fetched.parts) == (5, 2)
    assert fetched.passed_over == ("the snapshot of change 9 cannot be used: rotten",)


@pytest.mark.parametrize("part", [0, MANIFEST])
async def test_a_part_that_no_node_has_is_as_one_that_is_damaged(nodes: Nodes, tmp_path: Path, part: int) -> None:
    del nodes.extents[part_id(9, part)]
    fetched, rdb, _ = await fetch(nodes, tmp_path)
    assert fetched is not None
    assert rdb == b"older"
    assert "--nodes" in fetched.passed_over[0]


async def test_what_is_not_what_was_stored_is_passed_over(nodes: Nodes, tmp_path: Path) -> None:
    nodes.extents[part_id(9, 0)] = b"New"
    assert (await fetch(nodes, tmp_path))[1] == b"older"
    nodes.extents[part_id(9, MANIFEST)] = b"{}"
    assert (await fetch(nodes, tmp_path))[1] == b"older"


async def test_changes_end_before_the_first_that_cannot_be_read_and_between_two(nodes: Nodes, tmp_path: Path) -> None:
    nodes.spoil(9, TAIL + 1, ExtentDamaged("rotten"))
    assert (await fetch(nodes, tmp_path))[2] == CHANGE % 3
    nodes.problems.clear()
    nodes.extents[part_id(9, TAIL + 1)] = HALF + CHANGE % 4
    del nodes.extents[part_id(9, TAIL + 2)]
    assert (await fetch(nodes, tmp_path))[2] == CHANGE % 3


@pytest.mark.parametrize("part", [0, MANIFEST, TAIL, TAIL + 1])
@pytest.mark.parametrize("trouble", [TryAgain("a: no answer"), NodeFailed("a: 503 Too many open files")])
@pytest.mark.parametrize("other", [ExtentDamaged("rotten"), ExtentMissing("not there")])
async def test_while_a_node_that_may_have_it_does_not_give_it_nothing_is_chosen(
    nodes: Nodes, tmp_path: Path, part: int, trouble: DcsError, other: DcsError
) -> None:
    """It does not answer, or has trouble that may pass: that proves nothing."""
    nodes.spoil(9, part, trouble, "a")
    nodes.spoil(9, part, other, "b")
    with pytest.raises(TryAgain, match=r"a: .*start it again, or leave it out of --nodes"):
        await fetch(nodes, tmp_path)


async def test_what_a_node_said_to_have_and_has_not_is_gone(nodes: Nodes, tmp_path: Path) -> None:
    nodes.spoil(9, TAIL + 1, ExtentMissing("not there"))
    assert (await fetch(nodes, tmp_path))[2] == CHANGE % 3
    nodes.spoil(9, 0, ExtentMissing("not there"))
    assert (await fetch(nodes, tmp_path))[1] == b"older"


async def test_where_none_can_be_read_it_is_said_what_to_do(nodes: Nodes, tmp_path: Path) -> None:
    for number in (5, 9):
        nodes.spoil(number, 1, ExtentDamaged("rotten"))
    with pytest.raises(Unusable, match="--no-snapshot"):
        await fetch(nodes, tmp_path)


async def test_where_no_snapshot_was_ever_finished_there_is_none(tmp_path: Path) -> None:
    assert await fetch(Nodes({part_id(5, 0): b"begun"}), tmp_path) == (None, b"", b"")
