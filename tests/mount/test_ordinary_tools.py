"""Programs that know nothing of us do on the mount what they do on any disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, Mount
from tests.support.commands import run

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
PACKAGES = (
    *(
        "asyncio",
        "ctypes",
        "distutils",
        "email",
        "encodings",
        "html",
        "http",
        "importlib",
        "json",
        "lib2to3",
        "sqlite3",
    ),
    *("logging", "multiprocessing", "tkinter", "tomllib", "unittest", "urllib", "wsgiref", "xml", "xmlrpc", "zoneinfo"),
)
"""Of the standard library: some 500 files; the compiled forms of some of them are another 100."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of Python's standard library, with links of both kinds, old times and odd modes."""
    directory = tmp_path_factory.mktemp("original") / "lib"
    directory.mkdir()
    for name in PACKAGES:
        if (STANDARD_LIBRARY / name).is_dir():
            without = None if name == "asyncio" else shutil.ignore_patterns("__pycache__")
            shutil.copytree(STANDARD_LIBRARY / name, directory / name, symlinks=True, ignore=without)
    (directory / "link").symlink_to("asyncio/events.py")
    (directory / "dangling").symlink_to("/nowhere at all")
    os.link(directory / "asyncio" / "events.py", directory / "hard link")
    (directory / "json" / "decoder.py").chmod(0o600)
    (directory / "ünicode \n name").write_text("odd")
    os.utime(directory / "json" / "encoder.py", ns=(1, 1_234_567_890_123_456_789))
    return directory


def listing(directory: Path) -> list[str]:
    """Every name with its type, mode, owner, time and, but for directories, links, size and target."""
    words = run(
        "find", ".", "(", "-type", "d", "-printf", r"%p %y %m %U %T@\0", ")", "-o",
        "-printf", r"%p %y %m %U %T@ %n %s %l\0", cwd=directory,
    )  # fmt: skip
    return sorted(words.split("\0"))


def test_a_copied_tree_is_the_same_before_and_after_a_remount(mounted: Cluster, tree: Path) -> None:
    """`cp -a` and `diff -r`: contents, and modes, times, owners and links besides."""
    mount = mounted.mount("copies")
    run("cp", "-a", tree, mount.path / "lib", seconds=120)
    run("diff", "-r", "--no-dereference", tree, mount.path / "lib", seconds=120)
    assert listing(mount.path / "lib") == listing(tree)
    mount.remount()
    run("diff", "-r", "--no-dereference", tree, mount.path / "lib", seconds=120)
    assert listing(mount.path / "lib") == listing(tree)
    assert len(listing(tree)) > 400


def test_tar_unpacks_find_finds_and_rm_removes(place: Path, tree: Path, tmp_path: Path) -> None:
    run("tar", "--format=posix", "-cf", tmp_path / "lib.tar", "-C", tree.parent, tree.name)
    run("tar", "-xf", tmp_path / "lib.tar", "-C", place, seconds=120)
    assert listing(place / "lib") == listing(tree)
    expected = sorted(run("find", ".", "-name", "*.py", "-size", "+20k", cwd=tree).split())
    assert sorted(run("find", ".", "-name", "*.py", "-size", "+20k", cwd=place / "lib").split()) == expected
    assert expected
    run("rm", "-r", place / "lib", seconds=120)
    assert list(place.iterdir()) == []


def test_tar_reads_back_what_it_packed_onto_the_mount(place: Path, tree: Path, tmp_path: Path) -> None:
    run("tar", "--format=posix", "-czf", place / "lib.tgz", "-C", tree.parent, tree.name)
    run("tar", "-xzf", place / "lib.tgz", "-C", tmp_path)
    run("diff", "-r", "--no-dereference", tree, tmp_path / "lib")


def test_sed_edits_in_place(place: Path) -> None:
    (place / "settings").write_text("color = red\n" * 1000)
    (place / "settings").chmod(0o640)
    run("sed", "-i", "s/red/blue/", place / "settings")
    assert (place / "settings").read_text() == "color = blue\n" * 1000
    assert (place / "settings").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in place.iterdir()] == ["settings"]


def test_git_commits_and_finds_its_repository_sound(place: Path, mount: Mount) -> None:
    """A repository made, committed to, packed and cloned; and a clone of it elsewhere is the same."""
    repository = place / "repository"
    shutil.copytree(STANDARD_LIBRARY / "json", repository / "json")
    environment = {
        **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip

    def git(*words: str | Path) -> str:
        return run("git", *words, cwd=repository, environment=environment)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (repository / "json" / "decoder.py").write_text("changed\n")
    (repository / "json" / "tool.py").unlink()
    git("commit", "--quiet", "-a", "-m", "second")
    git("gc", "--quiet")
    git("fsck", "--strict", "--full")
    assert git("status", "--porcelain") == ""
    assert git("log", "--format=%s").split() == ["second", "first"]
    git("clone", "--quiet", "--no-hardlinks", ".", place / "clone")
    run("diff", "-r", "--exclude=.git", repository, place / "clone")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_inserts_and_its_database_is_sound(place: Path, journal: str) -> None:
    """Transactions, also one rolled back; `wal` shares memory through a mapped file."""
    database = sqlite3.connect(place / "a.db", timeout=20)
    assert database.execute(f"pragma journal_mode = {journal}").fetchone()[0] == journal
    database.execute("create table t (n integer primary key, text)")
    for number in range(100):
        with database:
            database.execute("insert into t values (?, ?)", (number, "x" * number * 10))
    database.execute("delete from t where n >= 50")
    database.rollback()
    database.close()
    database = sqlite3.connect(place / "a.db", timeout=20)
    assert database.execute("pragma integrity_check").fetchone()[0] == "ok"
    assert database.execute("select count(*), sum(length(text)) from t").fetchone() == (100, 10 * 99 * 100 // 2)
    database.close()


def test_pip_installs_a_package_onto_the_mount_that_then_works(place: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "smallthing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("smallthing/__init__.py", "from smallthing.part7 import VALUE\n")
        for number in range(20):
            archive.writestr(f"smallthing/part{number}.py", f"VALUE = {number * 6}\n")
        info = "smallthing-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: smallthing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--root-user-action=ignore", "--target", place / "site", wheel, seconds=120)  # fmt: skip
    program = "import sys; sys.path.insert(0, sys.argv[1]); import smallthing; print(smallthing.VALUE)"
    assert run(sys.executable, "-c", program, place / "site") == "42\n"


def test_a_script_on_the_mount_runs(place: Path) -> None:
    script = place / "hello.sh"
    script.write_text('#!/bin/sh\necho "hello from $0"\n')
    script.chmod(0o755)
    assert run(script) == f"hello from {script}\n"
    script.chmod(0o644)
    with pytest.raises(PermissionError):
        run(script)


def test_a_program_on_the_mount_runs(place: Path) -> None:
    """The kernel maps programs into memory."""
    shutil.copy("/bin/true", place / "true")
    run(place / "true")
