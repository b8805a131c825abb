"""The mount against a plain directory: the same random system calls on both, and whatever they tell must be the same.

Results, errnos, attributes of what a call was about, which times it moved; every so often, and at
the end, everything that is in both trees. Differences that are kept: kept_differences.py.

    DCS_TEST_SEED=7 pytest tests/mount/test_model.py            the same run again
    DCS_TEST_CALLS=1000000 pytest -m long tests/mount/test_model.py
"""

from __future__ import annotations

import itertools
import os
import random
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.mount.kept_differences import kept
from tests.support.cluster import Cluster
from tests.support.tree_calls import NOW, OMIT, Call, Outcome, Target, Tree
from tests.support.users import ALICE, CAROL, ROOT

CHUNK = 1024
CALLS_IN_LIST = 100
CALLS = 20_000
CALLS_LONG = int(os.environ.get("DCS_TEST_CALLS", "1000000"))
SURVEY_EVERY = 34
SLOTS = 4

USERS = [(ROOT, 0o022), (ALICE, 0), (CAROL, 0o027)]
IDS = [-1, 0, ALICE.uid, CAROL.uid, ALICE.gid, CAROL.gid]

BEGINNING = [
    Call("mkdir", 1, (b"a",), (0o777,)),
    Call("mkdir", 0, (b"b",), (0o1777,)),
    Call("mkdir", 2, (b"b/c",), (0o2775,)),
    Call("symlink", 1, (b"d",), (b"a/b",)),
    Call("open", 1, (b"a/b",), (os.O_RDWR | os.O_CREAT, 0o666, 0)),
    Call("open", 0, (b"b/a",), (os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o6777, 1)),
    Call("open", 2, (b"c",), (os.O_RDWR | os.O_CREAT, 0o644, 2)),
    Call("write", 1, (0,), (b"first" * 500,)),
    Call("pwrite", 2, (2,), (b"second" * 300, CHUNK + 1)),
]
"""So that random calls meet something. What they take away does not come back."""

LONGEST_NAME = b"n" * 255
NAMES = [b"a", b"b", b"c", b"d"]
ODD_PATHS = [b"a/", b"a/.", b"b/..", b"a//b", b".", b"", LONGEST_NAME, LONGEST_NAME + b"n", b"\xff\n"]
LINKED_TO = [b"a", b"b", b"a/b", b"../a", b"../b/c", b"nowhere", b"", b"x" * 4095, b"c/", b"."]
MODES = [0o777, 0o755, 0o700, 0o644, 0o600, 0o400, 0o070, 0o007, 0, 0o1777, 0o2775, 0o4755, 0o6777, 0o2644]
KINDS = [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR]
SIZES = [0, 1, 10, 500, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 5, 5 * CHUNK, -1]
XATTRS = [b"user.a", b"user.b", b"trusted.a", b"security.a", b"user.", b"nothing", b"user." + b"n" * 251]
VALUES = [b"", b"value", b"\0" * 300, b"v" * 60_000]
TIMES = [(0, NOW), (0, OMIT), (0, 0), (1_000_000_000, 7), (4_000_000_000, 999_999_999)]


class Pick(NamedTuple):
    """A path or a slot to be chosen when the call is made, from what is there then."""

    of: str
    which: int = 0
    name: bytes = b""


users = st.sampled_from([0, 0, 0, 1, 1, 2])
indexes = st.integers(0, 99)
names = st.sampled_from(NAMES)
there = indexes.map(lambda index: Pick("there", index))
below = st.tuples(indexes, names).map(lambda pair: Pick("below", *pair))
odd = st.sampled_from(ODD_PATHS)
paths = st.one_of(*[there] * 10, below, odd)
new_paths = st.one_of(*[below] * 8, *[there] * 3, odd)
slots = indexes.map(lambda index: Pick("open", index))
targets = st.one_of(paths, paths, slots)
modes = st.sampled_from(MODES)
sizes = st.sampled_from(SIZES)
counts = st.sampled_from(SIZES[:-1])
ids = st.sampled_from(IDS)
xattrs = st.sampled_from(XATTRS)
flags = st.booleans()
content = st.builds(lambda byte, size: bytes([byte]) * size, st.integers(1, 255), counts)
open_flags = st.tuples(
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.sampled_from([0, os.O_CREAT, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
    st.sampled_from([0, 0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, 0, os.O_APPEND]),
    st.sampled_from([0, 0, 0, 0, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_SYNC, os.O_DIRECT, os.O_NOATIME, os.O_PATH]),
).map(lambda parts: parts[0] | parts[1] | parts[2] | parts[3] | parts[4])


def call(verb: str, where: Sequence[Any], *rest: Any) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(verb), users, st.tuples(*where), st.tuples(*rest))


WEIGHTED = [
    (call("open", [st.one_of(there, new_paths)], open_flags, modes, st.integers(0, SLOTS - 1)), 8),
    (call("close_slot", [slots]), 2),
    (call("read", [slots], counts), 2),
    (call("pread", [slots], counts, sizes), 3),
    (call("write", [slots], content), 5),
    (call("pwrite", [slots], content, sizes), 5),
    (call("lseek", [slots], sizes, st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])), 2),
    (call("fsync", [slots]), 1),
    (call("fdatasync", [slots]), 1),
    (call("copy_file_range", [slots, slots], counts), 1),
    (call("mkdir", [new_paths], modes), 5),
    (call("rmdir", [paths]), 2),
    (call("mknod", [new_paths], st.tuples(st.sampled_from(KINDS), modes).map(sum), st.just(0xEF01)), 2),
    (call("symlink", [new_paths], st.sampled_from(LINKED_TO)), 2),
    (call("link", [paths, new_paths], flags), 4),
    (call("unlink", [paths]), 3),
    (call("rename", [paths, new_paths], st.sampled_from([0, 0, 0, 0, 1, 2, 2, 3])), 6),
    (call("readlink", [paths]), 1),
    (call("listdir", [st.one_of(targets, st.just(b"."))]), 2),
    (call("stat", [targets], flags), 2),
    (call("access", [paths], st.integers(0, 7)), 2),
    (call("chmod", [targets], modes), 4),
    (call("chown", [targets], ids, ids, flags), 3),
    (call("truncate", [targets], sizes), 4),
    (call("utimens", [targets], st.sampled_from(TIMES), st.sampled_from(TIMES), flags), 3),
    (
        call(
            "setxattr",
            [targets],
            xattrs,
            st.sampled_from(VALUES),
            st.sampled_from([0, 0, 1, 2]),
            flags,
        ),
        3,
    ),
    (call("getxattr", [targets], xattrs, flags), 1),
    (call("listxattr", [targets], flags), 1),
    (call("removexattr", [targets], xattrs, flags), 1),
]
calls = st.one_of([strategy for strategy, weight in WEIGHTED for _ in range(weight)])


@pytest.fixture(scope="module")
def mounted_place() -> Iterator[Path]:
    """A mount for all users, with chunks so small that every file has edges."""
    if os.geteuid():
        pytest.skip("needs root: it acts as several users")
    with Cluster(CHUNK_SIZE=str(CHUNK)) as cluster:
        mount = cluster.mount("mnt", "-o", "allow_other,suid,dev")
        yield mount.path
        mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def plain_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kernel's own file system in memory, mounted for this."""
    path = tmp_path_factory.mktemp("plain")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "dcs-test", path], check=True, timeout=30)
    yield path
    subprocess.run(["umount", "-l", path], check=True, timeout=30)


class Comparison:
    """Two trees that began empty and are to stay alike."""

    def __init__(self, plain: Path, mounted: Path) -> None:
        self._plain, self._mounted = Tree(plain, USERS, SLOTS), Tree(mounted, USERS, SLOTS)

        self.done: list[Call] = []

    def close(self) -> None:
        self._plain.close()
        self._mounted.close()

    def run(self, todo: Sequence[Call]) -> None:
        for number, picked in enumerate([*BEGINNING, *todo], 1):
            one = picked._replace(targets=tuple(self._found(target) for target in picked.targets))
            self.done.append(one)
            plain, mounted = self._plain.do(one), self._mounted.do(one)
            if plain != mounted:
                difference = kept(one, plain, mounted)
                if difference is None:
                    raise AssertionError(f"call {number}, {one}\n{_difference(plain, mounted)}")
                if difference.keeps_mode_of:
                    trees = {"plain": self._plain, "mounted": self._mounted}
                    giver = trees.pop(difference.keeps_mode_of)
                    (taker,) = trees.values()
                    taker.take_modes(giver, [seen.target for seen in mounted.seen if seen not in plain.seen])
            if number % SURVEY_EVERY == 0 or number == len(BEGINNING) + len(todo):
                self._expect_same(f"after call {number}, {one}")

    def _found(self, target: Any) -> Target:
        if not isinstance(target, Pick):
            return target
        if target.of == "open":
            slots = self._plain.open_slots() or [0]
            return slots[target.which % len(slots)]
        kinds = self._plain.paths()
        if target.of == "there":
            paths = [path for path in kinds if path != b"."] or [b"a"]
            return paths[target.which % len(paths)]
        directories = [path for path, is_directory in kinds.items() if is_directory]
        return os.path.normpath(os.path.join(directories[target.which % len(directories)], target.name))

    def _expect_same(self, when: str) -> None:
        plain, mounted = self._plain.survey(), self._mounted.survey()
        for target in plain.keys() | mounted.keys():
            here, there = plain.get(target), mounted.get(target)
            assert here == there, f"{when}: {target!r}\n  plain   {_short(here)}\n  mounted {_short(there)}"


def _difference(plain: Outcome, mounted: Outcome) -> str:
    seen = zip(plain.seen, mounted.seen, strict=True)
    pairs = [("result", plain.result, mounted.result), *(("seen", a, b) for a, b in seen)]
    return "\n".join(f"  {what}\n    plain   {_short(a)}\n    mounted {_short(b)}" for what, a, b in pairs if a != b)


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) < 600 else f"{text[:400]}... ({len(text)} characters)"


def compare(plain: Path, mounted: Path, count: int) -> None:
    number = int(os.environ.get("DCS_TEST_SEED", random.randrange(1 << 32)))
    print(f"DCS_TEST_SEED={number}")
    trees, home, done = itertools.count(), os.getcwd(), 0

    @seed(number)
    @settings(
        max_examples=-(-count // CALLS_IN_LIST), deadline=None, database=None, print_blob=False,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(calls, min_size=CALLS_IN_LIST, max_size=CALLS_IN_LIST))
    def alike(todo: list[Call]) -> None:
        nonlocal done
        name = f"{number}-{next(trees)}/1/2/3"  # So deep that `../` of a symlink stays within.
        comparison = Comparison(plain / name, mounted / name)
        try:
            comparison.run(todo)
        finally:
            comparison.close()
        done += len(todo)

    try:
        alike()
    finally:
        os.chdir(home)
        print(f"{done} calls alike")
    assert done >= count


@pytest.mark.timeout(900)
def test_the_mount_does_what_a_plain_directory_does(plain_place: Path, mounted_place: Path) -> None:
    compare(plain_place, mounted_place, CALLS)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_mount_does_what_a_plain_directory_does_a_million_times(plain_place: Path, mounted_place: Path) -> None:
    compare(plain_place, mounted_place, CALLS_LONG)
