"""Owners, groups and modes, beside a plain local directory: who may change them, who inherits, what clears them."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.beside import Beside, attempt, changed_times, facts, make, tree
from tests.support.commands import opened
from tests.support.users import ALICE, BOB, CAROL, ROOT, User, acting_as

USERS = {"root": ROOT, "alice": ALICE, "bob": BOB, "carol": CAROL}


def _by_mapping(path: Path) -> None:
    with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 4) as memory:
        memory[0] = 65
        memory.flush()


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"new")


def _append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"new")


def _ftruncate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": _write,
    "append": _append,
    "truncate": lambda path: os.truncate(path, 2),
    "truncate up": lambda path: os.truncate(path, 20),
    "truncate to its size": lambda path: os.truncate(path, 4),
    "ftruncate": _ftruncate,
    "open and truncate": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "read": lambda path: path.read_bytes(),
    "write through a mapping": _by_mapping,
}  # fmt: skip


@pytest.mark.parametrize("user", USERS)
def test_changed_content_clears_set_user_id(beside: Beside, user: str) -> None:
    """Not for root, who may set it again anyway."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for name, change in CHANGES.items():
            for mode in (0o4777, 0o2777, 0o6777, 0o1777, 0o777):
                path = place / f"{name} {mode:o}"
                path.write_bytes(b"here")
                os.chown(path, ALICE.uid, ALICE.gid)
                path.chmod(mode)
                with acting_as(USERS[user]):
                    result = attempt(change, path)
                found[path.name] = (result, facts(path))
        return found

    beside.same(deed)


CAPABILITY = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)
"""CAP_NET_BIND_SERVICE, permitted and effective, as capabilities(7) lays it out."""


@pytest.mark.parametrize("user", ["root", "alice"])
def test_changed_content_and_owners_clear_capabilities(beside: Beside, user: str) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        changes = {
            **CHANGES,
            "chown": lambda path: os.chown(path, -1, USERS[user].gid),
            "chmod": lambda p: p.chmod(0o755),
        }
        for name, change in changes.items():
            path = place / name
            path.write_bytes(b"here")
            os.chown(path, ALICE.uid, ALICE.gid)
            path.chmod(0o777)
            os.setxattr(path, "security.capability", CAPABILITY)
            with acting_as(USERS[user]):
                result = attempt(change, path)
            found[name] = (result, os.listxattr(path), attempt(os.getxattr, path, "security.capability"))
        return found

    beside.same(deed)


def test_appending_ends_what_was_given_since_the_descriptor_was_opened(beside: Beside) -> None:
    """What a file lets others do is over when its content changes, whoever opened it when it let them do nothing."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o4777, 0o2777, 0o6777, 0o777):
            path = place / f"{mode:o}"
            path.write_bytes(b"here")
            os.chown(path, ALICE.uid, ALICE.gid)
            path.chmod(0o777)
            with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
                path.chmod(mode)
                os.setxattr(path, "security.capability", CAPABILITY)
                os.setxattr(path, "user.kept", b"value")
                with acting_as(ALICE):
                    result = attempt(os.write, descriptor, b"more")
                    at_once = (facts(path), os.listxattr(path))
                    again = attempt(os.write, descriptor, b"and more")
            found[path.name] = (result, at_once, again, facts(path), os.listxattr(path), path.read_bytes())
        return found

    beside.same(deed)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "symlink"])
def test_who_may_give_what_to_whom(beside: Beside, kind: str, user: str) -> None:
    """chown(2) by everybody, to everybody; and what becomes of set-user-id."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for uid in (-1, ALICE.uid, BOB.uid, 0):
            for gid in (-1, ALICE.gid, BOB.gid, CAROL.gid, 0):
                for mode in (0o6775, 0o4705) if kind in ("file", "directory") else (0o644,):
                    path = place / f"{uid} {gid} {mode:o}"
                    make(kind, path)
                    os.lchown(path, ALICE.uid, ALICE.gid)
                    if kind != "symlink":
                        path.chmod(mode)

                    def give(path: Path = path, uid: int = uid, gid: int = gid) -> None:
                        with acting_as(USERS[user]):
                            os.lchown(path, uid, gid)

                    found[path.name] = (changed_times(give, it=path), facts(path))
                    os.unlink(path) if kind != "directory" else os.rmdir(path)
        return found

    beside.same(deed)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_who_may_set_which_mode(beside: Beside, kind: str, user: str) -> None:
    """Sticky on files, setgid for a group that is not one's own: dropped or refused as Linux does."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for gid in (ALICE.gid, BOB.gid, CAROL.gid):
            for mode in (0o644, 0o1777, 0o2755, 0o4755, 0o7777, 0o2644, 0):
                path = place / f"{gid} {mode:o}"
                make(kind, path)
                os.chown(path, ALICE.uid, gid)
                with acting_as(USERS[user]):
                    result = attempt(os.chmod, path, mode)
                found[path.name] = (result, facts(path))
        return found

    beside.same(deed)


def test_a_member_by_a_supplementary_group_has_the_groups_rights(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "f").write_bytes(b"secret")
        os.chown(place / "f", ALICE.uid, ALICE.gid)
        (place / "f").chmod(0o640)
        found: list[Any] = []
        for user in (BOB, CAROL, User(BOB.uid, BOB.gid, (5, 6, ALICE.gid)), User(BOB.uid, ALICE.gid)):
            with acting_as(user):
                found.append((attempt((place / "f").read_bytes), attempt((place / "f").write_bytes, b"")))
        return found

    assert beside.same(deed) == [("EACCES",) * 2] + [("done", "EACCES")] * 3


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o2777)),
    "directory": lambda path: os.mkdir(path, 0o777),
    "directory with all bits": lambda path: os.mkdir(path, 0o7777),
    "fifo": lambda path: os.mkfifo(path, 0o777),
    "node": lambda path: os.mknod(path, stat.S_IFREG | 0o6777),
    "symlink": lambda path: os.symlink("x", path),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o777),
}  # fmt: skip


@pytest.mark.parametrize("user", USERS)
def test_what_is_made_belongs_to_its_maker_or_to_the_directorys_group(beside: Beside, user: str) -> None:
    """In plain and setgid directories, under several umasks; directories pass setgid on."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o777, 0o2777, 0o3777):
            for gid in (ALICE.gid, BOB.gid):
                for umask in (0o000, 0o022, 0o077, 0o777):
                    here = place / f"{mode:o} {gid} {umask:o}"
                    here.mkdir()
                    os.chown(here, ALICE.uid, gid)
                    here.chmod(mode)
                    with acting_as(USERS[user], umask=umask):
                        results = {name: attempt(maker, here / name) for name, maker in MAKERS.items()}
                    found[here.name] = (results, tree(here))
        return found

    beside.same(deed)


def test_links_to_files_of_others(beside: Beside) -> None:
    """protected_hardlinks of proc(5), where it is set, and permissions of the directories."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o644, 0o666, 0o600, 0o4755):
            for user in (ALICE, BOB, CAROL):
                path = place / f"{mode:o} {user.uid}"
                make("file", path)
                os.chown(path, ALICE.uid, ALICE.gid)
                path.chmod(mode)
                (place / f"{path.name} in").mkdir()
                (place / f"{path.name} in").chmod(0o777)
                with acting_as(user):
                    found[path.name] = attempt(os.link, path, place / f"{path.name} in" / "link")
        return found, tree(place)

    beside.same(deed)


def test_set_user_id_programs_run_as_their_owner(beside: Beside) -> None:
    """On a mount that allows it."""

    def deed(place: Path) -> Any:
        program = place / "id"
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        os.chown(program, ALICE.uid, ALICE.gid)
        program.chmod(0o6755)
        with acting_as(BOB):
            return subprocess.run([program, "-u"], capture_output=True, text=True, timeout=30).stdout

    assert beside.same(deed) == f"{ALICE.uid}\n"


def test_a_program_that_runs_is_not_written_to(beside: Beside) -> None:
    """ETXTBSY, both ways."""

    def deed(place: Path) -> Any:
        program = place / "sleep"
        program.write_bytes(Path("/usr/bin/sleep").read_bytes())
        program.chmod(0o755)
        with subprocess.Popen([program, "60"]) as running:
            # The child execs before Popen returns.
            found = [
                attempt(lambda: os.close(os.open(program, os.O_WRONLY))),
                attempt(lambda: os.close(os.open(program, os.O_RDWR | os.O_TRUNC))),
                attempt(os.truncate, program, 0),
                attempt(lambda: os.close(os.open(program, os.O_RDONLY))),
            ]
            running.kill()
        with opened(program, os.O_WRONLY):
            found.append(attempt(subprocess.run, [program, "0"], timeout=30))
        found.append(attempt(subprocess.run, [program, "0"], timeout=30))
        return found

    assert beside.same(deed)[:3] == ["ETXTBSY"] * 3


def test_modes_hold_for_what_is_open_already(beside: Beside) -> None:
    """A descriptor keeps its rights, whatever becomes of the mode; fchmod and fchown work on it."""

    def deed(place: Path) -> Any:
        path = place / "f"
        make("file", path)
        os.chown(path, ALICE.uid, ALICE.gid)
        with acting_as(ALICE):
            with opened(path, os.O_RDWR) as descriptor:
                os.fchmod(descriptor, 0)
                os.write(descriptor, b"still")
                found = [
                    os.pread(descriptor, 9, 0),
                    attempt(lambda: os.open(path, os.O_RDONLY)),
                    os.access(path, os.F_OK),
                ]
                path_facts = facts(path)
            found.append(attempt(os.chmod, path, 0o600))
        return found, path_facts, facts(path)

    beside.same(deed)


def test_a_file_made_without_rights_is_open_nonetheless(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        place.chmod(0o777)
        with acting_as(ALICE), opened(place / "f", os.O_CREAT | os.O_RDWR, 0o000) as descriptor:
            os.write(descriptor, b"mine")
            found = (os.pread(descriptor, 9, 0), attempt(lambda: os.open(place / "f", os.O_RDONLY)))
        return found, facts(place / "f")

    beside.same(deed)


def test_acls_are_refused(beside: Beside) -> None:
    """What the binding cannot carry correctly is not supported, which tools understand, and never half there."""
    path = beside.mounted
    acl = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        assert attempt(os.setxattr, path, name, acl) == "ENOTSUP"
        assert attempt(os.getxattr, path, name) == "ENOTSUP"
        assert attempt(os.removexattr, path, name) == "ENOTSUP"
