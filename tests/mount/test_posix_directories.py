"""Directories and links: listing, positions, counts, depth, beside a plain local directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.beside import Beside, attempt, tree
from tests.support.cluster import Mount
from tests.support.commands import opened, refused, run
from tests.support.directory_stream import listing, numbers_of


@pytest.mark.parametrize("count", [0, 1, 50, 1100])
def test_positions_lead_back_to_where_they_were_taken(beside: Beside, count: int) -> None:
    """telldir, seekdir and rewinddir, also when names before and after have gone meanwhile."""
    place = beside.mounted
    for number in range(count):
        (place / f"{number}").touch()
    with listing(place) as stream:
        names, positions = [], [stream.tell()]
        while (name := stream.read()) is not None:
            names.append(name)
            positions.append(stream.tell())
        assert sorted(names) == sorted([b".", b"..", *(b"%d" % n for n in range(count))])
        for index in {0, 1, 2, count // 2, count, count + 2} & set(range(len(positions))):
            stream.seek(positions[index])
            assert stream.rest() == names[index:]
        middle = count // 2 + 2
        gone = {names[3], names[middle + 1]} if count > 10 else set()
        for name in gone:
            (place / name.decode()).unlink()
        (place / "new").touch()
        stream.seek(positions[min(middle, len(names))])
        after = [name for name in stream.rest() if name != b"new"]
        assert [name for name in after if name not in gone] == [n for n in names[middle:] if n not in gone]
        stream.rewind()
        assert sorted(stream.rest()) == sorted({*names, b"new"} - gone)


def test_a_listing_tells_inode_and_type(beside: Beside) -> None:
    for kind, make in (
        ("f", lambda p: p.touch()), ("d", lambda p: p.mkdir()), ("l", lambda p: p.symlink_to("x")),
        ("p", os.mkfifo),
    ):  # fmt: skip
        make(beside.mounted / kind)
    entries = {entry.name: entry for entry in os.scandir(beside.mounted)}
    assert {name: entry.inode() for name, entry in entries.items()} == {
        name: os.lstat(beside.mounted / name).st_ino for name in "fdlp"
    }
    assert (entries["f"].is_file(), entries["d"].is_dir(), entries["l"].is_symlink()) == (True, True, True)
    inodes = numbers_of(beside.mounted)
    assert inodes[b"."] == beside.mounted.stat().st_ino
    assert inodes[b".."] == beside.mounted.parent.stat().st_ino


def test_links_of_directories_count_their_subdirectories(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        found = [tree(place)]
        (place / "a" / "b").mkdir(parents=True)
        (place / "c").mkdir()
        (place / "a" / "file").touch()
        found.append(tree(place))
        os.rename(place / "a" / "b", place / "c" / "b")
        found.append(tree(place))
        (place / "a" / "file").unlink()
        os.rename(place / "c", place / "a")
        found.append(tree(place))
        (place / "a" / "b").rmdir()
        found.append(tree(place))
        return found

    beside.same(deed)


def test_trees_are_as_deep_as_one_likes(beside: Beside) -> None:
    """Deeper than a path can say: one step at a time. `..` leads all the way back."""
    depth, back = 300, os.open(".", os.O_PATH)
    os.chdir(beside.mounted)
    try:
        for _ in range(depth):
            os.mkdir("deeper than that")
            os.chdir("deeper than that")
        Path("bottom").write_bytes(b"here")
        with refused(errno.ENAMETOOLONG):
            os.stat("x/" * 2048)
        for _ in range(depth):
            os.chdir("..")
        assert os.stat(".").st_ino == beside.mounted.stat().st_ino
    finally:
        os.fchdir(back)
        os.close(back)
    assert run("find", beside.mounted, "-name", "bottom").count("deeper") == depth
    run("rm", "-r", beside.mounted / "deeper than that")


def test_a_directory_is_not_moved_below_what_is_far_below_it(beside: Beside) -> None:
    deep = beside.mounted
    for _ in range(60):
        deep = deep / "d"
    deep.mkdir(parents=True)
    assert attempt(os.rename, beside.mounted / "d", deep / "x") == "EINVAL"
    assert attempt(os.rename, deep, beside.mounted / "d") == "ENOTEMPTY"


def test_symlinks_follow_40_times_and_no_more(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "link0").mkdir()
        for number in range(1, 43):
            (place / f"link{number}").symlink_to(f"link{number - 1}")
        return {
            n: (attempt(os.stat, place / f"link{n}"), attempt(os.listdir, place / f"link{n}")) for n in range(38, 43)
        }

    beside.same(deed)


def test_symlinks_lead_out_and_back_in(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "d").mkdir()
        (place / "d" / "f").write_bytes(b"x")
        (place / "absolute").symlink_to(place / "d")
        (place / "dots").symlink_to("d/../d/./f")
        (place / "slash").symlink_to("d/")
        (place / "root").symlink_to("/")
        return [
            (place / "absolute" / "f").read_bytes(), (place / "dots").read_bytes(), os.listdir(place / "slash"),
            (place / "root").stat().st_ino == Path("/").stat().st_ino, (place / "dots").lstat().st_size,
            attempt(os.mkdir, place / "dots"), attempt(os.rmdir, place / "slash"), attempt(os.unlink, place / "slash"),
            oct((place / "dots").lstat().st_mode),
        ]  # fmt: skip

    beside.same(deed)


def test_names_are_bytes_and_case_and_form_matter(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        names = [
            b"a",
            b"A",
            "\u00e9".encode(),
            "e\u0301".encode(),
            b" ",
            b"a ",
            b".hidden",
            b"...",
            b"\xff",
            b"\n",
            b"\\",
        ]
        for name in names:
            with opened(place / os.fsdecode(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY):
                pass
        return sorted(os.listdir(os.fsencode(place)))

    beside.same(deed)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_directory_holds_100_000_names(beside: Beside) -> None:
    """Made, listed once each, looked up, removed."""
    place = beside.mounted
    for number in range(100_000):
        os.mknod(place / f"{number:06}")
    listed = os.listdir(place)
    assert len(listed) == len(set(listed)) == 100_000
    assert (place / "099999").exists()
    assert not (place / "100000").exists()
    assert run("ls", "-l", place, seconds=300).count("\n") == 100_001
    run("rm", "-r", place, seconds=600)
    place.mkdir()


def test_a_read_only_mount_refuses_every_change(beside: Beside, read_only_mount: Mount) -> None:
    """EROFS for each, and reading works, which moves no time."""
    (beside.mounted / "d").mkdir()
    (beside.mounted / "f").write_bytes(b"content")
    (beside.mounted / "f").chmod(0o777)
    place = read_only_mount.path / "beside" / beside.mounted.name
    calls = {
        "create": lambda: os.open(place / "new", os.O_CREAT | os.O_WRONLY),
        "write": lambda: os.open(place / "f", os.O_WRONLY),
        "both": lambda: os.open(place / "f", os.O_RDWR),
        "trunc": lambda: os.open(place / "f", os.O_RDONLY | os.O_TRUNC),
        "create what is there": lambda: os.open(place / "f", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(place / "new"),
        "mkfifo": lambda: os.mkfifo(place / "new"),
        "symlink": lambda: os.symlink("x", place / "new"),
        "link": lambda: os.link(place / "f", place / "new"),
        "unlink": lambda: os.unlink(place / "f"),
        "rmdir": lambda: os.rmdir(place / "d"),
        "rename": lambda: os.rename(place / "f", place / "new"),
        "chmod": lambda: os.chmod(place / "f", 0o600),
        "chown": lambda: os.chown(place / "f", 1, 1),
        "utime": lambda: os.utime(place / "f", (1, 2)),
        "truncate": lambda: os.truncate(place / "f", 0),
        "setxattr": lambda: os.setxattr(place / "f", "user.x", b"1"),
        "removexattr": lambda: os.removexattr(place / "f", "user.x"),
    }  # fmt: skip
    before = (place / "f").stat()
    assert {name: attempt(call) for name, call in calls.items()} == dict.fromkeys(calls, "EROFS")
    assert os.access(place / "f", os.W_OK) is False
    assert attempt(os.mkdir, place / "d") == "EEXIST"
    assert attempt(os.unlink, place / "nothing") in ("ENOENT", "EROFS")
    assert (place / "f").read_bytes() == b"content"
    assert sorted(os.listdir(place)) == ["d", "f"]
    assert os.statvfs(place).f_flag & os.ST_RDONLY
    assert (place / "f").stat() == before
