"""Applications that people run, doing on the mount what they do on a disk, and killed where they may be killed."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.commands import MIB, run
from tests.support.postgres import Postgres
from tests.support.processes import CHECKOUT

SQLITE_WRITER = """
    import os, sqlite3, sys

    database = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
    database.execute("pragma synchronous = full")
    (number,) = database.execute("select coalesce(max(n), 0) from t").fetchone()
    while True:
        number += 1
        database.execute("begin immediate")
        database.execute("insert into t values (?, ?)", (number, os.urandom(number * 37 % 3000)))
        database.execute("update total set n = n + ?", (number,))
        database.execute("commit")
        print(number, flush=True)
"""
"""Says which transactions it was told are done."""

PYTHON_TESTS = ["os", "posix", "shutil", "mailbox", "tempfile", "zipfile", "dbm", "mmap", "pathlib"]


# ── git


def test_git_clones_this_repository_packs_it_and_finds_it_sound(open_place: Path, tmp_path: Path) -> None:
    """And a clone of that clone, off the mount again, has the same commit and files."""
    (tmp_path / "gitconfig").write_text("[safe]\n\tdirectory = *\n[user]\n\tname = A\n\temail = a@b\n")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"), "GIT_CONFIG_SYSTEM": "/dev/null"}

    def git(*words: str | Path, cwd: Path = tmp_path) -> str:
        return run("git", *words, cwd=cwd, environment=environment, seconds=120)

    repository = open_place / "repository"
    git("clone", "--quiet", "--no-hardlinks", f"file://{CHECKOUT}", repository)
    head = git("rev-parse", "HEAD", cwd=repository)
    (repository / "README.md").write_text("changed\n")
    git("commit", "--quiet", "-a", "-m", "change", cwd=repository)
    git("reset", "--quiet", "--hard", "HEAD^", cwd=repository)
    git("fsck", "--full", "--strict", cwd=repository)
    git("gc", "--quiet", "--prune=now", cwd=repository)
    git("fsck", "--full", "--strict", cwd=repository)
    assert git("status", "--porcelain", cwd=repository) == ""
    git("clone", "--quiet", "--no-hardlinks", f"file://{repository}", tmp_path / "back")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "back") == head
    run("diff", "-r", "--exclude=.git", repository, tmp_path / "back")


# ── SQLite


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_loses_no_transaction_when_its_writer_is_killed(open_place: Path, journal: str) -> None:
    _kill_sqlite_writers(open_place / "a.db", journal, times=3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_loses_no_transaction_when_its_writer_is_killed_often(open_place: Path, journal: str) -> None:
    _kill_sqlite_writers(open_place / "a.db", journal, times=40)


def _kill_sqlite_writers(path: Path, journal: str, *, times: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    database = sqlite3.connect(path)
    assert database.execute(f"pragma journal_mode = {journal}").fetchone()[0] == journal
    database.executescript("create table t (n integer primary key, bytes); create table total (n)")
    with database:
        database.execute("insert into total values (0)")
    database.close()
    for _ in range(times):
        done = _write_until_killed(path, after=chance.randint(1, 30))
        database = sqlite3.connect(path, timeout=30)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        last, count, added = database.execute("select max(n), count(*), sum(n) from t").fetchone()
        assert done <= last == count, "a transaction is lost"
        assert database.execute("select n from total").fetchone() == (added,), "half of a transaction"
        database.close()


def _write_until_killed(path: Path, *, after: int) -> int:
    """The last transaction that a writer, killed as it went on after so many, was told is done."""
    program = textwrap.dedent(SQLITE_WRITER)
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(after):
            assert writer.stdout.readline(), "the writer ended by itself"
        writer.kill()
        *_, last, _ = (b"0\n" + writer.stdout.read()).split(b"\n")
    return int(last)


# ── PostgreSQL


@pytest.mark.timeout(600)
def test_postgresql_recovers_all_that_it_committed_before_it_was_killed(open_place: Path) -> None:
    """initdb, pgbench, kill -9 under load, recovery: the books balance, and every page and index is sound."""
    with Postgres(open_place) as postgres:
        postgres.start()
        postgres.program("pgbench", "--initialize", "--scale=1", "--quiet")
        postgres.program("pgbench", "--client=4", "--transactions=25")
        killed_at = postgres.kill_under_load(after_transactions=60)
        postgres.start()
        books = postgres.ask(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), "
            "(select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)"
        ).split("|")
        assert len(set(books)) == 1, books
        assert int(postgres.ask("select count(*) from pgbench_history")) >= killed_at
        postgres.program("pg_amcheck", "--install-missing", "--heapallindexed")
        postgres.stop()
        assert "PANIC" not in postgres.log()


# ── copies and archives


@pytest.fixture
def treasures(tmp_path: Path) -> Path:
    """A directory with one of everything that a file system can hold."""
    directory = tmp_path / "treasures"
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "file").write_text("content\n")
    os.link(directory / "a" / "file", directory / "a" / "b" / "second name")
    (directory / "a" / "link").symlink_to("file")
    (directory / "a" / "dangling").symlink_to("/nowhere at all")
    os.mkfifo(directory / "fifo", 0o640)
    with (directory / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"in the middle")
        file.truncate(10 * MIB)
    (directory / "names").mkdir()
    for name in (b"newline\n", b"\xff not UTF-8", " ünicode ".encode(), b"-rf", b"x" * 255):
        Path(os.fsdecode(os.fsencode(directory / "names") + b"/" + name)).write_bytes(name)
    for number in range(50):
        (directory / "a" / f"part{number}").write_bytes(random.randbytes(number * 200))
    os.setxattr(directory / "a" / "file", "user.colour", b"red\0and\xffblue")
    os.setxattr(directory / "a", "user.empty", b"")
    if os.geteuid() == 0:
        os.mknod(directory / "null", 0o20666, os.makedev(1, 3))
        os.setxattr(directory / "a" / "b", "trusted.kept", b"for root")
        os.setxattr(directory / "a" / "part7", "security.label", b"secret")
        for path, uid, gid in (("a/part9", 1234, 5678), ("a/b", 1234, 5678), ("a/link", 4321, 8765)):
            os.chown(directory / path, uid, gid, follow_symlinks=False)
    (directory / "a" / "part8").chmod(0o4711)
    (directory / "a" / "b").chmod(0o2775)
    (directory / "names").chmod(0o1777)
    os.utime(directory / "a" / "file", ns=(1, 946_684_799_123_456_789))
    os.utime(directory / "a" / "link", ns=(1, 946_684_798_000_000_001), follow_symlinks=False)
    os.utime(directory / "a", ns=(1, 999_999_999_999_999_999))
    return directory


def assert_alike(one: Path, other: Path, *options: str) -> None:
    """rsync, reading every byte, finds nothing that it would change."""
    words = ("--dry-run", "--itemize-changes", "--checksum", "--delete", "--numeric-ids", *options)
    assert run("rsync", "-aHAX", *words, f"{one}/", f"{other}/") == ""


def test_rsync_there_and_back_finds_no_difference(open_place: Path, treasures: Path, tmp_path: Path) -> None:
    """Hard links, ACLs, extended attributes, sparse files, devices, owners, and times to the nanosecond."""
    there, back = open_place / "there", tmp_path / "back"
    run("rsync", "-aHAXS", "--numeric-ids", f"{treasures}/", f"{there}/")
    run("rsync", "-aHAXS", "--numeric-ids", f"{there}/", f"{back}/")
    assert_alike(treasures, there)
    assert_alike(there, back)
    assert_alike(treasures, back)
    assert (there / "sparse").stat().st_blocks * 512 < MIB


def test_rsync_brings_a_copy_up_to_date(open_place: Path, treasures: Path) -> None:
    there = open_place / "there"
    run("rsync", "-aHAX", "--numeric-ids", f"{treasures}/", f"{there}/")
    with (treasures / "a" / "part49").open("r+b") as file:
        file.seek(3000)
        file.write(b"changed here")
    (treasures / "a" / "part48").unlink()
    (treasures / "fifo").rename(treasures / "renamed")
    (treasures / "a" / "part47").chmod(0o600)
    run("rsync", "-aHAX", "--numeric-ids", "--inplace", "--no-whole-file", "--delete", f"{treasures}/", f"{there}/")
    assert_alike(treasures, there)


def test_tar_keeps_extended_attributes_and_holes(open_place: Path, treasures: Path, tmp_path: Path) -> None:
    """Packed onto the mount, unpacked there, packed from there, unpacked elsewhere: all the same."""
    keep = ("--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner")
    there, back = open_place / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    run("tar", *keep, "-cf", open_place / "1.tar", "-C", treasures, ".")
    run("tar", *keep, "-xpf", open_place / "1.tar", "-C", there)
    assert_alike(treasures, there)
    assert (there / "sparse").stat().st_blocks * 512 < MIB
    run("tar", *keep, "-cf", tmp_path / "2.tar", "-C", there, ".")
    assert (tmp_path / "2.tar").stat().st_size < 5 * MIB
    run("tar", *keep, "-xpf", tmp_path / "2.tar", "-C", back)
    assert_alike(treasures, back)


# ── building and installing


def test_a_c_project_builds_in_parallel_and_make_knows_what_is_new(open_place: Path) -> None:
    """Objects, an archive and a program by `make -j`; and the times are right for make to see what must be done."""
    source = open_place / "project"
    _write_c_project(source, files=60)
    run("make", "-s", "-j4", cwd=source, seconds=120)
    assert run(source / "program") == f"{3 * 60 * 61 // 2}\n"
    run("make", "-q", cwd=source)
    (source / "all.h").touch()
    run("make", "-q", cwd=source, expect=1)
    run("make", "-s", "-j4", cwd=source, seconds=120)
    run("make", "-q", cwd=source)
    run("make", "-s", "clean", cwd=source)
    assert not list(source.glob("*.[oad]"))


def _write_c_project(directory: Path, *, files: int) -> None:
    """Its program adds up 3 × 1, 3 × 2 and so on, each product in a file of its own."""
    directory.mkdir()
    numbers = range(1, files + 1)
    (directory / "all.h").write_text("#pragma once\n" + "".join(f"long f{n}(long);\n" for n in numbers))
    for n in numbers:
        (directory / f"f{n}.c").write_text(f'#include "all.h"\nlong f{n}(long x) {{ return x * {n}; }}\n')
    total = " + ".join(f"f{n}(3)" for n in numbers)
    (directory / "main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%ld\\n", {total}); return 0; }}\n'
    )
    (directory / "Makefile").write_text(
        "OBJECTS = $(patsubst %.c,%.o,$(filter-out main.c,$(wildcard *.c)))\n"
        "CFLAGS = -MMD -O1 -g\n"
        "program: main.o all.a\n\t$(CC) -o $@ $^\n"
        "all.a: $(OBJECTS)\n\trm -f $@\n\tar rcs $@ $^\n"
        "clean:\n\trm -f *.o *.a *.d program\n"
        "-include *.d\n"
    )


def test_dpkg_unpacks_installs_upgrades_and_removes_a_package(open_place: Path, tmp_path: Path) -> None:
    """`dpkg -x`; then a root of its own, where dpkg unpacks, renames, syncs and keeps its database."""
    old, new = _make_package(tmp_path, "1.0"), _make_package(tmp_path, "2.0")
    run("dpkg", "-x", old, open_place / "unpacked")
    run("dpkg", "-x", old, tmp_path / "unpacked")
    assert_alike(tmp_path / "unpacked", open_place / "unpacked")

    root = open_place / "root"
    for directory in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()

    def dpkg(*words: str | Path) -> str:
        return run("dpkg", f"--root={root}", "--force-not-root", f"--log={tmp_path}/log", *words)

    dpkg("--install", old)
    assert (root / "usr/share/smallthing/version").read_text() == "1.0\n"
    dpkg("--install", new)
    assert dpkg("--verify", "smallthing") == ""
    assert (root / "usr/share/smallthing/version").read_text() == "2.0\n"
    assert not list(root.rglob("*.dpkg-*"))
    dpkg("--purge", "smallthing")
    assert not (root / "usr/share/smallthing").exists()


def _make_package(directory: Path, version: str) -> Path:
    tree = directory / f"smallthing-{version}"
    shared = tree / "usr/share/smallthing"
    shared.mkdir(parents=True)
    (shared / "version").write_text(f"{version}\n")
    for number in range(100):
        (shared / f"part{number}").write_text(f"{version} {number}\n" * number)
    (shared / "link").symlink_to("version")
    os.link(shared / "version", shared / "same")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        f"Package: smallthing\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@b>\nDescription: a small thing\n"
    )
    files = sorted(path for path in shared.iterdir() if not path.is_symlink())
    sums = (f"{run('md5sum', path).split()[0]}  {path.relative_to(tree)}\n" for path in files)
    (tree / "DEBIAN" / "md5sums").write_text("".join(sums))
    package = directory / f"smallthing-{version}.deb"
    run("dpkg-deb", "--root-owner-group", "--build", tree, package)
    return package


# ── Python's own tests


@pytest.mark.timeout(600)
def test_pythons_own_tests_pass_on_the_mount(open_place: Path) -> None:
    """Those of what Python offers for files, with TMPDIR and the working directory on the mount."""
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if subprocess.run([python, "-c", "import test.test_os"], capture_output=True).returncode != 0:
        pytest.skip(f"{python} came without its own tests")
    temporary = open_place / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    names = [f"test_{name}" for name in PYTHON_TESTS]
    said = run(
        python, "-m", "test", "-j4", "--tempdir", temporary, *names, cwd=open_place, environment=environment,
        seconds=560,
    )  # fmt: skip
    assert "Result: SUCCESS" in said
    assert not [path for path in temporary.iterdir() if path.is_file()]
