"""Two mounts of one volume do at the same moment what cannot both be done, or not both first.

Processes make the calls (tests/support/racers.py). What became of names is asked in Redis, since a mount may believe
what it knows of names for a second.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgpack
import pytest
import redis

from servers.naming.keyspace import prefix
from tests.support.cluster import Cluster
from tests.support.commands import opened
from tests.support.processes import wait_for
from tests.support.racers import Call, Racers

NOREPLACE, EXCHANGE = 1, 2
PRESENT, ABSENT = 0, errno.ENOENT
CHUNK_SIZE = 4096
CHURN = 400
CHURN_LONG = 10_000
LINES = 100
LINES_LONG = 10_000


class Names:
    """Directories as Redis holds them at one moment."""

    def __init__(self, cluster: Cluster) -> None:
        self._redis = redis.Redis(port=cluster.redis_port)
        self._key = prefix("main")

    def of(self, ino: int) -> dict[str, int]:
        rows = self._redis.hgetall(f"{self._key}:d:{ino}")
        return {os.fsdecode(name): msgpack.unpackb(blob)[0] for name, blob in rows.items()}

    def tree(self, ino: int) -> dict[str, int]:
        """All paths below; what is in a circle is in none."""
        found: dict[str, int] = {}
        for name, child in self.of(ino).items():
            assert child not in found.values(), f"{name} is in two places"
            found |= {name: child} | {f"{name}/{path}": below for path, below in self.tree(child).items()}
        return found

    def close(self) -> None:
        self._redis.close()


@pytest.fixture
def names(mounted: Cluster) -> Iterator[Names]:
    found = Names(mounted)
    yield found
    found.close()


@pytest.fixture
def racers(place: Path, other_place: Path) -> Iterator[Racers]:
    """Eight, on the two mounts by turns."""
    with Racers([place, other_place] * 4) as eight:
        yield eight


def all_see(place: Path, other_place: Path) -> None:
    """What was made on one mount, so that none of the racers believes that it is not there."""
    wait_for(lambda: set(os.listdir(other_place)) == set(os.listdir(place)), "the other mount sees what was made")
    for name in os.listdir(place):
        wait_for((other_place / name).exists, f"the other mount sees {name}")


@pytest.mark.parametrize("what", ["create", "mkdir", "link", "rename2"])
@pytest.mark.fault("R1")
def test_of_eight_who_make_one_name_exactly_one_succeeds(
    place: Path, other_place: Path, racers: Racers, names: Names, what: str
) -> None:
    """O_EXCL, mkdir, link and RENAME_NOREPLACE; who lost has changed nothing."""
    rounds = 20
    for number, who in itertools.product(range(rounds), range(8)):
        os.mknod(place / f"{number}-{who}")
    all_see(place, other_place)
    ino = place.stat().st_ino
    for number in range(rounds):
        target, sources = f"{number}", [f"{number}-{who}" for who in range(8)]
        before = names.of(ino)
        calls: dict[str, list[Call]] = {
            "create": [("create", target)] * 8,
            "mkdir": [("mkdir", target)] * 8,
            "link": [("link", source, target) for source in sources],
            "rename2": [("rename2", source, target, NOREPLACE) for source in sources],
        }
        outcomes = racers.race(calls[what])
        assert sorted(outcomes) == [0] + [errno.EEXIST] * 7
        after, source = names.of(ino), sources[outcomes.index(0)]
        made = after.pop(target)
        assert made == before[source] if what in ("link", "rename2") else made not in before.values()
        if what == "rename2":
            del before[source]
        assert after == before


@pytest.mark.fault("R2")
def test_a_file_that_is_renamed_back_and_forth_always_has_one_name(
    place: Path, other_place: Path, racers: Racers, names: Names
) -> None:
    """Whoever looks sees it under one of the two, never under both or neither: in Redis, and in each listing of either
    mount."""
    (place / "a").touch()
    all_see(place, other_place)
    ino, file = place.stat().st_ino, (place / "a").stat().st_ino
    looks: Counter[str] = Counter()
    wrong: list[dict[str, int]] = []
    listings: dict[Path, Counter[tuple[str, ...]]] = {place: Counter(), other_place: Counter()}
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen = names.of(ino)
            looks.update(seen)
            if list(seen.values()) != [file]:
                wrong.append(seen)

    def list_names(directory: Path) -> None:
        while not over.is_set():
            listings[directory][tuple(os.listdir(directory))] += 1

    lookers = [threading.Thread(target=look, daemon=True)]
    lookers += [threading.Thread(target=list_names, args=(directory,), daemon=True) for directory in listings]
    for looker in lookers:
        looker.start()
    try:
        for number in range(50):
            # Each mount makes both renames in turn: it knows its own at once, the other's within a second.
            there, back = ("rename", "a", "b"), ("rename", "b", "a")
            pair = [there, back] if number % 2 else [back, there]
            outcomes = racers.race([*pair, ("stat", "a"), ("stat", "b")] * 2)
            assert set(outcomes) <= {PRESENT, ABSENT}
    finally:
        over.set()
        for looker in lookers:
            looker.join(60)
    assert not wrong
    assert looks.keys() == {"a", "b"}
    for found in listings.values():
        assert found.keys() == {("a",), ("b",)}


@pytest.mark.fault("R2")
def test_renames_of_two_files_over_each_other_and_an_unlink_happen_in_some_order(
    place: Path, other_place: Path, racers: Racers, names: Names
) -> None:
    ino, rounds = place.stat().st_ino, 40
    for letter, number in itertools.product("ab", range(rounds)):
        os.mknod(place / f"{letter}{number}")
    all_see(place, other_place)
    for number in range(rounds):
        a, b = f"a{number}", f"b{number}"
        before = names.of(ino)
        calls = {
            "a→b": ("rename", a, b),
            "b→a": ("rename", b, a),
            "a↔b": ("rename2", a, b, EXCHANGE),
            "-a": ("unlink", a),
        }
        chosen = random.sample(sorted(calls), 3)
        outcomes = racers.race([calls[name] for name in chosen])
        assert set(outcomes) <= {PRESENT, ABSENT}
        done = [name for name, outcome in zip(chosen, outcomes, strict=True) if outcome == 0]
        possible = [_serially({"a": before[a], "b": before[b]}, order) for order in itertools.permutations(done)]
        after = names.of(ino)
        assert {key: after[f"{key}{number}"] for key in "ab" if f"{key}{number}" in after} in possible, (
            chosen,
            outcomes,
        )


def _serially(names: dict[str, int], order: tuple[str, ...]) -> dict[str, int] | None:
    """What the names are after all of these were done one after the other; None when one of them could not be."""
    names = dict(names)
    for what in order:
        needed = {"-a": "a", "a↔b": "ab", "a→b": "a", "b→a": "b"}[what]
        if not names.keys() >= set(needed):
            return None
        if what == "-a":
            del names["a"]
        elif what == "a↔b":
            names = {"a": names["b"], "b": names["a"]}
        else:
            names[what[-1]] = names.pop(what[0])
    return names


@pytest.mark.parametrize("between", ["", "p/q/"], ids=["shallow", "deep"])
@pytest.mark.fault("R2")
def test_directories_moved_into_each_other_make_no_circle(
    place: Path, other_place: Path, racers: Racers, names: Names, between: str
) -> None:
    ino, rounds = place.stat().st_ino, 15
    for letter, number in itertools.product("abc", range(rounds)):
        (place / f"{letter}{number}" / between).mkdir(parents=True)
    all_see(place, other_place)
    for number in range(rounds):
        trio = [f"{letter}{number}" for letter in "abc"]
        before = names.tree(ino)
        circle = [("rename", name, f"{into}/{between}x") for name, into in zip(trio, trio[1:] + trio[:1], strict=True)]
        outcomes = racers.race(circle + circle)
        assert outcomes.count(0) in (1, 2)
        # ESTALE, as on NFS: a directory had moved elsewhere while this one was being moved. Nothing is changed then.
        assert set(outcomes) <= {0, errno.EINVAL, errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ESTALE}
        assert sorted(names.tree(ino).values()) == sorted(before.values())


@pytest.mark.fault("R2")
def test_a_directory_is_removed_or_gets_a_name_but_not_both(
    place: Path, other_place: Path, racers: Racers, names: Names
) -> None:
    ino, rounds = place.stat().st_ino, 30
    for number in range(rounds):
        (place / f"d{number}").mkdir()
    all_see(place, other_place)
    for number in range(rounds):
        directory = f"d{number}"
        calls = [("rmdir", directory), ("create", f"{directory}/f"), ("mkdir", f"{directory}/g")]
        random.shuffle(calls)
        outcomes = dict(zip((call[0] for call in calls), racers.race(calls), strict=True))
        left = set(names.tree(ino)) & {directory, f"{directory}/f", f"{directory}/g"}
        if outcomes["rmdir"] == 0:
            assert (left, outcomes["create"], outcomes["mkdir"]) == (set(), errno.ENOENT, errno.ENOENT)
        else:
            assert outcomes["rmdir"] == errno.ENOTEMPTY
            assert 0 in (outcomes["create"], outcomes["mkdir"])
            made = {f"{directory}/f": outcomes["create"], f"{directory}/g": outcomes["mkdir"]}
            assert left == {directory} | {path for path, outcome in made.items() if outcome == 0}


APPENDER = """
import os, sys
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    # Each line by an open and a close of its own, or several through one descriptor.
    if number % 10 == 0:
        access = os.O_RDWR if int(who) % 4 < 2 else os.O_WRONLY
        descriptor = os.open(path, access | os.O_APPEND | os.O_CREAT)
    line = f"{who} {number} " + "x" * (number * 37 % 300) + "\\n"
    assert os.write(descriptor, line.encode()) == len(line)
    if number % 10 == 9:
        os.close(descriptor)
    elif number % 3 == 0:
        os.fsync(descriptor)
"""


@contextmanager
def appending(directories: list[Path], count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Eight writers of so many lines each, in the directories by turns."""
    writers = [
        subprocess.Popen([sys.executable, "-S", "-c", APPENDER, directories[who % 2] / "log", str(who), str(count)])
        for who in range(8)
    ]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(60)


def check_lines(path: Path, count: int) -> None:
    """Each writer's lines in its own order; none torn, none lost, none twice."""
    lines = path.read_text().splitlines()
    for who in range(8):
        expected = [f"{who} {number} " + "x" * (number * 37 % 300) for number in range(count)]
        assert [line for line in lines if line.startswith(f"{who} ")] == expected
    assert len(lines) == 8 * count


@pytest.mark.fault("R3")
def test_appended_lines_from_two_mounts_land_whole_and_once(place: Path, other_place: Path) -> None:
    with appending([place, other_place], LINES) as writers:
        assert [writer.wait(120) for writer in writers] == [0] * 8
    for directory in (place, other_place):
        check_lines(directory / "log", LINES)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault("R3", "S1", "M2", "M4")
def test_appended_lines_land_whole_and_once_while_servers_are_killed(cluster: Cluster) -> None:
    """No writer meets an error."""
    directories = [cluster.mount(name).path for name in ("one", "two")]
    victims = itertools.cycle([cluster.naming, cluster.nodes[0], cluster.redis, cluster.nodes[1]])
    with appending(directories, LINES_LONG) as writers:

        def has_grown(size: int) -> bool:
            over = any(writer.poll() is not None for writer in writers)
            return over or size_of(directories[0] / "log") > size + 200_000

        while any(writer.poll() is None for writer in writers):
            victim = next(victims)
            victim.kill()
            victim.start()
            wait_for(partial(has_grown, size_of(directories[0] / "log")), "the log grows on", 300)
        assert [writer.wait(120) for writer in writers] == [0] * 8
    for directory in directories:
        check_lines(directory / "log", LINES_LONG)


def small_chunks(directory: Path) -> None:
    """What is made in the directory from now on has small chunks."""
    os.setxattr(directory, "user.dcs.chunk_size", str(CHUNK_SIZE).encode())


def read_once(path: Path) -> bytes:
    with opened(path, os.O_RDONLY) as descriptor:
        return os.read(descriptor, 1 << 20)


@pytest.mark.fault("R6")
def test_writes_appends_and_truncations_of_one_file_happen_in_some_order(
    place: Path, other_place: Path, racers: Racers
) -> None:
    """Of three at the same moment; both mounts read what one of the orders makes, holes and all."""
    small_chunks(place)
    rounds = 40
    contents = [b"o" * random.choice((0, 100, CHUNK_SIZE, 20_000)) for _ in range(rounds)]
    for number, old in enumerate(contents):
        (place / f"{number}").write_bytes(old)
    all_see(place, other_place)
    for number, old in enumerate(contents):
        file = f"{number}"
        calls: list[Call] = [
            ("write", file, 0, random.randrange(30_000), "w", random.randrange(1, 15_000)),
            ("write", file, os.O_APPEND, 0, "a", random.randrange(1, 15_000)),
            ("truncate", file, random.choice((0, 1, CHUNK_SIZE, random.randrange(30_000)))),
        ]
        random.shuffle(calls)
        assert racers.race(calls) == [0, 0, 0]
        found = read_once(place / file)
        possible = [_written(old, order) for order in itertools.permutations(calls)]
        assert found in possible, (len(old), calls, _runs(found), [_runs(content) for content in possible])
        assert read_once(other_place / file) == found


def _written(content: bytes, order: tuple[Call, ...]) -> bytes:
    for verb, _, *rest in order:
        if verb == "truncate":
            content = content[: rest[0]].ljust(rest[0], b"\0")
        else:
            flags, offset, letter, length = rest
            offset = len(content) if flags & os.O_APPEND else offset
            content = content.ljust(offset, b"\0")[:offset] + letter.encode() * length + content[offset + length :]
    return content


def _runs(content: bytes) -> str:
    """As a person can compare it: 100×o 20×w."""
    return " ".join(f"{len(list(same))}×{chr(byte)!r}" for byte, same in itertools.groupby(content))


REWRITER = """
import os, sys
path, truncating = sys.argv[1], int(sys.argv[2])
number = 0
while True:
    number += 1
    length = (20_000, 33_000)[number % 2] if truncating else 40_000
    descriptor = os.open(path, os.O_WRONLY | truncating)
    assert os.pwrite(descriptor, b"%c" % (97 + number % 26) * length, 0) == length
    os.close(descriptor)
"""


@contextmanager
def rewriting(path: Path, flags: int) -> Iterator[None]:
    """A process that writes the whole file again and again, each time another letter by one flush."""
    writer = subprocess.Popen([sys.executable, "-S", "-c", REWRITER, path, str(flags)])
    try:
        yield
        assert writer.poll() is None, "the writer met an error"
    finally:
        writer.kill()
        writer.wait(60)


@pytest.mark.parametrize("flags", [0, os.O_TRUNC], ids=["over", "truncated"])
@pytest.mark.fault("R6")
def test_one_read_sees_one_version_of_a_file_that_is_rewritten_elsewhere(
    place: Path, other_place: Path, flags: int
) -> None:
    """Of ten chunks, never some of one and some of another. O_TRUNC is a version too: the empty one."""
    small_chunks(place)
    (place / "f").write_bytes(b"a" * 40_000)
    wait_for((other_place / "f").exists, "the other mount sees the file")
    seen: Counter[bytes] = Counter()
    with rewriting(place / "f", flags):
        for _ in range(300):
            content = read_once(other_place / "f")
            assert len(set(content)) <= 1, _runs(content)
            assert flags or len(content) == 40_000
            seen[content[:1]] += 1
    assert len(seen) > 10, "the reader saw too few versions to have raced"


CHURNER = """
import os, sys
os.chdir(sys.argv[1])
who, count = sys.argv[2], int(sys.argv[3])
for number in range(count):
    os.close(os.open(f"{who}-{number}", os.O_CREAT | os.O_WRONLY))
    if number >= 50:
        os.unlink(f"{who}-{number - 50}")
"""


def has_names(directory: Path, wanted: set[str]) -> bool:
    return wanted <= set(os.listdir(directory))


def read_while_it_changes(changing: Path, read: list[Path], churn: int) -> None:
    """Names that stay are in every listing exactly once, and no name is in one twice."""
    stable = {f"stable-{number}" for number in range(1100)}
    for name in stable:
        os.mknod(changing / name)
    churners = [
        subprocess.Popen([sys.executable, "-S", "-c", CHURNER, changing, str(who), str(churn // 2)]) for who in range(2)
    ]
    try:
        for directory in read:
            wait_for(partial(has_names, directory, stable), "all stable names are seen")
        listings = 0
        while any(churner.poll() is None for churner in churners):
            for directory in read:
                found = Counter(entry.name for entry in os.scandir(directory))
                assert max(found.values()) == 1
                assert not stable - found.keys()
                listings += 1
        assert [churner.wait(60) for churner in churners] == [0, 0]
        assert listings > 5
    finally:
        for churner in churners:
            churner.kill()
            churner.wait(60)


@pytest.mark.fault("R7")
def test_a_directory_read_while_it_changes_shows_what_stays_exactly_once(place: Path, other_place: Path) -> None:
    read_while_it_changes(place, [place, other_place], CHURN)


@pytest.mark.long
@pytest.mark.fault("R7")
def test_a_directory_read_during_ten_thousand_changes_shows_what_stays_exactly_once(
    place: Path, other_place: Path
) -> None:
    read_while_it_changes(place, [place, other_place], CHURN_LONG)
