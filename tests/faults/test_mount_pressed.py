"""A mount that cannot get rid of what is written, runs out of descriptors, or is ended: bounded, in time, and told."""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import MIB
from tests.support.fault_table import note_stall
from tests.support.processes import Process

DEADLINE_SECONDS = 30.0
SLACK_SECONDS = 5.0
"""What a busy machine with two cores adds to a deadline."""
DIRTY_BYTES_MAX = 256 * MIB
BASE_BYTES_MAX = 200 * MIB
WRITERS = 10
EACH_BYTES = 1024 * MIB
WRITING = """
import json, os, sys, threading, time
names, size = sys.argv[2:], int(sys.argv[1])
def write(name):
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT)
    piece, taken, longest, number = os.urandom(1 << 20), 0, 0.0, 0
    while taken < size and not number:
        began = time.monotonic()
        try:
            taken += os.write(descriptor, piece[taken % len(piece):])
        except OSError as error:
            number = error.errno
        longest = max(longest, time.monotonic() - began)
    rows.append([taken, longest, number])
    told.release()
    go_on.wait()
    try:
        os.fsync(descriptor)
    except OSError:
        os.fsync(descriptor)  # What failed in the background is told once.
    for at in range(0, taken, len(piece)):
        read = os.pread(descriptor, len(piece), at)
        assert read == piece[:taken - at], (name, at)
    os.close(descriptor)
    whole.append(name)
rows, whole, told, go_on = [], [], threading.Semaphore(0), threading.Event()
threads = [threading.Thread(target=write, args=(name,)) for name in names]
for thread in threads: thread.start()
for _ in threads: told.acquire()
print(json.dumps(rows), flush=True)
sys.stdin.readline()
go_on.set()
for thread in threads: thread.join()
sys.exit(sorted(whole) != sorted(names))
"""
SYNCING = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("open", flush=True)
sys.stdin.readline()
os.write(descriptor, b"x" * 100_000)
print("written", flush=True)
os.fsync(descriptor)
print("synced", flush=True)
"""


@contextmanager
def hanging(processes: Sequence[Process]) -> Iterator[None]:
    for process in processes:
        process.pause()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def started(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=pipe, stdout=pipe)


def say_go_on(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    program.stdin.write(b"go on\n")
    program.stdin.flush()


def line_of(program: subprocess.Popen[bytes]) -> bytes:
    assert program.stdout is not None
    return program.stdout.readline()


def peak_bytes(process: int) -> int:
    """Of its resident memory, since it was forgotten last."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(process: int) -> None:
    Path(f"/proc/{process}/clear_refs").write_text("5")


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.fault("C4")
def test_writers_while_all_nodes_hang_are_stopped_in_time_and_memory_stays_bounded(mounted: Cluster) -> None:
    """Ten writers of a GiB each: write(2) waits, then EIO; what it had taken is stored once the nodes are back."""
    mount = mounted.mount("writers")
    names = [str(mount.path / f"writer-{number}") for number in range(WRITERS)]
    forget_peak(mount.process.pid)
    with started(WRITING, str(EACH_BYTES), *names) as writers:
        with hanging(mounted.nodes):
            rows = json.loads(line_of(writers))
            peak = peak_bytes(mount.process.pid)
        assert {number for _, _, number in rows} == {errno.EIO}
        longest = max(seconds for _, seconds, _ in rows)
        note_stall(longest)
        print(f"peak {peak / MIB:.0f} MiB, {sum(taken for taken, _, _ in rows) / MIB:.0f} MiB taken")
        assert DIRTY_BYTES_MAX / 2 < sum(taken for taken, _, _ in rows) <= DIRTY_BYTES_MAX
        assert peak < DIRTY_BYTES_MAX + BASE_BYTES_MAX
        assert DEADLINE_SECONDS / 2 < longest < DEADLINE_SECONDS + SLACK_SECONDS
        mounted.wait_alive(3)
        say_go_on(writers)
        assert writers.wait(120) == 0
    for name in names:
        os.unlink(name)
    mount.unmount()


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.parametrize("who", ["nodes", "redis"])
@pytest.mark.fault("C6")
def test_a_program_killed_while_it_waits_for_the_mount_is_gone_at_the_deadline(
    mounted: Cluster, mount: Mount, who: str
) -> None:
    """The kernel lets nobody go who waits for a file system; that the wait has an end is all there is. Closing the
    file, which is part of its end, does not wait as long again."""
    with ExitStack() as ends:
        programs = [started(SYNCING, str(mount.path / f"killed-{who}-{number}")) for number in range(3)]
        for program in programs:
            ends.enter_context(program)
            ends.callback(program.kill)
            assert line_of(program) == b"open\n"
        ends.enter_context(hanging(mounted.nodes if who == "nodes" else [mounted.redis]))
        for program in programs:
            say_go_on(program)
        began = time.monotonic()
        for program in programs:
            assert line_of(program) == b"written\n"
            program.kill()
        for program in programs:
            program.communicate(timeout=120)
            assert program.returncode == -9
        note_stall(time.monotonic() - began)
        assert time.monotonic() - began < DEADLINE_SECONDS + SLACK_SECONDS
    mounted.wait_alive(3)
    (mount.path / "after").write_bytes(b"works")


@pytest.mark.long
@pytest.mark.timeout(200)
@pytest.mark.fault("C3")
def test_a_mount_that_is_ended_while_no_node_answers_says_what_is_lost(mounted: Cluster) -> None:
    """By its exit status and, file by file, in its log; in time. What was closed before is there."""
    mount = mounted.mount("ended")
    (mount.path / "closed").write_bytes(b"closed")
    descriptors = []
    with hanging(mounted.nodes):
        for number in range(12):  # More than are uploaded at once.
            descriptors.append(os.open(mount.path / f"open-{number}", os.O_WRONLY | os.O_CREAT))
            os.write(descriptors[-1], b"x" * 100_000)
        began = time.monotonic()
        assert mount.process.stop(DEADLINE_SECONDS + 2 * SLACK_SECONDS) == 1
        note_stall(time.monotonic() - began)
        for descriptor in descriptors:
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.close(descriptor)
    log = mount.process.log.read_text()
    assert all(f"(b'open-{number}'): 100000 written bytes are lost" in log for number in range(12))
    assert "1200000 written bytes could not be stored and are lost" in log
    mounted.wait_alive(3)
    mount.start()
    assert (mount.path / "closed").read_bytes() == b"closed"
    mount.unmount()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("seconds", [3, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.fault("C5")
def test_a_mount_out_of_descriptors_says_so_and_recovers(mounted: Cluster, mount: Mount, seconds: int) -> None:
    """Nothing crashes and nothing is wrong: calls that need a connection wait, and fail at their deadline. When the
    mount may open connections again all is well at once."""
    place = mount.path / f"descriptors-{seconds}"
    place.mkdir()
    content = {number: os.urandom(100_000) for number in range(40)}
    for number, data in content.items():
        (place / f"{number}").mkdir()  # For each its own: in one they would wait one after another, in the kernel.
        (place / f"{number}/before").write_bytes(data)
    mount.remount()
    pid = mount.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    failed: list[int] = []
    longest: list[float] = []

    def work(number: int) -> None:
        began = time.monotonic()
        try:
            (place / f"{number}/during").write_bytes(content[number])
        except OSError as error:
            failed.append(error.errno or 0)
        longest.append(time.monotonic() - began)

    with concurrent.futures.ThreadPoolExecutor(40) as threads:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, hard))  # Standard streams and one more: all are in use.
        try:
            mounted.naming.restart()  # No connection to it is left.
            under_way = [threads.submit(work, number) for number in content]
            done, _ = concurrent.futures.wait(under_way, timeout=seconds)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        began = time.monotonic()
        concurrent.futures.wait(under_way)
    note_stall(max(longest))
    assert time.monotonic() - began < SLACK_SECONDS
    assert max(longest) < DEADLINE_SECONDS + SLACK_SECONDS
    assert set(failed) <= {errno.EMFILE, errno.ENFILE, errno.EIO}
    assert len(done) == len(failed) == (len(content) if seconds > DEADLINE_SECONDS + SLACK_SECONDS else 0)
    began = time.monotonic()
    for number, data in content.items():
        (place / f"{number}/during").write_bytes(data)
        assert (place / f"{number}/before").read_bytes() == data
    assert time.monotonic() - began < SLACK_SECONDS
    mount.remount()
    for number, data in content.items():
        assert (place / f"{number}/during").read_bytes() == data


@pytest.mark.fault("C5")
def test_what_waited_for_descriptors_is_on_all_nodes_at_once(mounted: Cluster, mount: Mount) -> None:
    """The nodes that could not be reached without them are tried again as soon as there are some."""
    _, hard = limits = resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE)
    with started(SYNCING, str(mount.path / "waits-for-nodes")) as program:
        assert line_of(program) == b"open\n"
        for node in mounted.nodes:
            node.kill()  # No connection to them is left.
            node.start(wait=False)
        for node in mounted.nodes:
            node.wait_ready()
        mounted.wait_alive(3)
        resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (4, hard))
        try:
            say_go_on(program)
            assert line_of(program) == b"written\n"
            time.sleep(3)
        finally:
            resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, limits)
        assert line_of(program) == b"synced\n"
    assert len(mounted.replicas_of("/waits-for-nodes")) == 3
