"""When reading moves a time of access, and when the metadata is told."""

from __future__ import annotations

from typing import Any

import pytest

from fusefs.vfs.access_times import DAY_NS, AccessTimes, is_due
from servers.protocol.errors import Unavailable
from servers.protocol.ids import InodeNumber
from servers.protocol.naming_api import Attributes, pack_time

pytestmark = pytest.mark.anyio
NOW = 10 * DAY_NS
FILE = Attributes(
    InodeNumber(7), 0o100644, 0, 0, 1, 0, NOW - 5, NOW - 5, NOW - 5, 0, 1024, 0, 0, 0, 0, b"", 3, InodeNumber(0)
)


class Metadata:
    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.is_away = False

    async def ask(self, verb: str, /, **arguments: Any) -> list[Any]:
        assert verb == "accessed"
        if self.is_away:
            raise Unavailable("away")
        self.told.append(arguments["times"])
        return []


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def test_relatime_moves_what_is_not_after_the_last_change_or_a_day_old() -> None:
    assert is_due(5, 5, 6)
    assert is_due(4, 5, 6)
    assert not is_due(6, 5, 7)
    assert is_due(6, 5, 6 + DAY_NS)
    assert not is_due(6, 5, 5 + DAY_NS)


async def test_a_read_shows_at_once_and_is_told_once() -> None:
    metadata = Metadata()
    times = AccessTimes(metadata.ask, lambda: NOW, seconds=1, kept=True)
    times.read(FILE.ino, FILE.atime_ns, FILE.ctime_ns)
    times.read(FILE.ino, FILE.atime_ns, FILE.ctime_ns)
    assert times.shown(FILE) == FILE._replace(atime_ns=NOW)
    await times.tell()
    assert metadata.told == [[FILE.ino, *pack_time(NOW)]]
    assert times.shown(FILE).atime_ns == NOW, "attributes from before may still be remembered"
    await times.tell()
    assert len(metadata.told) == 1
    assert times.shown(FILE) is FILE


async def test_many_are_told_in_bounded_pieces() -> None:
    metadata = Metadata()
    times = AccessTimes(metadata.ask, lambda: NOW, seconds=1, kept=True)
    for ino in range(1, 2500):
        times.read(InodeNumber(ino), 1, 2)
    await times.tell()
    assert [len(rows) // 3 for rows in metadata.told] == [1024, 1024, 451]
    assert sorted(ino for rows in metadata.told for ino in rows[::3]) == list(range(1, 2500))


async def test_a_time_that_is_set_wins() -> None:
    metadata = Metadata()
    times = AccessTimes(metadata.ask, lambda: NOW, seconds=1, kept=True)
    times.read(FILE.ino, FILE.atime_ns, FILE.ctime_ns)
    await times.forget(FILE.ino)
    assert times.shown(FILE) is FILE
    await times.tell()
    assert metadata.told == []


async def test_what_cannot_be_told_is_let_go() -> None:
    metadata = Metadata()
    metadata.is_away = True
    times = AccessTimes(metadata.ask, lambda: NOW, seconds=1, kept=True)
    times.read(FILE.ino, FILE.atime_ns, FILE.ctime_ns)
    await times.tell()
    metadata.is_away = False
    await times.tell()
    assert metadata.told == []


async def test_nothing_is_noted_where_nobody_wants_it() -> None:
    times = AccessTimes(Metadata().ask, lambda: NOW, seconds=1, kept=False)
    times.read(FILE.ino, FILE.atime_ns, FILE.ctime_ns)
    assert times.shown(FILE) is FILE
