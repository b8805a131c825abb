"""dcs create, read, size, delete: what goes in comes out, whole or not at all."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

KIB = 1024
MIB = 1024 * KIB


def random_bytes(length: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("chunk", [KIB, MIB])
@pytest.mark.parametrize(("chunks", "extra"), [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (3, 5)])
def test_any_length_comes_back(shared_cluster: Cluster, tmp_path: Path, chunk: int, chunks: int, extra: int) -> None:
    """Empty, one byte, and around the ends of chunks; to a file and to a pipe."""
    data = random_bytes(chunks * chunk + extra)
    name = f"/lengths-{chunk}-{chunks}-{extra}"
    (tmp_path / "local").write_bytes(data)
    shared_cluster.dcs("create", "--chunk-size", str(chunk), tmp_path / "local", name)
    shared_cluster.dcs("read", name, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert shared_cluster.read(name) == data
    assert shared_cluster.dcs("size", name).stdout == b"%d\n" % len(data)


def test_standard_input_and_output(shared_cluster: Cluster) -> None:
    """- in place of a local name; a pipe has no size beforehand."""
    data = random_bytes(5 * MIB + 3)
    shared_cluster.dcs("create", "-", "piped", stdin=data)
    assert shared_cluster.dcs("read", "piped", "-").stdout == data


def test_more_chunks_than_one_commit_takes(shared_cluster: Cluster) -> None:
    """700 chunks of 1 KiB are three commits and three pages of the map."""
    data = random_bytes(700 * KIB - 3)
    shared_cluster.write("/many", data, "--chunk-size", "1KiB")
    assert shared_cluster.read("/many") == data
    assert len(shared_cluster.replicas_of("/many")) == 3 * 700


def test_files_are_stored_as_their_directory_asks_for(shared_cluster: Cluster) -> None:
    """Chunk size and copies: by `dcs setchunk` and `dcs setrep`, for what `dcs create` makes there and below."""
    shared_cluster.dcs("mkdir", "-p", "/layout/sub")
    said = shared_cluster.dcs("setchunk", "-R", "4K", "/layout").stdout
    assert said == b"what is made in 2 directories has chunks of 4096 bytes\n"
    shared_cluster.dcs("setrep", "2", "/layout/sub")
    shared_cluster.dcs("mkdir", "/layout/sub/new")
    data = random_bytes(10 * KIB)
    for directory, copies in (("/layout", 3), ("/layout/sub", 2), ("/layout/sub/new", 2)):
        shared_cluster.write(f"{directory}/f", data)
        assert shared_cluster.read(f"{directory}/f") == data
        told = shared_cluster.dcs_json("explain", f"{directory}/f")
        assert (told["chunk_size"], told["replicas_wanted"]) == (4 * KIB, copies)
        assert len(shared_cluster.replicas_of(f"{directory}/f")) == 3 * copies
    shared_cluster.write("/layout/chosen", data, "--chunk-size", "8K")
    assert shared_cluster.dcs_json("stat", "/layout/chosen")["chunk_size"] == 8 * KIB
    shared_cluster.dcs("setchunk", "1MiB", "/layout")
    assert shared_cluster.dcs_json("stat", "/layout")["chunk_size"] == MIB
    assert shared_cluster.dcs_json("stat", "/layout/f")["chunk_size"] == 4 * KIB, "that of a file stays"


def test_large_chunks(shared_cluster: Cluster) -> None:
    """64 MiB, the largest there is, read in several pieces."""
    data = random_bytes(70 * MIB)
    shared_cluster.write("/large", data, "--chunk-size", "64MiB")
    assert shared_cluster.read("/large") == data
    assert {replica.length for replica in shared_cluster.replicas_of("/large")} == {64 * MIB, 6 * MIB}


def test_every_extent_is_on_three_nodes(shared_cluster: Cluster) -> None:
    """And each copy's file begins with the data itself."""
    data = random_bytes(3 * MIB)
    shared_cluster.write("/copies", data, "--chunk-size", "1MiB")
    replicas = shared_cluster.replicas_of("/copies")
    assert len(replicas) == 9
    for replica in replicas:
        assert replica.path.read_bytes()[:MIB] == data[replica.chunk * MIB : (replica.chunk + 1) * MIB]


def test_a_sparse_file_stays_sparse(shared_cluster: Cluster, tmp_path: Path) -> None:
    """Holes of the source are stored nowhere and are holes in the copy."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"data")
        file.truncate(1000 * MIB)
    shared_cluster.dcs("create", "--chunk-size", "1MiB", source, "/sparse")
    assert len(shared_cluster.replicas_of("/sparse")) == 3
    shared_cluster.dcs("read", "/sparse", copy)
    assert copy.stat().st_size == 1000 * MIB
    assert copy.stat().st_blocks * 512 <= MIB
    with copy.open("rb") as file:
        file.seek(20 * MIB - 4)
        assert file.read(12) == b"\0\0\0\0data\0\0\0\0"


def test_a_name_that_exists_is_kept_without_overwrite(shared_cluster: Cluster) -> None:
    """Said in one line; with --overwrite, replaced in one step, and its old extents go."""
    shared_cluster.write("/taken", b"old")
    said = shared_cluster.dcs("create", "-", "/taken", stdin=b"new", expect=1)
    assert said.stderr == b"dcs: /taken: File exists; --overwrite replaces a file\n"
    assert shared_cluster.read("/taken") == b"old"
    shared_cluster.write("/taken", b"new", "--overwrite")
    assert shared_cluster.read("/taken") == b"new"


def test_a_directory_is_never_overwritten(shared_cluster: Cluster) -> None:
    shared_cluster.dcs("mkdir", "/keep")
    shared_cluster.dcs("create", "--overwrite", "-", "/keep", stdin=b"x", expect=1)
    assert shared_cluster.dcs_json("stat", "/keep")["mode"].startswith("d")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"/bytes-\xff\xfe", "/bytes-\\xff\\xfe"),
        (b"/line\nbreak", "/line\\x0abreak"),
        (b"/\x1b[31mred", "/\\x1b[31mred"),
        (b"/back\\slash", "/back\\\\slash"),
        ("/äöü €".encode(), "/äöü €"),
    ],
)
def test_names_are_any_bytes_and_shown_escaped(shared_cluster: Cluster, name: bytes, shown: str) -> None:
    """The bytes given are the name; what is printed is printable and can be told apart."""
    environment = {"LC_ALL": "C.UTF-8"}
    shared_cluster.write(name, b"found")
    assert shared_cluster.read(name) == b"found"
    listed = shared_cluster.dcs("ls", "/", environment=environment).stdout.decode().splitlines()
    assert shown[1:] in listed
    assert shared_cluster.dcs_json("stat", name)["name"] == shown
    shared_cluster.dcs("delete", name)
    said = shared_cluster.dcs("read", name, "-", expect=1, environment=environment).stderr.decode()
    assert said == f"dcs: {shown}: No such file or directory\n"


def test_modes(shared_cluster: Cluster, tmp_path: Path) -> None:
    """A file's permissions go with it, less the umask; its owner is the caller."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(b"#!/bin/sh\n")
    source.chmod(0o775)
    shared_cluster.dcs("create", source, "/script")
    found = shared_cluster.dcs_json("stat", "/script")
    assert (found["permissions"], found["uid"], found["gid"]) == ("0775", os.getuid(), os.getgid())
    umask = os.umask(0o022)
    try:
        shared_cluster.dcs("read", "/script", copy)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o755


def test_delete(shared_cluster: Cluster) -> None:
    shared_cluster.write("/gone", b"x")
    shared_cluster.dcs("delete", "/gone")
    for command in (("read", "/gone", "-"), ("size", "/gone"), ("delete", "/gone")):
        assert shared_cluster.dcs(*command, expect=1).stderr == b"dcs: /gone: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "/nowhere/local", "/x"), "/nowhere/local: No such file or directory"),
        (("create", "/etc", "/x"), "/etc: Is a directory"),
        (("create", "/dev/null", "/no/such/dir"), "/no/such: No such file or directory"),
        (("create", "/dev/null", "/"), "/: Is a directory"),
        (("read", "/no/such", "-"), "/no/such: No such file or directory"),
        (("read", "/", "-"), "/: Is a directory"),
        (("size", "/"), "/: Is a directory"),
        (("delete", "/"), "/: Is a directory"),
        (("setrep", "-R", "2", ""), "an empty name is none; the top directory is /"),
        (
            ("setchunk", "1M", "/here"),
            "/here: a file's chunk size is fixed when it is made; set its directory's, and copy the file",
        ),
        (("rmdir", "/"), "/: Device or resource busy"),
        (("read", "/here", "/nowhere/local"), "/nowhere: No such file or directory"),
        (("ls", "/../etc"), "..: a name cannot be empty, . or .."),
        (("stat", "/" + "n" * 256), f"{'n' * 256}: a name has at most 255 bytes"),
    ],
)
def test_a_mistake_is_one_line(shared_cluster: Cluster, arguments: tuple[str, ...], said: str) -> None:
    shared_cluster.write("/here", b"", "--overwrite")
    assert shared_cluster.dcs(*arguments, expect=1).stderr.decode() == f"dcs: {said}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "only-one"), "Missing argument 'NAME' (see dcs create --help)"),
        (("create", "--chunk-size", "1000", "-", "x"), "Invalid value for '--chunk-size': a power of two from 1KiB"),
        (("setchunk", "3M", "/"), "Invalid value for 'SIZE': a power of two from 1KiB"),
        (("hopeless",), "No such command 'hopeless' (see dcs --help)"),
        ((), "Missing command (see dcs --help)"),
        (("up",), "Invalid value: give a MOUNTPOINT, or --stop, or --status (see dcs up --help)"),
    ],
)
def test_wrong_usage_is_one_line_too(shared_cluster: Cluster, arguments: tuple[str, ...], said: str) -> None:
    done = shared_cluster.dcs(*arguments, expect=2)
    assert done.stderr.decode().startswith(f"dcs: {said}")
    assert done.stderr.count(b"\n") == 1


def test_a_read_does_not_replace_a_device_or_pipe(shared_cluster: Cluster, tmp_path: Path) -> None:
    """Only a regular file is replaced; anything else that is there is written to."""
    shared_cluster.write("/through", b"through the pipe")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        shared_cluster.dcs("read", "/through", pipe)
        assert reader.communicate(timeout=10)[0] == b"through the pipe"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_reader_that_goes_away_is_no_trouble(shared_cluster: Cluster) -> None:
    """As `dcs read big - | head` does: no message, and the status that a shell gives for SIGPIPE."""
    shared_cluster.write("/big", random_bytes(4 * MIB))
    with shared_cluster.start_dcs("read", "/big", "-") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", ["ls /", "nodes --json"])
def test_a_listing_that_nobody_reads_is_no_trouble(shared_cluster: Cluster, command: str) -> None:
    """As `dcs ls | head -1`; whether a line cannot be written, or all of it at the end."""
    shared_cluster.write("/listed", b"", "--overwrite")
    with shared_cluster.start_dcs(*command.split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(30) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_leaves_nothing(make_cluster: MakeCluster, number: signal.Signals) -> None:
    """It ends at once, though its input never does; what it had stored goes, and nobody saw it."""
    cluster = make_cluster()
    with cluster.start_dcs("create", "--chunk-size", "1MiB", "-", "/half") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(random_bytes(24 * MIB))
        process.stdin.flush()
        wait_for(lambda: any(node.extents() for node in cluster.nodes), "chunks are being stored")
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert process.stderr.read() == b""
    assert cluster.dcs("ls").stdout == b""
    assert cluster.status()["sessions"] == 0
    cluster.wait_clean()
    assert not any(node.extents() for node in cluster.nodes)


def test_an_interrupted_read_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Neither the file nor what was written beside it."""
    cluster.write("/big", random_bytes(4 * MIB), "--chunk-size", "1MiB")
    for node in cluster.nodes:
        node.pause()
    with cluster.start_dcs("read", "/big", tmp_path / "copy") as process:
        wait_for(lambda: list(tmp_path.iterdir()), "the temporary file is there")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    for node in cluster.nodes:
        node.resume()


def test_a_source_that_grows_meanwhile_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    """The upload is held up, the file grows, the upload goes on: it is said, and nothing is created."""
    source = tmp_path / "log"
    source.write_bytes(random_bytes(40 * MIB))
    for node in cluster.nodes:
        node.pause()
    with cluster.start_dcs("create", "--chunk-size", "1MiB", source, "/log") as process:
        assert process.stderr is not None
        wait_for(lambda: cluster.status()["sessions"] == 1, "the upload has begun")
        with source.open("ab") as file:
            file.write(b"one more line\n")
        for node in cluster.nodes:
            node.resume()
        said = process.stderr.read().decode()
        assert process.wait(30) == 1
    assert said.startswith(f"dcs: {source} changed")
    assert said.endswith("nothing was created\n")
    assert cluster.dcs("ls").stdout == b""
    cluster.wait_clean()


def test_memory_stays_bounded(shared_cluster: Cluster, tmp_path: Path) -> None:
    """A file of 600 MiB goes through 150 MiB, there and back."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        for seed in range(600):
            file.write(random_bytes(MIB, seed))
    # VmHWM and not getrusage, whose maximum counts the process that forked.
    program = "import re, runpy, sys\ntry: runpy.run_module('servers.admin', run_name='__main__', alter_sys=True)\n"
    program += "finally: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)"
    for arguments in (("create", source, "/huge"), ("read", "/huge", tmp_path / "copy")):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], env=shared_cluster.environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split()[-1]) < 150 * KIB
    assert subprocess.run(["cmp", source, tmp_path / "copy"]).returncode == 0


def test_at_the_end_nothing_is_missing_or_left_over(shared_cluster: Cluster) -> None:
    """After all the tests above."""
    shared_cluster.wait_clean()
