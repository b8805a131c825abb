"""dcs ls, stat, mkdir, rmdir, mv: the tree without a mount."""

from __future__ import annotations

import os

from tests.support.cluster import Cluster


def listed(cluster: Cluster, path: str) -> list[str]:
    return cluster.dcs("ls", path).stdout.decode().splitlines()


def test_a_directory_is_listed_by_name(shared_cluster: Cluster) -> None:
    """In the order of names, whatever the order of making; a file is listed as itself."""
    shared_cluster.dcs("mkdir", "/list")
    for name in ("c", "a", "b"):
        shared_cluster.write(f"/list/{name}", name.encode() * 5)
    assert listed(shared_cluster, "/list") == ["a", "b", "c"]
    assert listed(shared_cluster, "list/a") == ["a"]
    rows = shared_cluster.dcs_json("ls", "/list")
    assert [(row["name"], row["size"], row["links"]) for row in rows] == [("a", 5, 1), ("b", 5, 1), ("c", 5, 1)]
    long = shared_cluster.dcs("ls", "-l", "/list").stdout.decode().splitlines()
    assert len(long) == 4
    assert long[1].startswith("-rw-r--r--")
    assert long[1].split()[-1] == "a"


def test_an_empty_directory_lists_nothing(shared_cluster: Cluster) -> None:
    shared_cluster.dcs("mkdir", "/empty")
    assert listed(shared_cluster, "/empty") == []
    assert shared_cluster.dcs_json("ls", "/empty") == []


def test_stat_shows_what_is_known(shared_cluster: Cluster) -> None:
    shared_cluster.write("/stat", b"12345", "--chunk-size", "1KiB")
    found = shared_cluster.dcs_json("stat", "stat")
    assert (found["name"], found["size"], found["chunk_size"], found["replicas"]) == ("/stat", 5, 1024, 3)
    assert (found["uid"], found["links"], found["stored_bytes"]) == (os.getuid(), 1, 5)
    assert "chunk size" in shared_cluster.dcs("stat", "/stat").stdout.decode()
    root = shared_cluster.dcs_json("stat", "/")
    assert (root["inode"], root["name"]) == (1, "/")


def test_mkdir(shared_cluster: Cluster) -> None:
    """Parents only with -p, which does not mind what is there already."""
    assert b"No such file" in shared_cluster.dcs("mkdir", "/p/q/r", expect=1).stderr
    shared_cluster.dcs("mkdir", "-p", "/p/q/r")
    shared_cluster.dcs("mkdir", "-p", "/p/q/r")
    assert listed(shared_cluster, "/p/q") == ["r"]
    assert shared_cluster.dcs("mkdir", "/p", expect=1).stderr == b"dcs: /p: File exists\n"
    shared_cluster.write("/p/file", b"")
    assert shared_cluster.dcs("mkdir", "-p", "/p/file", expect=1).stderr == b"dcs: /p/file: File exists\n"
    assert shared_cluster.dcs("mkdir", "-p", "/p/file/x", expect=1).stderr == b"dcs: /p/file: File exists\n"


def test_rmdir(shared_cluster: Cluster) -> None:
    shared_cluster.dcs("mkdir", "-p", "/r/s")
    assert shared_cluster.dcs("rmdir", "/r", expect=1).stderr == b"dcs: /r: Directory not empty\n"
    shared_cluster.dcs("rmdir", "/r/s")
    shared_cluster.dcs("rmdir", "/r")
    assert "r" not in listed(shared_cluster, "/")


def test_mv(shared_cluster: Cluster) -> None:
    """To another name, into a directory, over a file unless -n, and never into itself."""
    shared_cluster.dcs("mkdir", "-p", "/m/sub")
    shared_cluster.write("/m/a", b"a")
    shared_cluster.write("/m/b", b"b")
    shared_cluster.dcs("mv", "/m/a", "/m/sub")
    assert shared_cluster.read("/m/sub/a") == b"a"
    assert shared_cluster.dcs("mv", "-n", "/m/sub/a", "/m/b", expect=1).stderr == b"dcs: /m/b: File exists\n"
    shared_cluster.dcs("mv", "/m/sub/a", "/m/b")
    assert shared_cluster.read("/m/b") == b"a"
    assert listed(shared_cluster, "/m") == ["b", "sub"]
    assert shared_cluster.dcs("mv", "/m", "/m/sub", expect=1).stderr == b"dcs: /m/sub: Invalid argument\n"
    assert shared_cluster.dcs("mv", "/m/nope", "/m/x", expect=1).stderr == b"dcs: /m/nope: No such file or directory\n"
