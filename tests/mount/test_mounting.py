"""Mounting and unmounting: options, refusals, signals, the daemon, and mount(8)'s helper."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, is_mounted
from tests.support.commands import opened, refused, run
from tests.support.processes import CHECKOUT, wait_for

HELPER = CHECKOUT / "deploy" / "mount.fuse.dcs"
INSTALLED_HELPER = Path("/sbin/mount.fuse.dcs")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may call mount(8) and write to /sbin")


def mount_refused(cluster: Cluster, mountpoint: Path, *options: str, **environment: str) -> str:
    """What `python -m fusefs` says as it refuses: one line, on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fusefs", mountpoint, "-f", *options], capture_output=True, text=True, timeout=60,
        env={**cluster.environment, **environment}, cwd=CHECKOUT,
    )  # fmt: skip
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def unmount(path: Path) -> None:
    """Whatever is left; for the end of a test that may have failed."""
    if is_mounted(path):
        subprocess.run(["fusermount3", "-uz", path], timeout=30, check=False)


def daemons_of(path: Path) -> list[int]:
    """The pids of the programs whose command line names the mountpoint."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                words = (directory / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fusefs" in words and os.fsencode(path) in words:
                found.append(int(directory.name))
    return found


@pytest.fixture
def mountpoint(mounted: Cluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory. At the end it is no mount any more and no daemon serves it."""
    path = mounted.directory / f"point-{abs(hash(request.node.name)):x}"
    path.mkdir()
    yield path
    unmount(path)
    wait_for(lambda: not daemons_of(path), "the daemon has ended")
    path.rmdir()


def test_a_missing_mountpoint_gets_one_clear_line(mounted: Cluster) -> None:
    assert "does not exist" in mount_refused(mounted, mounted.directory / "nowhere")


def test_a_mountpoint_that_is_no_directory_gets_one_clear_line(mounted: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not a directory" in mount_refused(mounted, tmp_path / "file")


def test_a_busy_mountpoint_gets_one_clear_line(mounted: Cluster, place: Path) -> None:
    """And the mount that is there goes on."""
    assert "already a mount" in mount_refused(mounted, place.parent)
    (place / "f").write_bytes(b"x")


def test_wrong_settings_get_one_clear_line(mounted: Cluster, mountpoint: Path) -> None:
    assert "no such option" in mount_refused(mounted, mountpoint, "-o", "colour=red")
    assert "number" in mount_refused(mounted, mountpoint, "-o", "cache_mib=many")
    assert "secret" in mount_refused(mounted, mountpoint, DCS_SECRET_FILE="/nowhere")
    assert "secret" in mount_refused(mounted, mountpoint, DCS_SECRET="wrong")
    assert "one line of ASCII" in mount_refused(mounted, mountpoint, DCS_SECRET="two\nlines")
    assert "not the URL" in mount_refused(mounted, mountpoint, "--naming-url", "nonsense")
    node = f"http://{mounted.nodes[0].address}"
    assert "is not a naming server" in mount_refused(mounted, mountpoint, "--naming-url", node)
    assert "No such file" in mount_refused(mounted, mountpoint, "--log-file", "/nowhere/log")
    assert "debug, info" in mount_refused(mounted, mountpoint, "--log-level", "loud")
    assert "0 or more" in mount_refused(mounted, mountpoint, "-o", "attribute_seconds=-1")


def test_the_mount_of_a_killed_daemon_is_replaced(mounted: Cluster) -> None:
    """Its mountpoint answers nothing any more; mounting there again works without clearing it by hand."""
    mount = mounted.mount("killed")
    (mount.path / "killed-and-mounted-again").write_bytes(b"content")
    mount.process.kill()
    with refused(errno.ENOTCONN):
        os.stat(mount.path)
    mount.process.start(wait=False)
    wait_for(lambda: os.path.exists(mount.path / "killed-and-mounted-again"), "it is mounted again")
    assert (mount.path / "killed-and-mounted-again").read_bytes() == b"content"
    mount.unmount()


def test_until_a_killed_daemon_is_replaced_nothing_is_written_beneath(mounted: Cluster) -> None:
    """While the next daemon waits for its naming server, the mountpoint is the dead mount, not a plain directory."""
    mount = mounted.mount("replaced-late")
    (mount.path / "before-it-was-killed").touch()
    mount.process.kill()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "fusefs", os.fspath(mount.path), "-f", "--naming-url", url]
        with subprocess.Popen(command, env=mounted.environment, cwd=CHECKOUT, stderr=subprocess.DEVNULL) as waiting:
            try:
                silent.accept()[0].close()
                with refused(errno.ENOTCONN):
                    (mount.path / "beneath").touch()
            finally:
                waiting.kill()
    mount.process.start(wait=False)
    wait_for(lambda: os.path.exists(mount.path / "before-it-was-killed"), "it is mounted again")
    mount.unmount()
    assert list(mount.path.iterdir()) == []


def test_a_read_only_mount_refuses_every_change(mounted: Cluster, place: Path) -> None:
    (place / "f").write_bytes(b"content")
    mount = mounted.mount("read-only", "--read-only")
    here = mount.path / place.name
    assert (here / "f").read_bytes() == b"content"
    with refused(errno.EROFS):
        (here / "new").touch()
    with refused(errno.EROFS):
        (here / "f").unlink()
    with refused(errno.EROFS):
        os.open(here / "f", os.O_WRONLY)
    with refused(errno.EROFS):
        (here / "f").chmod(0o600)
    with refused(errno.EROFS):
        (here / "f").rename(here / "g")
    mount.unmount()


@pytest.mark.parametrize("way", ["fusermount3", "umount", "SIGTERM"])
@pytest.mark.fault("C3")
def test_what_was_written_is_stored_when_the_mount_ends(mounted: Cluster, place: Path, way: str) -> None:
    """Also what a program that has not closed its file wrote, where that can be: by SIGTERM."""
    mount = mounted.mount(f"ends-{way}")
    here = mount.path / place.name
    (here / "closed").write_bytes(b"c" * 300_000)
    if way == "SIGTERM":
        descriptor = os.open(here / "open", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"o" * 300_000)
        mount.process.stop()
        with refused(errno.ENOTCONN):
            os.close(descriptor)
        mount.detach()
        wait_for((place / "open").exists, "the name is seen", 3)
        assert (place / "open").read_bytes() == b"o" * 300_000
    else:
        run(*(["fusermount3", "-u"] if way == "fusermount3" else ["umount"]), mount.path)
        wait_for(lambda: not mount.process.is_running, "the daemon has ended")
    assert not is_mounted(mount.path)
    assert mount.process.exit_status == 0, mount.process.log_tail()
    wait_for((place / "closed").exists, "the name is seen", 3)
    assert (place / "closed").read_bytes() == b"c" * 300_000


@pytest.mark.fault("C3")
def test_a_mount_in_use_is_not_unmounted(mounted: Cluster, place: Path) -> None:
    mount = mounted.mount("busy")
    with opened(mount.path / place.name / "f", os.O_WRONLY | os.O_CREAT) as descriptor:
        os.write(descriptor, b"one")
        run("fusermount3", "-u", mount.path, expect=1)
        os.write(descriptor, b" two")
    mount.unmount()
    wait_for((place / "f").exists, "the name is seen", 3)
    assert (place / "f").read_bytes() == b"one two"


def test_without_foreground_the_command_returns_when_it_is_mounted(mounted: Cluster, mountpoint: Path) -> None:
    """And a daemon serves it, whose output nobody waits for."""
    run(sys.executable, "-m", "fusefs", mountpoint, environment=mounted.environment, cwd=CHECKOUT)
    assert is_mounted(mountpoint)
    (mountpoint / "by-daemon").write_bytes(b"x")
    assert len(daemons_of(mountpoint)) == 1
    run("fusermount3", "-u", mountpoint)


def test_without_foreground_a_failure_is_told_by_the_command(mounted: Cluster, mountpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusefs", mountpoint], capture_output=True, text=True, timeout=60, cwd=CHECKOUT,
        env={**mounted.environment, "DCS_SECRET": "wrong"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "secret" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("name", ["plain", "with blank", "ünïcode"])
def test_the_kernels_read_ahead_is_raised(mounted: Cluster, name: str) -> None:
    mount = mounted.mount(f"read-ahead {name}")
    device = os.stat(mount.path).st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if not os.access(read_ahead, os.W_OK):
        pytest.skip("only root may raise it")
    wait_for(lambda: int(read_ahead.read_text()) >= 1024, "it is raised", 5)
    mount.unmount()


def test_a_mount_tells_what_it_is_and_is_nosuid_and_nodev(mounted: Cluster, place: Path) -> None:
    kind, source, options = run("findmnt", "-no", "FSTYPE,SOURCE,OPTIONS", place.parent).split()
    assert kind == "fuse.dcs"
    assert source == mounted.naming_url
    assert {"nosuid", "nodev", "default_permissions"} <= {*options.split(",")}


# mount(8)


@contextmanager
def installed_helper() -> Iterator[None]:
    """The helper is where mount(8) looks for it, and not any more afterwards."""
    if INSTALLED_HELPER.is_symlink() or INSTALLED_HELPER.exists():
        yield  # Somebody who has installed this file system keeps it.
        return
    INSTALLED_HELPER.symlink_to(HELPER)
    try:
        yield
    finally:
        INSTALLED_HELPER.unlink()


@pytest.fixture
def secret_file(mounted: Cluster, tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(mounted.secret + "\n")
    file.chmod(0o400)
    return file


def helper_environment() -> dict[str, str]:
    """Nothing of the cluster: what an entry of fstab has to work with."""
    return {"PATH": os.environ["PATH"], "HOME": "/nowhere", "DCS_PYTHON": sys.executable}


@needs_root
def test_mount_mounts_by_type(mounted: Cluster, mountpoint: Path, place: Path, secret_file: Path) -> None:
    """`mount -t fuse.dcs URL DIRECTORY -o ...`, and umount."""
    (place / "f").write_bytes(b"content")
    options = f"ro,noatime,_netdev,x-systemd.automount,secret_file={secret_file}"
    with installed_helper():
        run("mount", "-t", "fuse.dcs", mounted.naming_url, mountpoint, "-o", options, environment=helper_environment())
        assert (mountpoint / place.name / "f").read_bytes() == b"content"
        with refused(errno.EROFS):
            (mountpoint / "new").touch()
        run("umount", mountpoint)
    assert not is_mounted(mountpoint)


@needs_root
def test_mount_passes_on_what_it_keeps_of_the_options(mounted: Cluster, mountpoint: Path, secret_file: Path) -> None:
    """mount(8) drops suid and dev from what it passes on, and makes noexec of user."""
    options = f"user,allow_suid,allow_dev,secret_file={secret_file}"
    with installed_helper():
        run("mount", "-t", "fuse.dcs", mounted.naming_url, mountpoint, "-o", options, environment=helper_environment())
        shown = {*run("findmnt", "-no", "OPTIONS", mountpoint).strip().split(",")}
        run("umount", mountpoint)
    assert "noexec" in shown
    assert not {"nosuid", "nodev"} & shown


@needs_root
def test_mount_takes_an_entry_of_fstab(mounted: Cluster, mountpoint: Path, secret_file: Path, tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_text(
        f"{mounted.naming_url} {mountpoint} fuse.dcs noauto,nofail,allow_other,secret_file={secret_file} 0 0\n"
    )
    with installed_helper():
        run("mount", "--fstab", table, mountpoint, environment=helper_environment())
        assert is_mounted(mountpoint)
        (mountpoint / "by-fstab").write_bytes(b"x")
        run("umount", mountpoint)


@needs_root
def test_a_failing_mount_says_why(mounted: Cluster, mountpoint: Path) -> None:
    with installed_helper():
        done = subprocess.run(
            ["mount", "-t", "fuse.dcs", mounted.naming_url, mountpoint, "-o", "secret_file=/nowhere"],
            capture_output=True, text=True, timeout=60, env=helper_environment(),
        )  # fmt: skip
    assert done.returncode != 0
    assert "/nowhere" in done.stderr
    assert not is_mounted(mountpoint)


def test_the_helper_can_be_called_without_mounting(mounted: Cluster, mountpoint: Path, secret_file: Path) -> None:
    """mount(8)'s -f: all but the mount itself. And wrong words get one line."""
    environment = helper_environment()
    options = f"secret_file={secret_file}"
    run(HELPER, mounted.naming_url, mountpoint, "-f", "-o", options, environment=environment)
    assert not is_mounted(mountpoint)
    done = subprocess.run([HELPER, "only-one"], capture_output=True, text=True, timeout=30, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
