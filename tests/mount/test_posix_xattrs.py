"""Extended attributes: namespaces, flags, sizes, beside a plain local directory where it can do as much."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers.protocol.limits import XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from tests.support.beside import KINDS, Beside, attempt, make
from tests.support.users import ALICE, BOB, CAROL, acting_as

NAMES = (
    "user.a",
    "trusted.a",
    "security.a",
    "system.a",
    "nonsense.a",
    "user.",
    "user",
    "a",
    "",
    "user.ü",
    "security.capability",
)


@pytest.mark.parametrize("kind", [*KINDS, "nothing"])
@pytest.mark.parametrize("user", [None, ALICE, BOB], ids=["root", "owner", "other"])
def test_namespaces_on_every_kind_of_file(beside: Beside, kind: str, user: object) -> None:
    """user.* belongs to files and directories only, trusted.* to root, security.* is written by root."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        path = place / "it"
        make(kind, path)
        if kind != "nothing":
            os.lchown(path, ALICE.uid, ALICE.gid)
            os.setxattr(path, "trusted.there", b"1", follow_symlinks=False)
            os.setxattr(path, "security.there", b"1", follow_symlinks=False)
        if kind in ("file", "directory"):
            os.setxattr(path, "user.there", b"1")
        calls: dict[str, Callable[[str], object]] = {
            "get": lambda name: os.getxattr(path, name, follow_symlinks=False),
            "set": lambda name: os.setxattr(path, name, b"value", follow_symlinks=False),
            "get again": lambda name: os.getxattr(path, name, follow_symlinks=False),
            "remove": lambda name: os.removexattr(path, name, follow_symlinks=False),
            "remove again": lambda name: os.removexattr(path, name, follow_symlinks=False),
        }

        def run() -> None:
            for name in (*NAMES, "user.there", "trusted.there", "security.there"):
                for verb, call in calls.items():
                    if (name, verb) not in (("system.a", "set"), ("security.capability", "set")):
                        found[f"{verb} {name}"] = attempt(call, name)
            found["list"] = _list(path)

        if user is None:
            run()
        else:
            with acting_as(user):  # type: ignore[arg-type]  # pytest's parameters
                run()
        return found

    beside.same(deed)


def _list(path: Path) -> object:
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        return error.errno


def test_create_and_replace(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        path = place / "f"
        path.touch()
        return [
            attempt(os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE),
            attempt(os.setxattr, path, "user.a", b"1", os.XATTR_CREATE),
            attempt(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE),
            os.getxattr(path, "user.a"),
            attempt(os.setxattr, path, "user.a", b"3", os.XATTR_REPLACE),
            os.getxattr(path, "user.a"),
            attempt(os.setxattr, path, "user.a", b"4", os.XATTR_REPLACE | os.XATTR_CREATE),
            attempt(os.setxattr, path, "user.a", b"5", 4),
            os.getxattr(path, "user.a"),
            os.listxattr(path),
        ]

    beside.same(deed)


def _getxattr(path: Path, name: bytes, size: int) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(max(1, size))
    got = libc.getxattr(os.fsencode(path), name, room, ctypes.c_size_t(size))
    return room.raw[:got] if got >= 0 and size else (got, ctypes.get_errno() if got < 0 else 0)


def _listxattr(path: Path, size: int) -> object:
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(max(1, size))
    got = libc.listxattr(os.fsencode(path), room, ctypes.c_size_t(size))
    return sorted(room.raw[:got].split(b"\0")) if got >= 0 and size else (got, ctypes.get_errno() if got < 0 else 0)


def test_values_and_lists_tell_their_size_and_want_room(beside: Beside) -> None:
    """A size of 0 asks for the size; too little room is ERANGE."""

    def deed(place: Path) -> Any:
        path = place / "f"
        path.touch()
        found = [_listxattr(path, size) for size in (0, 100)]
        os.setxattr(path, "user.a", b"12345")
        os.setxattr(path, "user.empty", b"")
        found += [_getxattr(path, b"user.a", size) for size in (0, 1, 4, 5, 6, 70_000)]
        found += [_getxattr(path, b"user.empty", size) for size in (0, 1)]
        found += [_listxattr(path, size) for size in (0, 1, 17, 18, 19, 70_000)]
        return found

    beside.same(deed)


def test_names_are_at_most_255_bytes(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        path = place / "f"
        path.touch()
        found: dict[Any, Any] = {}
        for length in (XATTR_NAME_BYTES_MAX, XATTR_NAME_BYTES_MAX + 1, 1000):
            name = "user." + "n" * (length - 5)
            found[length] = (
                attempt(os.setxattr, path, name, b"1"), attempt(os.getxattr, path, name),
                attempt(os.removexattr, path, name),
            )  # fmt: skip
        return found

    beside.same(deed)


def test_values_are_at_most_64_kib(beside: Beside) -> None:
    """More than most local file systems take."""
    path = beside.mounted / "f"
    path.touch()
    for length in (0, 1, 4096, 65_535, XATTR_VALUE_BYTES_MAX):
        value = os.urandom(length)
        os.setxattr(path, "user.large", value)
        assert os.getxattr(path, "user.large") == value
    assert attempt(os.setxattr, path, "user.large", bytes(XATTR_VALUE_BYTES_MAX + 1)) == "E2BIG"
    assert os.getxattr(path, "user.large") == value


def test_all_names_together_fit_into_one_list(beside: Beside) -> None:
    """Where they would not, ENOSPC, rather than names that nobody can list."""
    path = beside.mounted / "f"
    path.touch()
    names: list[str] = []
    while True:
        name = f"user.{len(names):04}" + "n" * 200
        if (said := attempt(os.setxattr, path, name, b"")) != "done":
            break
        names.append(name)
    assert said == "ENOSPC"
    assert len(names) > 300
    assert sorted(os.listxattr(path)) == names
    os.removexattr(path, names[0])
    os.setxattr(path, "user.room again", b"")


def test_attributes_belong_to_the_inode(beside: Beside) -> None:
    """All its names show them; they go with it in a rename, and with it for good."""

    def deed(place: Path) -> Any:
        (place / "a").touch()
        os.setxattr(place / "a", "user.x", b"1")
        os.link(place / "a", place / "b")
        os.rename(place / "a", place / "c")
        found = [os.getxattr(place / "b", "user.x"), os.getxattr(place / "c", "user.x")]
        (place / "b").unlink()
        (place / "c").unlink()
        (place / "a").touch()
        return found, os.listxattr(place / "a")

    beside.same(deed)


def test_a_members_rights_to_attributes_are_those_to_the_content(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o640, 0o660, 0o600, 0o666, 0o000):
            path = place / f"{mode:o}"
            path.touch()
            os.setxattr(path, "user.x", b"1")
            os.chown(path, ALICE.uid, ALICE.gid)
            path.chmod(mode)
            for user in (ALICE, CAROL, BOB):
                with acting_as(user):
                    found[f"{mode:o} {user.uid}"] = (
                        attempt(os.getxattr, path, "user.x"), attempt(os.setxattr, path, "user.y", b"1"),
                        attempt(os.removexattr, path, "user.y"), attempt(os.listxattr, path),
                    )  # fmt: skip
        return found

    beside.same(deed)


def test_sticky_directories_keep_user_attributes_to_their_owner(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "d").mkdir()
        (place / "d").chmod(0o1777)
        os.chown(place / "d", ALICE.uid, ALICE.gid)
        found: list[Any] = []
        for user in (ALICE, BOB):
            with acting_as(user):
                found.append(attempt(os.setxattr, place / "d", "user.x", b"1"))
        return found

    beside.same(deed)
