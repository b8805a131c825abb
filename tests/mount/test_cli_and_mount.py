"""The same files through `dcs` and through the mount."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.commands import MIB, run, sha256_of
from tests.support.processes import wait_for


def in_volume(path: Path) -> str:
    """The name that `dcs` has for a path of a mount."""
    return f"/{path.parent.name}/{path.name}"


def test_what_dcs_creates_appears_in_the_mount(mounted: Cluster, place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 * MIB + 17))
    mounted.dcs("create", source, in_volume(place / "created"))
    wait_for((place / "created").exists, "the name is seen", 3)
    assert (place / "created").stat().st_size == 20 * MIB + 17
    run("cmp", source, place / "created")


def test_what_is_copied_into_the_mount_is_seen_by_dcs(mounted: Cluster, place: Path, tmp_path: Path) -> None:
    """By read, size and delete; and what dcs deletes is gone from the mount."""
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(20 * MIB + 17))
    run("cp", source, place / "copied")
    name = in_volume(place / "copied")
    mounted.dcs("read", name, back)
    assert sha256_of(back) == sha256_of(source)
    assert str(20 * MIB + 17).encode() in mounted.dcs("size", name).stdout
    mounted.dcs("delete", name)
    wait_for(lambda: not (place / "copied").exists(), "it is gone from the mount", 3)
    mounted.dcs("size", name, expect=1)


def test_a_file_that_is_replaced_by_dcs_is_the_new_one_when_it_is_opened_again(mounted: Cluster, place: Path) -> None:
    (place / "f").write_bytes(b"by the mount")
    mounted.write(in_volume(place / "f"), b"by dcs, and longer", "--overwrite")
    wait_for(lambda: (place / "f").read_bytes() == b"by dcs, and longer", "the new content is seen", 3)


def test_odd_names_are_the_same_on_both_sides(mounted: Cluster, place: Path) -> None:
    name = b"\xff new\nline \xc3\xbc"
    Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(b"odd")
    assert mounted.read(os.fsencode(f"/{place.name}/") + name) == b"odd"


def test_explain_names_a_file_of_each_replica_of_what_the_mount_wrote(mounted: Cluster, place: Path) -> None:
    (place / "f").write_bytes(b"content")
    replicas = mounted.all_replicas_of(in_volume(place / "f"))
    assert len({replica.node for replica in replicas}) == 3
    for replica in replicas:
        assert replica.path.read_bytes()[: replica.length] == b"content"
