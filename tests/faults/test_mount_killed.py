"""The mount's daemon dies by SIGKILL again and again: what it had promised is there."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import promises
from tests.support.caller import Caller
from tests.support.cluster import Cluster, Mount
from tests.support.manifest import Manifest
from tests.support.processes import wait_for

ITERATIONS = 50
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
"""The last where the daemon dies in the very moment in which it copies the request: the kernel makes that EIO."""
ENDED_SECONDS = 2.0
"""After a kill whatever was running has ended; a busy machine takes some of it."""
CHUNK = 64 * 1024
CHUNKS, PROMISED_CHUNKS = 12, 10
LETTERS = "BCDEFGHIJKLMNOPQRSTUVWXYZ"


def run_until_killed(mount: Mount, manifest: Path, seed: int, chance: random.Random) -> None:
    """The program works on the mount for a moment after its first promise; then the daemon is killed, and the program's
    call fails at once."""
    program = subprocess.Popen(
        [sys.executable, "-S", promises.__file__, mount.path, manifest, str(seed)], stderr=subprocess.PIPE
    )
    with program:
        wait_for(lambda: manifest.exists() and b"kept" in manifest.read_bytes(), "something was promised", 20)
        time.sleep(chance.uniform(0.0, 0.4))
        began = time.monotonic()
        mount.kill()
        _, said = program.communicate(timeout=60)
        ended_seconds = time.monotonic() - began
    assert program.returncode == 0, said
    assert int(said) in GONE, f"{os.strerror(int(said))}: {mount.process.log_tail()}"
    assert ended_seconds < ENDED_SECONDS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("iterations", [ITERATIONS, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.fault("C1")
def test_what_was_promised_survives_every_kill_of_the_mount(mounted: Cluster, tmp_path: Path, iterations: int) -> None:
    """Every file whose close, fsync, rename or unlink had returned is as it was then, read through empty caches.

    After each of the kills what that run and some of those before it promised, at the end everything.
    """
    seed = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    mount, manifest = mounted.mounts[0] if mounted.mounts else mounted.mount(), Manifest()
    for number in range(iterations):
        path = tmp_path / f"manifest-{number}"
        run_until_killed(mount, path, chance.randrange(1 << 32), chance)
        before = sorted(manifest.names)
        manifest.read(path)
        mount.start()
        newest = manifest.names - set(before)
        manifest.check(mount.path, newest | set(chance.sample(before, min(len(before), 30))))
    mount.remount()
    manifest.check(mount.path, manifest.names)
    assert manifest.promised > 10 * iterations
    assert len(manifest.logs) > iterations // 2


def kill_while_rewriting(mount: Mount, path: Path, seconds: float) -> None:
    """All chunks but the last are promised with an A; then all are written with one letter after the other, each
    chunk at once, and nothing is promised. After so long the daemon is killed, inside a write."""
    with Caller() as caller:
        descriptor = caller.do("open", path, os.O_WRONLY | os.O_CREAT)
        caller.do("pwrite", descriptor, b"A" * CHUNK * PROMISED_CHUNKS, 0)
        caller.do("fsync", descriptor)
        until = time.monotonic() + seconds
        for number in itertools.count():
            letter, index = LETTERS[number // CHUNKS % len(LETTERS)], number % CHUNKS
            caller.begin("pwrite", descriptor, letter.encode() * CHUNK, index * CHUNK)
            if time.monotonic() > until:
                break
            assert caller.end().errno == 0
        began = time.monotonic()
        mount.kill()
        last = caller.end()
        assert time.monotonic() - began < ENDED_SECONDS
    assert last.errno in {0, *GONE}, os.strerror(last.errno)


@pytest.mark.fault("C1")
def test_what_was_written_and_not_promised_may_be_missing_but_no_chunk_is_torn(mounted: Cluster) -> None:
    """Each chunk is as one of the writes left it, whichever, or zeros where no promised one was. Some are newer than
    the promise: there was something to be torn."""
    seed = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    mount = mounted.mount("prompt", WRITE_BACK_SECONDS="0.1")
    place = mount.path / "rewritten"
    place.mkdir()
    os.setxattr(place, "user.dcs.chunk_size", str(CHUNK).encode())
    found: list[bytes] = []
    for number in range(5):
        kill_while_rewriting(mount, place / str(number), chance.uniform(0.2, 0.8))
        mount.start()
        content = (place / str(number)).read_bytes()
        assert len(content) >= PROMISED_CHUNKS * CHUNK
        assert b"\0" not in content[: PROMISED_CHUNKS * CHUNK]
        found += [bytes(set(content[at : at + CHUNK])) for at in range(0, len(content), CHUNK)]
    assert all(len(letters) == 1 for letters in found), found
    assert set(found) - {b"A", b"\0"}, "nothing is newer than the promise"
