"""`.trash`: removed files in a mount, found by name and never listed, to be read and not changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.commands import opened
from tests.support.processes import wait_for

CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Removed files are kept for a day."""
    with Cluster(2, REPLICATION_FACTOR="2", TRASH_DAYS="1", TRASH_FREE_SHARE_MIN="0", CHUNK_SIZE="65536") as made:
        made.mount("m")
        yield made


@pytest.fixture
def top(cluster: Cluster) -> Path:
    return cluster.mounts[0].path


def removed(cluster: Cluster, name: str, content: bytes = CONTENT) -> Path:
    """A file that was made, not by the mount, and removed there: its path in the trash."""
    top = cluster.mounts[0].path
    cluster.write(f"/{name}", content)
    wait_for((top / name).exists, "the mount sees it")
    ino = (top / name).stat().st_ino
    (top / name).unlink()
    return top / ".trash" / f"{name[: 255 - len(str(ino)) - 1]}.{ino}"


def test_a_removed_file_is_found_listed_and_read(cluster: Cluster, top: Path) -> None:
    """By its name, which tells its old one and its inode; the mount's top directory does not list the trash."""
    contents = {
        removed(cluster, name, name.encode() * 1000): name.encode() * 1000 for name in ("a", "b.txt", "n" * 255)
    }
    for path, content in contents.items():
        assert path.read_bytes() == content
        assert path.stat().st_nlink == 0

    wait_for(lambda: set((top / ".trash").iterdir()) == set(contents), "the trash lists all of them, and nothing else")
    (top / "seen").mkdir()
    assert os.listdir(top) == ["seen"]
    assert (top / ".trash").stat().st_mode & 0o7777 == 0o500
    assert os.path.samefile(top / ".trash" / "..", top)
    for wrong in ("a", "a.0", "a.999999", "x." + next(iter(contents)).suffix[1:], ".1"):
        assert not (top / ".trash" / wrong).exists()
    (top / "seen").rmdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda p: os.open(p, os.O_WRONLY),
    "truncate": lambda p: os.truncate(p, 0),
    "chmod": lambda p: os.chmod(p, 0o777),
    "utime": os.utime,
    "setxattr": lambda p: os.setxattr(p, "user.a", b"b"),
    "unlink": os.unlink,
    "rename out": lambda p: os.rename(p, p.parent.parent / "out"),
    "rename in": lambda p: os.rename(p, p.parent / "other"),
    "create": lambda p: (p.parent / "new").write_bytes(b""),
    "mkdir": lambda p: (p.parent / "new").mkdir(),
    "chmod the trash": lambda p: os.chmod(p.parent, 0o777),
}


def test_nothing_in_it_can_be_changed(cluster: Cluster, top: Path) -> None:
    path = removed(cluster, "kept")
    before = path.stat()
    for what, change in CHANGES.items():
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is asserted
            change(path)
        assert refused.value.errno == errno.EROFS, what
    with pytest.raises(FileNotFoundError):  # The kernel links nothing that has no name.
        os.link(path, top / "linked")
    assert path.read_bytes() == CONTENT
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_many_names_in_it_are_as_little_to_be_changed(cluster: Cluster) -> None:
    """So many asked for in a row that the mount would rather list it."""
    for path in [removed(cluster, f"many-{number}") for number in range(8)]:
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is asserted
            os.open(path, os.O_WRONLY)
        assert refused.value.errno == errno.EROFS, path.name


def test_what_is_restored_is_a_file_as_before(cluster: Cluster, top: Path) -> None:
    path = removed(cluster, "back")
    assert path.read_bytes() == CONTENT
    cluster.dcs("restore", "/back")
    wait_for(lambda: (top / "back").exists() and not path.exists(), "it is out of the trash")
    wait_for(lambda: (top / "back").stat().st_nlink == 1, "the mount knows that it has a name")
    (top / "back").write_bytes(b"new")
    assert (top / "back").read_bytes() == b"new"
    (top / "back").chmod(0o600)


def test_what_was_open_for_long_and_is_removed_as_it_is_closed_is_kept(cluster: Cluster, top: Path) -> None:
    """As mv does to another file system, and `gzip big`: the mount tells late what is closed again."""
    path = top / "moved"
    path.write_bytes(CONTENT)
    ino = path.stat().st_ino
    with opened(path, os.O_RDONLY):
        wait_for(lambda: is_told_to_be_open(cluster, ino), "the naming server knows that it is open")
    path.unlink()
    assert (top / ".trash" / f"moved.{ino}").read_bytes() == CONTENT
    cluster.dcs("restore", "/moved")
    assert cluster.read("/moved") == CONTENT


def is_told_to_be_open(cluster: Cluster, ino: int) -> bool:
    return cluster.ask_redis("EXISTS", f"dcs:{{main}}:o:{ino}") == "1"


def test_a_file_of_that_name_hides_it(cluster: Cluster, top: Path) -> None:
    """What somebody had there before goes before."""
    cluster.dcs("mkdir", "/.trash")
    cluster.write("/.trash/mine", b"mine")
    wait_for(lambda: os.path.exists(top / ".trash" / "mine"), "the mount sees the directory of that name")
    assert os.listdir(top / ".trash") == ["mine"]
    assert ".trash" in os.listdir(top)
    shutil.rmtree(top / ".trash")
