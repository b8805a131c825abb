"""The mount's daemon dies by SIGKILL again and again: what it had promised is there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import promises
from tests.support.cluster import Cluster, Mount
from tests.support.manifest import Manifest
from tests.support.processes import wait_for

ITERATIONS = 50


def run_until_killed(mount: Mount, manifest: Path, seed: int, chance: random.Random) -> None:
    """The program works on the mount for a moment after its first promise; then the daemon is killed."""
    program = subprocess.Popen(
        [sys.executable, "-S", promises.__file__, mount.path, manifest, str(seed)], stderr=subprocess.PIPE
    )
    with program:
        wait_for(lambda: manifest.exists() and b"kept" in manifest.read_bytes(), "something was promised", 20)
        time.sleep(chance.uniform(0.0, 0.4))
        mount.kill()
        _, said = program.communicate(timeout=60)
    assert program.returncode == 0, said
    assert int(said) in (errno.ENOTCONN, errno.ECONNABORTED), os.strerror(int(said))


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


@pytest.mark.fault("C1")
def test_what_was_written_and_not_promised_may_be_missing_but_is_never_wrong(mounted: Cluster, mount: Mount) -> None:
    """A file that was being written has a beginning of what was written, or zeros where data never came."""
    data = os.urandom(1 << 20) * 40
    with (mount.path / "half").open("wb", buffering=0) as file:
        file.write(data[: 4 << 20])
        os.fsync(file.fileno())
        file.write(data[4 << 20 :])
        mount.kill()
        with contextlib.suppress(OSError):
            file.close()
    mount.start()
    content = (mount.path / "half").read_bytes()
    assert len(content) >= 4 << 20
    assert content[: 4 << 20] == data[: 4 << 20]
    for at in range(0, len(content), 4096):
        assert content[at : at + 4096] in (data[at : at + 4096][: len(content) - at], bytes(4096)[: len(content) - at])
