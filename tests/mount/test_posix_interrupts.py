"""Long calls end promptly by a signal, and leave the mount whole."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.commands import MIB, opened
from tests.support.processes import free_port, wait_for

SIZE = 128 * MIB
PROMPTLY_SECONDS = 10.0
"""What a busy machine may need for the requests that are under way, and less than any deadline of ours."""
PREPARE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
WRITE = PREPARE + "d = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.write(d, b'x' * int(sys.argv[2]))"
READ = PREPARE + "d = os.open(sys.argv[1], os.O_RDONLY); os.preadv(d, [bytearray(int(sys.argv[2]))], 0)"
READ_CALLS = {0, 17, 295}
"""read, pread64 and preadv, as x86-64 numbers them."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_long_write(place: Path, number: int) -> None:
    path = place / "f"
    path.touch()
    with subprocess.Popen([sys.executable, "-c", WRITE, path, str(SIZE)]) as child:
        wait_for(lambda: path.stat().st_size > MIB, "the write is under way")
        seconds = _end(child, number)
    assert seconds < PROMPTLY_SECONDS
    written = path.stat().st_size
    with path.open("rb") as file:
        assert all(file.read(MIB).count(b"x") == min(MIB, written - at) for at in range(0, written, MIB))
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"end")
        os.fsync(descriptor)
    assert path.stat().st_size == written + 3


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)])
def test_a_signal_ends_a_long_read(mounted: Cluster, place: Path, number: int) -> None:
    path = place / "f"
    with path.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(b"x" * MIB)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with subprocess.Popen([sys.executable, "-c", READ, path, str(SIZE)]) as child:
        wait_for(lambda: child.poll() is not None or _reads(child.pid), "the read is under way")
        seconds = _end(child, number)
    assert seconds < PROMPTLY_SECONDS
    with path.open("rb") as file:
        assert all(file.read(MIB) == b"x" * MIB for _ in range(SIZE // MIB))


def _end(child: subprocess.Popen[bytes], number: int) -> float:
    """For how many seconds the child lived on; it may have been through by itself."""
    child.send_signal(number)
    began = time.monotonic()
    child.wait(timeout=60)
    assert child.returncode in (-number, 0)
    return time.monotonic() - began


def _reads(pid: int) -> bool:
    """It is in a read of more than a library's own files have."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return words[0].isdigit() and int(words[0]) in READ_CALLS and int(words[1], 16) > 2


def test_who_is_killed_before_the_mount_read_his_request_stops_nobody(mounted: Cluster, tmp_path: Path) -> None:
    """The kernel withdraws the request, and who then reads /dev/fuse waits for another one: not for ever."""
    hold, port = tmp_path / "hold", free_port()
    late = (sys.executable, "-m", "tests.support.late_reader", tmp_path)
    mount = mounted.mount("late", "--metrics", str(port), through=[str(word) for word in late])
    wait_for(lambda: _answers(port), "the mount tells its metrics")
    hold.touch()
    with subprocess.Popen(["stat", mount.path / "nobody"], stderr=subprocess.DEVNULL) as child:
        wait_for((tmp_path / "held").exists, "the kernel has the request for the mount")
        child.kill()
        child.wait(timeout=30)
    hold.unlink()
    wait_for(lambda: _answers(port), "the mount goes on", 20)
    mount.unmount()


def _answers(port: int) -> bool:
    """Whatever it says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        return bool(connection.getresponse().status)
    except OSError:
        return False
    finally:
        connection.close()
