"""A file written or read from front to back while something happens, and how long its calls took."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import MIB, opened, pattern
from tests.support.fault_table import note_stall


def write_watched(path: Path, size: int, act: Callable[[], object]) -> tuple[str, list[float]]:
    """Writes and syncs so many bytes, `act` called after a third; their SHA-256 and the seconds of each call."""
    digest, took = hashlib.sha256(), list[float]()
    with opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
        for number, piece in enumerate(pattern(size)):
            if number == size // MIB // 3:
                act()
            digest.update(piece)
            began = time.monotonic()
            assert os.write(descriptor, piece) == len(piece)
            took.append(time.monotonic() - began)
        began = time.monotonic()
        os.fsync(descriptor)
        took.append(time.monotonic() - began)
    note_stall(max(took))
    return digest.hexdigest(), took


def read_watched(path: Path, act: Callable[[], object]) -> tuple[str, list[float]]:
    """Reads all of a file, `act` called after a third; its SHA-256 and the seconds of each call."""
    digest, took, at, size = hashlib.sha256(), list[float](), 0, path.stat().st_size
    acted = False
    with opened(path, os.O_RDONLY) as descriptor:
        while at < size:
            if at > size // 3 and not acted:
                acted = True
                act()
            began = time.monotonic()
            piece = os.read(descriptor, MIB)
            took.append(time.monotonic() - began)
            assert piece
            digest.update(piece)
            at += len(piece)
    assert acted
    note_stall(max(took))
    return digest.hexdigest(), took
