"""Two mounts make the same name at the same moment."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.commands import opened

ROUNDS = 100


def test_opening_with_creat_makes_or_opens_whoever_is_first(place: Path, other_place: Path) -> None:
    """Without O_EXCL nobody fails, and both have the same file."""
    barrier = threading.Barrier(2, timeout=60)

    def open_all(directory: Path, letter: bytes) -> list[int]:
        inodes = []
        for number in range(ROUNDS):
            barrier.wait()
            with opened(directory / f"{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
                os.write(descriptor, letter)
                inodes.append(os.fstat(descriptor).st_ino)
        return inodes

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(open_all, (place, other_place), (b"a", b"b"))
    assert one == two
    assert all(sorted((place / f"{number}").read_bytes()) == sorted(b"ab") for number in range(ROUNDS))
