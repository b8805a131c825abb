"""Every errno where the man pages put it: each operation on each kind of file, beside a plain local directory."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.beside import KINDS, Beside, attempt, make, tree
from tests.support.users import ALICE, BOB, CAROL, ROOT, User, acting_as

Deed = Callable[[str, str], object]
"""Does something to the path under test; the other path is a good one: nothing is there, but it could be."""


def _open(flags: int) -> Deed:
    return lambda path, other: os.close(os.open(path, flags | os.O_NONBLOCK, 0o640))


def made(kind: str, path: str) -> str:
    make(kind, path)
    return path


def _bind(path: str, other: str) -> None:
    """A socket at the path; as the name may be too long for one, from its directory."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


OPENS: dict[str, Deed] = {
    "open to read": _open(os.O_RDONLY),
    "open to write": _open(os.O_WRONLY),
    "open for both": _open(os.O_RDWR),
    "create": _open(os.O_WRONLY | os.O_CREAT),
    "create exclusively": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open and truncate": _open(os.O_WRONLY | os.O_TRUNC),
    "create and truncate": _open(os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "truncate to read": _open(os.O_RDONLY | os.O_TRUNC),
    "open to append": _open(os.O_WRONLY | os.O_APPEND),
    "open a directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "write a directory": _open(os.O_WRONLY | os.O_DIRECTORY),
    "open no symlink": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "create no symlink": _open(os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW),
    "open the path": _open(os.O_PATH),
}  # fmt: skip
NAMES: dict[str, Deed] = {
    "mkdir": lambda path, other: os.mkdir(path, 0o750),
    "rmdir": lambda path, other: os.rmdir(path),
    "unlink": lambda path, other: os.unlink(path),
    "rename from": os.rename,
    "rename to, a file": lambda path, other: os.rename(made("file", other), path),
    "rename to, a directory": lambda path, other: os.rename(made("directory", other), path),
    "rename onto itself": lambda path, other: os.rename(path, path),
    "link from": lambda path, other: os.link(path, other, follow_symlinks=False),
    "link to": lambda path, other: os.link(made("file", other), path),
    "symlink": lambda path, other: os.symlink("anywhere", path),
    "mkfifo": lambda path, other: os.mkfifo(path, 0o640),
    "mknod a file": lambda path, other: os.mknod(path, stat.S_IFREG | 0o640),
    "mknod a device": lambda path, other: os.mknod(path, stat.S_IFCHR | 0o640, os.makedev(1, 3)),
    "bind": _bind,
}
ATTRIBUTES: dict[str, Deed] = {
    "stat": lambda path, other: os.stat(path),
    "lstat": lambda path, other: os.lstat(path),
    "statvfs": lambda path, other: os.statvfs(path),
    "access": lambda path, other: os.access(path, os.R_OK, effective_ids=True) or os.stat(path),
    "readlink": lambda path, other: os.readlink(path),
    "list": lambda path, other: os.listdir(path),
    "chmod": lambda path, other: os.chmod(path, 0o751),
    "chmod with all bits": lambda path, other: os.chmod(path, 0o7751),
    "chown to myself": lambda path, other: os.chown(path, os.geteuid(), os.getegid()),
    "chown to nobody in particular": lambda path, other: os.chown(path, -1, -1),
    "chown to another": lambda path, other: os.chown(path, 61_009, -1),
    "change the group": lambda path, other: os.chown(path, -1, 62_001),
    "lchown": lambda path, other: os.lchown(path, os.geteuid(), os.getegid()),
    "truncate": lambda path, other: os.truncate(path, 123),
    "truncate below zero": lambda path, other: os.truncate(path, -1),
    "set times": lambda path, other: os.utime(path, (1, 2)),
    "set times to now": lambda path, other: os.utime(path),
    "set times of a symlink": lambda path, other: os.utime(path, (1, 2), follow_symlinks=False),
}  # fmt: skip
XATTRS: dict[str, Deed] = {
    f"{verb} {name}": deed
    for name in ("user.a", "trusted.a", "security.a")
    for verb, deed in (
        ("getxattr", lambda path, other, name=name: os.getxattr(path, name, follow_symlinks=False)),
        ("setxattr", lambda path, other, name=name: os.setxattr(path, name, b"1", follow_symlinks=False)),
        ("removexattr", lambda path, other, name=name: os.removexattr(path, name, follow_symlinks=False)),
    )
}
DEEDS = {**OPENS, **NAMES, **ATTRIBUTES, **XATTRS}
THINGS = (*KINDS, "full directory", "loop", "symlink to a file", "symlink to a directory", "nothing")


def judge(place: Path, deeds: dict[str, Deed], prepare: Callable[[Path], str], user: User = ROOT) -> dict[str, object]:
    """What each deed says, and what the tree is after it."""
    found: dict[str, object] = {}
    before = None
    for number, (name, deed) in enumerate(deeds.items()):
        if before is None:  # What changed nothing leaves the tree to the next.
            here = place / f"{number}"
            here.mkdir()
            (here / "other").mkdir()
            (here / "other").chmod(0o777)
            path = prepare(here)
            before = tree(here)
        back = os.open(".", os.O_PATH)
        os.chdir(here)  # Paths are relative, so that those of the two sides are equally long.
        try:
            with acting_as(user, umask=0o022):
                result = attempt(deed, path, "other/scratch")
            after = tree(here)
            found[name] = (result, after)
            before = before if after == before else None
        finally:
            os.fchdir(back)
            os.close(back)
    return found


@pytest.mark.parametrize("kind", THINGS)
def test_every_operation_on_every_kind_of_file(beside: Beside, kind: str) -> None:
    def prepare(here: Path) -> str:
        make(kind, here / "it")
        return "it"

    beside.same(lambda place: judge(place, DEEDS, prepare))


@pytest.mark.parametrize("kind", THINGS)
def test_every_operation_below_every_kind_of_file(beside: Beside, kind: str) -> None:
    """ENOTDIR below what is no directory, ENOENT below what is not there, ELOOP below a loop."""

    def prepare(here: Path) -> str:
        make(kind, here / "it")
        return "it/below"

    beside.same(lambda place: judge(place, DEEDS, prepare))


def _long(count: int) -> str:
    return "n" * count


def _path_of(length: int) -> Callable[[Path], str]:
    """A path of so many bytes to something that can be made: its last name is all that is missing."""

    def prepare(here: Path) -> str:
        if length <= 4096:
            return "./" * ((length - 10) // 2) + _long(10 if length % 2 == 0 else 11)
        return "./" * (length // 2)

    return prepare


@pytest.mark.parametrize("trailing", ["", "/"])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "symlink to a directory", "nothing"])
def test_every_operation_by_unusual_paths(beside: Beside, kind: str, trailing: str) -> None:
    """Trailing slashes, `.` and `..`."""
    suffix = trailing or "/."

    def prepare(here: Path) -> str:
        make(kind, here / "it")
        return "it" + suffix

    beside.same(lambda place: judge(place, DEEDS, prepare))


@pytest.mark.parametrize("path", ["", ".", "..", "other/..", "it/.."])
def test_every_operation_on_dots(beside: Beside, path: str) -> None:
    def prepare(here: Path) -> str:
        make("directory", here / "it")
        return path

    beside.same(lambda place: judge(place, DEEDS, prepare))


@pytest.mark.parametrize("bytes_", [255, 256])
def test_names_of_255_bytes_are_good_and_longer_ones_too_long(beside: Beside, bytes_: int) -> None:
    beside.same(lambda place: judge(place, DEEDS, lambda here: _long(bytes_)))
    beside.same(lambda place: judge(place, DEEDS, lambda here: f"{_long(bytes_)}/below"))


@pytest.mark.parametrize("bytes_", [4094, 4095, 4096, 5000])
def test_paths_of_4095_bytes_are_good_and_longer_ones_too_long(beside: Beside, bytes_: int) -> None:
    beside.same(lambda place: judge(place, DEEDS, _path_of(bytes_)))


@pytest.mark.parametrize("target", [1, 255, 1023, 1024, 4094, 4095, 4096])
def test_symlinks_are_as_long_as_a_path(beside: Beside, target: int) -> None:
    def deed(place: Path) -> Any:
        made = attempt(os.symlink, "x" * target, place / "link")
        shown = os.readlink(place / "link") == "x" * target if made == "done" else None
        return made, shown, tree(place), attempt(os.stat, place / "link")

    if target < 4095 or os.statvfs(beside.local).f_bsize > 4096:
        beside.same(deed)
        return
    made = deed(beside.mounted)  # Local file systems end a little below PATH_MAX; we do not have to.
    remove = beside.mounted / "link"
    if target == 4095:
        assert os.readlink(remove) == "x" * target
        remove.unlink()
    else:
        assert isinstance(made, tuple)
        assert made[0] == "ENAMETOOLONG"


PLACES = {
    "unsearchable": (0o600, ALICE),
    "not writable": (0o555, ALICE),
    "somebody's": (0o755, ALICE),
    "the group's": (0o770, ALICE),
    "everybody's": (0o777, ALICE),
    "sticky": (0o1777, ALICE),
    "sticky, root's": (0o1777, ROOT),
    "sticky, the group's": (0o1770, ALICE),
    "only to be searched": (0o711, ALICE),
    "only to be written and searched": (0o733, ALICE),
    "closed to its owner": (0o077, ALICE),
    "setgid": (0o2777, ALICE),
}


SOME = ("unsearchable", "not writable", "the group's", "sticky", "sticky, root's", "setgid")


@pytest.mark.parametrize("user", [ALICE, BOB, CAROL], ids=["owner", "stranger", "member"])
@pytest.mark.parametrize(
    "place", [*SOME, *(pytest.param(name, marks=pytest.mark.long) for name in PLACES if name not in SOME)]
)
def test_every_operation_by_other_users(beside: Beside, place: str, user: User) -> None:
    """EACCES and EPERM: in directories of all modes, on files of one's own and of others."""
    mode, owner = PLACES[place]

    def deeds(kind: str, kinds_owner: User) -> Callable[[Path], object]:
        def prepare(here: Path) -> str:
            (here / "sub").mkdir()
            make(kind, here / "sub" / "it")
            if kind != "nothing":
                os.lchown(here / "sub" / "it", kinds_owner.uid, kinds_owner.gid)
            os.chown(here / "sub", owner.uid, owner.gid)
            (here / "sub").chmod(mode)
            return "sub/it"

        return lambda there: judge(there, DEEDS, prepare, user)

    beside.same(deeds("nothing", ROOT))
    beside.same(deeds("file", user))
    beside.same(deeds("file", ROOT))


FILES = (0o000, 0o400, 0o200, 0o060, 0o006, 0o644, 0o4711, 0o2777)


@pytest.mark.parametrize("user", [ALICE, BOB, CAROL], ids=["owner", "stranger", "member"])
@pytest.mark.parametrize("kind", ["file", "directory", pytest.param("fifo", marks=pytest.mark.long)])
def test_files_of_every_mode_by_every_user(beside: Beside, kind: str, user: User) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in FILES:
            here = place / oct(mode)
            here.mkdir()

            def prepare(here: Path, mode: int = mode) -> str:
                make(kind, here / "it")
                os.chown(here / "it", ALICE.uid, ALICE.gid)
                (here / "it").chmod(mode)
                return "it"

            found[oct(mode)] = judge(here, {**OPENS, **ATTRIBUTES, **XATTRS}, prepare, user)
        return found

    beside.same(deed)
