"""The naming server and Redis die and hang under a mount in use: every operation takes effect once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import opened
from tests.support.load import Load, wait_steps
from tests.support.proxy import Proxy

BUSY_SECONDS = 1.0
"""What a busy machine with two cores adds to a stall."""


@pytest.fixture(scope="module")
def proxy(mounted: Cluster) -> Iterator[Proxy]:
    with Proxy(mounted.address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def proxied(mounted: Cluster, proxy: Proxy) -> Iterator[Mount]:
    """A mount that reaches the naming server through the proxy."""
    mount = mounted.mount("proxied", "--naming-url", f"http://{proxy.address}")
    yield mount
    mount.unmount()


def write_file(place: Path) -> None:
    (place / "written").write_bytes(b"content" * 1000)
    assert (place / "written").read_bytes() == b"content" * 1000


def append_line(place: Path) -> None:
    with opened(place / "log", os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"new line\n")


def create_exclusively(place: Path) -> None:
    with opened(place / "exclusive", os.O_WRONLY | os.O_CREAT | os.O_EXCL):
        pass


STEPS: dict[str, tuple[bytes, Callable[[Path], object], Callable[[Path], bool]]] = {
    "mkdir": (b"mkdir", lambda p: (p / "new").mkdir(), lambda p: (p / "new").is_dir()),
    "rmdir": (b"rmdir", lambda p: (p / "empty").rmdir(), lambda p: not (p / "empty").exists()),
    "create": (b"create", create_exclusively, lambda p: (p / "exclusive").stat().st_size == 0),
    "unlink": (b"unlink", lambda p: (p / "log").unlink(), lambda p: not (p / "log").exists()),
    "rename": (
        b"rename",
        lambda p: (p / "log").rename(p / "moved"),
        lambda p: (p / "moved").read_bytes() == b"old line\n" and not (p / "log").exists(),
    ),
    "link": (b"link", lambda p: os.link(p / "log", p / "link"), lambda p: (p / "log").stat().st_nlink == 2),
    "symlink": (b"symlink", lambda p: (p / "sym").symlink_to("log"), lambda p: (p / "sym").exists()),
    "chmod": (b"setattr", lambda p: (p / "log").chmod(0o600), lambda p: (p / "log").stat().st_mode & 0o777 == 0o600),
    "commit": (b"commit", write_file, lambda p: (p / "written").stat().st_size == 7000),
    "append": (b"commit", append_line, lambda p: (p / "log").read_bytes() == b"old line\nnew line\n"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.fault("M3")
def test_the_retry_of_what_redis_did_before_the_naming_server_died_gets_its_result(
    mounted: Cluster, proxied: Mount, proxy: Proxy, step: str
) -> None:
    """The answer was lost with the naming server; another one answers the retry: no spurious EEXIST or ENOENT."""
    place = proxied.path / step
    (place / "empty").mkdir(parents=True)
    (place / "log").write_bytes(b"old line\n")
    verb, act, is_done = STEPS[step]
    errors: list[OSError] = []

    def body() -> None:
        try:
            act(place)
        except OSError as error:
            errors.append(error)

    proxy.lose_answer_to(verb, mounted.naming.kill)
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    assert proxy.lost.wait(20), "the request never came"
    mounted.naming.start()
    thread.join(40)
    assert not thread.is_alive()
    assert errors == []
    assert is_done(place)


@pytest.mark.fault("M4")
def test_redis_killed_and_restarted_under_load_loses_nothing_acknowledged(mounted: Cluster, mount: Mount) -> None:
    """No error, and after it every file is there with its content, none else. It is away for up to 3 s."""
    load = Load(mount.path / "redis-killed")
    with load:
        for away_seconds in (0, 0.5, 3):
            wait_steps(load, 100)
            mounted.redis.kill()
            time.sleep(away_seconds)
            mounted.redis.start()
        wait_steps(load, 100)
    mount.remount()
    load.check(mount.path / "redis-killed")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert 2 < load.longest_seconds < 5 + BUSY_SECONDS


@pytest.mark.fault("M2")
def test_the_naming_server_killed_and_restarted_under_load_is_a_stall_and_no_error(
    mounted: Cluster, mount: Mount
) -> None:
    load = Load(mount.path / "naming-killed")
    with load:
        for _ in range(3):
            wait_steps(load, 100)
            mounted.naming.kill()
            mounted.naming.start()
        wait_steps(load, 100)
    mount.remount()
    load.check(mount.path / "naming-killed")
    assert load.longest_seconds < 10


@pytest.mark.fault("M5")
def test_redis_hanging_for_ten_seconds_is_a_stall_and_no_error(mounted: Cluster, mount: Mount) -> None:
    """What was sent meanwhile takes effect once, also what Redis finds in its sockets as it goes on."""
    load = Load(mount.path / "redis-frozen")
    with load:
        wait_steps(load, 50)
        mounted.redis.pause()
        time.sleep(10)
        mounted.redis.resume()
        wait_steps(load, 100)
    mount.remount()
    load.check(mount.path / "redis-frozen")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert 8 < load.longest_seconds < 12


@pytest.mark.fault("M2")
def test_open_files_are_read_on_while_the_naming_server_is_away(mounted: Cluster, mount: Mount) -> None:
    """What their chunk map says is known."""
    content = os.urandom(300_000)
    (mount.path / "open").write_bytes(content)
    with opened(mount.path / "open", os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 10, 0) == content[:10]
        mounted.naming.kill()
        began = time.monotonic()
        assert os.pread(descriptor, 200_000, 1000) == content[1000:201_000]
        assert time.monotonic() - began < 5
    mounted.naming.start()


@pytest.mark.long
@pytest.mark.fault("M2")
def test_the_only_naming_server_away_for_five_seconds_is_a_stall_and_no_error(mounted: Cluster, mount: Mount) -> None:
    load = Load(mount.path / "naming-away")
    with load:
        wait_steps(load, 50)
        began = time.monotonic()
        mounted.naming.kill()
        time.sleep(5)
        mounted.naming.start()
        away_seconds = time.monotonic() - began
        wait_steps(load, 50)
    mount.remount()
    load.check(mount.path / "naming-away")
    print(f"longest stall: {load.longest_seconds:.1f} s, {away_seconds:.1f} s of them without a naming server")
    assert 4 < load.longest_seconds < away_seconds + 3


@pytest.mark.long
@pytest.mark.fault("M6")
def test_redis_hanging_for_two_minutes_is_an_error_in_time_and_soon_over(mounted: Cluster, mount: Mount) -> None:
    began = time.monotonic()
    mounted.redis.pause()
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        (mount.path / "redis-hangs").mkdir()
    assert time.monotonic() - began < 33
    time.sleep(began + 120 - time.monotonic())
    mounted.redis.resume()
    began = time.monotonic()
    (mount.path / "redis-answers").mkdir()
    print(f"usable again after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 5


@pytest.mark.long
@pytest.mark.fault("M2")
def test_fsync_goes_on_when_no_node_could_be_heard_of_late(mounted: Cluster) -> None:
    """For a moment after the naming server or Redis was away all nodes seem silent. They are there, and are asked."""
    naming = mounted.naming
    naming.environment["SUSPECT_AFTER_SECONDS"] = "0.001"
    try:
        naming.restart()
        mount = mounted.mount("unheard")  # Begins with that table of nodes.
        with opened(mount.path / "synced", os.O_WRONLY | os.O_CREAT) as descriptor:
            os.write(descriptor, b"stored, and not synced, by a close of another descriptor")
            os.close(os.dup(descriptor))
            os.fsync(descriptor)
        mount.unmount()
    finally:
        del naming.environment["SUSPECT_AFTER_SECONDS"]
        naming.restart()
        mounted.wait_alive(3)


@pytest.mark.timeout(120)
@pytest.mark.fault("M6")
def test_what_was_appended_as_redis_hung_is_there_once_when_it_goes_on(mounted: Cluster, mount: Mount) -> None:
    """What the mount had given up Redis finds in its sockets and does; what was tried again finds it done."""
    with opened(mount.path / "appended-late", os.O_RDWR | os.O_CREAT | os.O_APPEND) as descriptor:
        os.write(descriptor, b"first\n")
        os.fsync(descriptor)
        mounted.redis.pause()
        os.write(descriptor, b"second\n")
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            os.fsync(descriptor)
        os.write(descriptor, b"third\n")
        mounted.redis.resume()
        os.fsync(descriptor)
        assert os.pread(descriptor, 100, 0) == b"first\nsecond\nthird\n"
    mount.remount()
    assert (mount.path / "appended-late").read_bytes() == b"first\nsecond\nthird\n"
