"""A file written or read from front to back while something happens, and how long each call of it took."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import MIB, opened, pattern
from tests.support.fault_table import note_stall


class Watched(tuple[str, float]):  # noqa: SLOT001 - a tuple has no room for the field otherwise.
    """The SHA-256 and the longest call in seconds, a pair for those who need no more."""

    durations: list[float]
    """Of all calls, one after the other, in seconds."""


def write_watched(path: Path, size: int, act: Callable[[], object]) -> Watched:
    """Writes and syncs so many bytes, `act` called after a third."""
    digest, durations = hashlib.sha256(), list[float]()
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        for number, piece in enumerate(pattern(size)):
            if number == size // MIB // 3:
                act()
            digest.update(piece)
            began = time.monotonic()
            assert os.write(descriptor, piece) == len(piece)
            durations.append(time.monotonic() - began)
        began = time.monotonic()
        os.fsync(descriptor)
        durations.append(time.monotonic() - began)
    return _watched(digest.hexdigest(), durations)


def read_watched(path: Path, act: Callable[[], object]) -> Watched:
    """Reads all of a file, `act` called after a third."""
    digest, durations, at, size = hashlib.sha256(), list[float](), 0, path.stat().st_size
    acted = False
    with opened(path, os.O_RDONLY) as descriptor:
        while at < size:
            if at > size // 3 and not acted:
                acted = True
                act()
            began = time.monotonic()
            piece = os.read(descriptor, MIB)
            durations.append(time.monotonic() - began)
            assert piece
            digest.update(piece)
            at += len(piece)
    assert acted
    return _watched(digest.hexdigest(), durations)


def _watched(digest: str, durations: list[float]) -> Watched:
    watched = Watched((digest, max(durations)))
    watched.durations = durations
    note_stall(max(durations))
    return watched
