"""Programs called as a person would, each with a time limit, and what tests often ask of files."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1024 * 1024


def run(
    *command: str | Path,
    cwd: Path | None = None,
    stdin: bytes = b"",
    expect: int | None = 0,
    seconds: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What the program said on stdout; the test fails for another exit status than expected."""
    done = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, timeout=seconds,
        env=None if environment is None else dict(environment),
    )  # fmt: skip
    said = (done.stderr + done.stdout).decode(errors="replace")[-2000:]
    assert expect is None or done.returncode == expect, f"{command[:4]}...: exit status {done.returncode}: {said}"
    return done.stdout.decode(errors="replace")


def write_pattern(path: Path, size: int, *, seed: int = 1, sync: bool = False) -> str:
    """Writes so many bytes in pieces of 1 MiB, no two alike, closes the file, and returns their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in pattern(size, seed=seed):
            digest.update(piece)
            assert file.write(piece) == len(piece)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def pattern(size: int, *, seed: int = 1) -> Iterator[bytes]:
    """Bytes that do not repeat, in pieces of at most 1 MiB: each begins with its own number."""
    base = bytearray(os.urandom(MIB))
    for at in range(0, size, MIB):
        base[:16] = seed.to_bytes(8, "big") + at.to_bytes(8, "big")
        yield bytes(base[: min(MIB, size - at)])


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor, closed afterwards."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """What is done within fails with this errno."""
    with pytest.raises(OSError, check=lambda error: error.errno == number):
        yield
