"""rename(2) and renameat2(2) in all their cases, beside a plain local directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.beside import Beside, attempt, changed_times, make, rename2, tree, wait_for_the_clock
from tests.support.commands import opened
from tests.support.directory_stream import up_of
from tests.support.users import ALICE, BOB, CAROL, ROOT, User, acting_as

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
THINGS = ("file", "directory", "full directory", "fifo", "socket", "character", "symlink", "nothing")
CALLS: dict[str, Callable[[Path, Path], None]] = {
    "plain": os.rename,
    "noreplace": lambda source, target: rename2(source, target, NOREPLACE),
    "exchange": lambda source, target: rename2(source, target, EXCHANGE),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("within", [True, False], ids=["within a directory", "between two"])
def test_every_kind_onto_every_kind(beside: Beside, call: str, within: bool) -> None:
    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for source in THINGS:
            for target in THINGS:
                here = place / f"{source} to {target}"
                here.mkdir()
                (here / "a").mkdir()
                (here / "b").mkdir()
                there = here / ("a" if within else "b")
                make(source, here / "a" / "source")
                make(target, there / "target")
                found[here.name] = (attempt(CALLS[call], here / "a" / "source", there / "target"), tree(here))
        return found

    beside.same(deed)


@pytest.mark.parametrize("call", CALLS)
def test_directories_never_move_into_themselves(beside: Beside, call: str) -> None:
    def deed(place: Path) -> Any:
        (place / "a" / "b" / "c").mkdir(parents=True)
        (place / "a" / "file").touch()
        found = [
            attempt(CALLS[call], place / source, place / target)
            for source in ("a", "a/b", "a/b/c", "a/file")
            for target in ("a", "a/b", "a/b/c", "a/b/c/d", "a/b/new", "a/file", ".", "a/.", "a/..", "..", "a/b/..")
        ]
        return found, tree(place)

    beside.same(deed)


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE, 8, 1 << 30])
def test_two_names_of_one_file(beside: Beside, flags: int) -> None:
    """rename(2) between them does nothing, and changes no time."""

    def deed(place: Path) -> Any:
        (place / "a").touch()
        (place / "other").mkdir()
        os.link(place / "a", place / "b")
        os.link(place / "a", place / "other" / "c")
        found = [
            changed_times(
                partial(rename2, place / "a", place / target, flags),
                file=place / "a",
                place=place,
                other=place / "other",
            )
            for target in ("a", "b", "other/c")
        ]
        return found, tree(place)

    beside.same(deed)


def test_what_was_replaced_is_gone_and_what_moved_is_whole(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        (place / "source").write_bytes(b"source")
        (place / "target").write_bytes(b"target")
        os.link(place / "target", place / "target's other name")
        with (place / "target").open("rb") as still_open:
            os.rename(place / "source", place / "target")
            held = still_open.read()
            links = os.fstat(still_open.fileno()).st_nlink
        return held, links, (place / "target").read_bytes(), (place / "target's other name").read_bytes(), tree(place)

    assert beside.same(deed)[:4] == (b"target", 1, b"source", b"target")


def test_exchanged_directories_keep_their_contents_and_parents(beside: Beside) -> None:
    def deed(place: Path) -> Any:
        for name in ("x/a/inside a", "y/b/inside b"):
            (place / name).mkdir(parents=True)
        rename2(place / "x" / "a", place / "y" / "b", EXCHANGE)
        parents = [
            os.path.samefile(place / "x" / "a" / "..", place / "x"),
            (place / "y" / "b" / "..").samefile(place / "y"),
        ]
        rename2(place / "x" / "a", place / "y", EXCHANGE)
        found = attempt(rename2, place / "y" / "inside b", place / "y" / "nothing", EXCHANGE)
        return parents, found, tree(place)

    beside.same(deed)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_both_of_what_is_exchanged_show_it_at_once(beside: Beside, kind: str) -> None:
    """Their times of change, and what `..` is."""

    def deed(place: Path) -> Any:
        for name in ("x", "y"):
            (place / name).mkdir()
            make(kind, place / name / "it")
        numbers = [(place / name / "it").stat().st_ino for name in ("x", "y")]
        with opened(place / "x" / "it", os.O_RDONLY) as one, opened(place / "y" / "it", os.O_RDONLY) as two:
            before = [os.fstat(descriptor).st_ctime_ns for descriptor in (one, two)]
            wait_for_the_clock()
            rename2(place / "x" / "it", place / "y" / "it", EXCHANGE)
            after = [os.fstat(descriptor).st_ctime_ns for descriptor in (one, two)]
        found: list[Any] = [new > old for old, new in zip(before, after, strict=True)]
        found.append([(place / name / "it").stat().st_ino for name in ("x", "y")] == numbers[::-1])
        if kind == "directory":
            ups = {name: [(place / name).stat().st_ino, up_of(place / name / "it")] for name in ("x", "y")}
            found.append([own == up for own, up in ups.values()])
        return found

    beside.same(deed)


@pytest.mark.parametrize("user", [ALICE, BOB, CAROL], ids=["alice", "bob", "carol"])
@pytest.mark.parametrize(
    "owner",
    [pytest.param(ALICE, id="alice's directory"), pytest.param(ROOT, id="root's directory", marks=pytest.mark.long)],
)
def test_sticky_directories_protect_what_others_own(beside: Beside, user: User, owner: User) -> None:
    """Source and target, each in a sticky directory or not, each somebody's; files and directories."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for kind in ("file", "directory"):
            for modes in ((0o1777, 0o777), (0o777, 0o1777), (0o1777, 0o1777)):
                for source_owner, target_owner in ((ALICE, BOB), (BOB, ALICE), (ALICE, None), (BOB, None), (BOB, BOB)):
                    for call, rename in CALLS.items():
                        case = f"{kind} {modes} {source_owner.uid} {target_owner and target_owner.uid} {call}"
                        here = place / case
                        here.mkdir()
                        for name, mode, kinds_owner in (
                            ("a", modes[0], source_owner), ("b", modes[1], target_owner),
                        ):  # fmt: skip
                            (here / name).mkdir()
                            (here / name).chmod(mode)
                            os.chown(here / name, owner.uid, owner.gid)
                            if kinds_owner is not None:
                                make(kind, here / name / "it")
                                os.chown(here / name / "it", kinds_owner.uid, kinds_owner.gid)
                        with acting_as(user):
                            result = attempt(rename, here / "a" / "it", here / "b" / "it")
                        found[case] = (result, tree(here))
        return found

    beside.same(deed)


@pytest.mark.parametrize("user", [ALICE, BOB, CAROL], ids=["alice", "bob", "carol"])
def test_directories_of_others_are_not_moved_to_other_parents(beside: Beside, user: User) -> None:
    """To give a directory another parent is to write to it: to its `..`."""

    def deed(place: Path) -> Any:
        found: dict[Any, Any] = {}
        for mode in (0o777, 0o755, 0o775, 0o555):
            for call, rename in CALLS.items():
                for within in (True, False):
                    here = place / f"{mode:o} {call} {within}"
                    here.mkdir()
                    for name in ("a", "b"):
                        (here / name).mkdir()
                        (here / name).chmod(0o777)
                    there = here / ("a" if within else "b")
                    make("directory", here / "a" / "source")
                    os.chown(here / "a" / "source", ALICE.uid, ALICE.gid)
                    (here / "a" / "source").chmod(mode)
                    if call == "exchange":
                        make("directory", there / "target")
                        os.chown(there / "target", user.uid, user.gid)
                    with acting_as(user):
                        result = attempt(rename, here / "a" / "source", there / "target")
                    found[here.name] = (result, tree(here))
        return found

    beside.same(deed)


def test_renames_to_another_file_system_are_refused(beside: Beside) -> None:
    (beside.local / "a").touch()
    (beside.mounted / "b").touch()
    assert attempt(os.rename, beside.local / "a", beside.mounted / "a") == "EXDEV"
    assert attempt(os.link, beside.mounted / "b", beside.local / "b") == "EXDEV"
