"""Redis is lost with all it had, long after the last snapshot: what changed since is on the nodes as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.test_recovery import latest_snapshot, lose_redis, recover, seq
from tests.support.cluster import Cluster, Mount, ReplicatedCluster
from tests.support.processes import wait_for
from tests.support.redis_ha import ClusterRedis, RedisGroup, SentinelRedis

KIB = 1024
SETTINGS = {"SNAPSHOT_INTERVAL_SECONDS": "3600", "SNAPSHOTS_APART_SECONDS": "1", "TAIL_INTERVAL_SECONDS": "0.2"}
EARLY, LATE, OVER = os.urandom(150 * KIB), os.urandom(200 * KIB), os.urandom(70 * KIB)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A snapshot at the start, and then not for an hour. Four nodes, 64 KiB chunks."""
    with Cluster(4, CHUNK_SIZE=str(64 * KIB), **SETTINGS) as made:
        made.mount("m")
        yield made


def wait_stored(cluster: Cluster) -> int:
    """All changes up to now are on nodes too. Returns the snapshot after which they are."""
    wanted = seq(cluster)
    wait_for(lambda: cluster.status()["changes_stored"] >= wanted, "the nodes have all changes")
    return latest_snapshot(cluster)


def tail_parts(cluster: Cluster, snapshot: int) -> list[list[Path]]:
    """The replicas of each part that lies on nodes, in order."""
    found: dict[int, list[Path]] = {}
    for node in cluster.nodes:
        for name in node.extents():
            session, _, counter = name.partition("-")
            number, part = divmod(int(counter, 16), 65536)
            if session == "0" and number == snapshot and 32768 <= part < 65535 and (path := node.path_of(name)):
                found.setdefault(part, []).append(path)
    assert sorted(found) == list(range(32768, 32768 + len(found)))
    return [paths for _, paths in sorted(found.items())]


def tree(top: Path) -> dict[str, object]:
    """All that a program can see of it but times of access."""
    rows: dict[str, object] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            stat = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            facts = (stat.st_mode, stat.st_uid, stat.st_ino, stat.st_nlink, stat.st_size, stat.st_mtime_ns)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            rows[str(path.relative_to(top))] = (*facts, content, xattrs)
    return rows


def change_everything(top: Path) -> None:
    """Every kind of change that a program can make, after the snapshot."""
    (top / "d/late").write_bytes(LATE)
    os.rename(top / "d/early", top / "moved")
    (top / "d/gone").unlink()
    os.chmod(top / "d/modes", 0o4711)
    os.setxattr(top / "d/modes", "user.note", b"later")
    with (top / "d/over").open("r+b") as file:
        file.seek(10 * KIB)
        file.write(b"!" * 60 * KIB)
    os.truncate(top / "d/cut", 5)
    os.link(top / "d/modes", top / "linked")
    os.symlink("moved", top / "symlink")
    (top / "new/deep").mkdir(parents=True)
    (top / "new/deep/file").write_bytes(b"deep")
    (top / "empty").rmdir()
    with (top / "d/appended").open("ab") as file:
        file.write(b" and more")


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
def test_what_changed_after_the_snapshot_is_as_it_was_though_a_node_is_lost_too(cluster: Cluster) -> None:
    """Names, attributes, contents; nothing in /lost+found, no SAFE mode, nothing deleted wrongly; a mount goes on."""
    mount = cluster.mounts[0]
    top = mount.path
    (top / "d").mkdir()
    (top / "empty").mkdir()
    for name, data in {"early": EARLY, "gone": EARLY, "over": OVER, "cut": OVER}.items():
        (top / "d" / name).write_bytes(data)
    for name in ("modes", "appended"):
        (top / "d" / name).write_bytes(b"short")
    snapshot = wait_stored(cluster)
    change_everything(top)
    assert wait_stored(cluster) == snapshot
    wanted = tree(top)
    assert all(len(replicas) >= 2 for replicas in tail_parts(cluster, snapshot))
    lost = cluster.nodes[3]
    lost.kill()
    for process in (cluster.naming, cluster.redis):
        process.kill()
    lose_redis(cluster)
    addresses = [node.address for node in cluster.nodes if node is not lost]
    said = recover(cluster, "--nodes", ",".join(addresses))
    assert f"Restored the snapshot of change {snapshot}" in said
    assert "0 files of 0 extents" in said
    cluster.naming.start()
    cluster.wait_alive(3)
    assert not cluster.status()["safe_mode"]
    assert cluster.read("/moved") == EARLY
    works_again(mount)
    assert tree(top) == wanted
    cluster.dcs("gc", "--resume")
    (top / "after").write_bytes(b"it goes on")
    wait_for(lambda: latest_snapshot(cluster) > snapshot, "another snapshot was taken")
    lost.start()
    cluster.wait_alive(4)
    cluster.wait_clean()
    wanted["after"] = tree(top)["after"]
    assert tree(top) == wanted
    assert latest_snapshot(cluster) > snapshot


def works_again(mount: Mount) -> None:
    """The mount's session is over with the Redis that had it: it gets another."""

    def can_write() -> bool:
        try:
            (mount.path / "probe").write_bytes(b"")
            (mount.path / "probe").unlink()
        except OSError:
            return False
        return True

    wait_for(can_write, "the mount works with the recovered volume")


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
@pytest.mark.long
def test_of_a_torn_tail_all_before_the_tear_is_restored(cluster: Cluster) -> None:
    """And said; what was written after it is in /lost+found."""
    snapshot = wait_stored(cluster)
    cluster.write("/before", EARLY)
    wait_stored(cluster)
    whole = len(tail_parts(cluster, snapshot))
    cluster.write("/behind", LATE)
    cluster.dcs("mv", "/before", "/elsewhere")
    wait_stored(cluster)
    cluster.write("/behind2", LATE)
    wait_stored(cluster)
    parts = tail_parts(cluster, snapshot)
    assert len(parts) >= whole + 2
    for process in (cluster.naming, cluster.redis):
        process.kill()
    for path in parts[whole]:
        os.truncate(path, path.stat().st_size // 2)
    lose_redis(cluster)
    said = recover(cluster)
    assert f"of {len(parts)} parts of changes after the snapshot only the first {whole} are there" in said
    cluster.naming.start()
    cluster.wait_alive(4)
    assert cluster.read("/before") == EARLY
    assert {row["name"].partition(".")[0] for row in cluster.dcs_json("ls", "/lost+found")} == {"behind", "behind2"}
    cluster.dcs("gc", "--resume")
    cluster.dcs("delete", "/before")
    cluster.wait_clean()


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
def test_where_the_newest_snapshot_cannot_be_read_an_older_one_is_restored(cluster: Cluster) -> None:
    """With its own changes and no others, and it is said. What was written later is in /lost+found; what was removed
    later is there again, with its data once that is brought back."""
    cluster.write("/removed", EARLY)
    older = wait_stored(cluster)
    cluster.write("/between", EARLY)
    wait_stored(cluster)
    cluster.naming.restart()
    wait_for(lambda: latest_snapshot(cluster) > older, "another snapshot was taken")
    newest = wait_stored(cluster)
    cluster.write("/later", LATE)
    cluster.dcs("delete", "/removed")
    cluster.wait_clean()
    assert wait_stored(cluster) == newest
    for process in (cluster.naming, cluster.redis):
        process.kill()
    spoiled = [path for node in cluster.nodes if (path := node.path_of(f"0-{newest * 65536:x}")) is not None]
    assert len(spoiled) == 3
    for path in spoiled:
        os.truncate(path, path.stat().st_size // 2)
    lose_redis(cluster)
    said = recover(cluster)
    assert f"Restored the snapshot of change {older}" in said
    assert f"the snapshot of change {newest} cannot be used: " in said
    assert "`dcs gc --undo`" in said
    cluster.naming.start()
    cluster.wait_alive(4)
    assert not cluster.status()["safe_mode"]
    assert cluster.read("/between") == EARLY
    assert {row["name"].partition(".")[0] for row in cluster.dcs_json("ls", "/lost+found")} == {"later"}
    assert "later" not in {row["name"] for row in cluster.dcs_json("ls", "/")}
    cluster.dcs("gc", "--undo")
    assert cluster.read("/removed") == EARLY
    cluster.dcs("gc", "--resume")
    cluster.wait_clean()
    assert cluster.read("/removed") == EARLY


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
def test_what_lies_elsewhere_than_an_older_snapshot_says_is_found_there(cluster: Cluster) -> None:
    """As when it was moved after that snapshot: no node that the maps name has it, and one that they do not has."""
    cluster.write("/elsewhere-by-now", LATE)
    wait_stored(cluster)
    replicas = cluster.all_replicas_of("/elsewhere-by-now")
    for process in (cluster.naming, cluster.redis, *cluster.nodes):
        process.stop()
    for extent in {replica.extent for replica in replicas}:
        paths = {replica.node: replica.path for replica in replicas if replica.extent == extent}
        (other,) = [node for node in cluster.nodes if node.number not in paths]
        first, *rest = paths.items()
        place = other.data_dir / first[1].relative_to(cluster.node(first[0]).data_dir)
        place.parent.mkdir(exist_ok=True)
        shutil.move(first[1], place)
        for _, path in rest:
            path.unlink()
    for node in cluster.nodes:
        node.start()
    lose_redis(cluster)
    count = len({replica.extent for replica in replicas})
    assert f"{count} extents lie on other nodes than the metadata said" in recover(cluster)
    cluster.naming.start()
    cluster.wait_alive(4)
    assert cluster.read("/elsewhere-by-now") == LATE
    cluster.wait_whole("/elsewhere-by-now")
    cluster.dcs("gc", "--resume")
    cluster.wait_clean()
    assert cluster.read("/elsewhere-by-now") == LATE


def lag_seconds(cluster: Cluster) -> float:
    headers = {"authorization": f"Bearer {cluster.secret}"}
    text = httpx.get(f"{cluster.naming_url}/metrics", headers=headers, trust_env=False, timeout=10).text
    (line,) = [line for line in text.splitlines() if line.startswith("dcs_naming_metadata_tail_lag_seconds ")]
    return float(line.split()[1])


@pytest.mark.timeout(240)
@pytest.mark.fault("M4")
def test_where_changes_cannot_be_followed_another_snapshot_is_taken(cluster: Cluster) -> None:
    """Redis started again; and while too few nodes are there to take them the lag is seen to grow, and then ends."""
    snapshot = wait_stored(cluster)
    cluster.redis.kill()
    cluster.redis.start()
    wait_for(lambda: latest_snapshot(cluster) > snapshot, "another snapshot was taken")
    snapshot = wait_stored(cluster)
    for node in cluster.nodes[1:]:
        node.pause()
    cluster.dcs("mkdir", "/meanwhile")
    wait_for(lambda: lag_seconds(cluster) > 2, "the lag is seen")
    assert cluster.status()["changes_stored"] < seq(cluster)
    for node in cluster.nodes[1:]:
        node.resume()
    assert wait_stored(cluster) == snapshot
    wait_for(lambda: lag_seconds(cluster) == 0, "there is no lag any more")


@pytest.mark.fault("S19")
def test_what_changes_is_stored_while_nodes_are_emptied(cluster: Cluster) -> None:
    """On the two that are left."""
    leaving = [str(node.number) for node in cluster.nodes[:2]]
    for number in leaving:
        cluster.dcs("drain", number)
    cluster.dcs("mkdir", "/while-they-are-emptied")
    wait_stored(cluster)
    for number in leaving:
        cluster.dcs("undrain", number)


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
@pytest.mark.long
def test_nodes_that_die_one_after_another_take_no_snapshot_along() -> None:
    """Each death makes another due, while there is a node to take it. In the end Redis is lost, and all but the one
    node that had nothing of the first snapshot."""
    with Cluster(4, DEAD_AFTER_SECONDS="8", **SETTINGS) as cluster:
        cluster.dcs("mkdir", "/early")
        first = wait_stored(cluster)
        holders = [node for node in cluster.nodes if f"0-{first * 65536 + 65535:x}" in node.extents()]
        (left,) = [node for node in cluster.nodes if node not in holders]
        holders[0].kill()
        wait_for(lambda: latest_snapshot(cluster) > first, "another snapshot was taken", 60)
        second = wait_stored(cluster)
        holders[1].kill()
        cluster.wait_state(holders[1], "dead")
        cluster.dcs("mkdir", "/late")
        assert wait_stored(cluster) == second, "there is no third node for another"
        holders[2].kill()
        for process in (cluster.naming, cluster.redis):
            process.kill()
        lose_redis(cluster)
        said = recover(cluster, "--nodes", left.address)
        assert f"Restored the snapshot of change {second}" in said
        cluster.naming.start()
        assert {row["name"] for row in cluster.dcs_json("ls", "/")} >= {"early", "late"}


@pytest.mark.timeout(240)
@pytest.mark.fault("M12")
@pytest.mark.long
def test_a_volume_that_was_deleted_from_redis_is_kept_as_it_was(cluster: Cluster) -> None:
    """FLUSHALL is a change like any other to a replica; to the nodes it is not."""
    cluster.write("/kept", LATE)
    wait_stored(cluster)
    cluster.ask_redis("FLUSHALL")
    wait_for(lambda: cluster.rest("GET", "/health").status_code == 503, "the loss is noticed")
    cluster.naming.stop()
    recover(cluster)
    cluster.naming.start()
    cluster.wait_alive(4)
    assert cluster.read("/kept") == LATE
    assert not cluster.status()["safe_mode"]


@pytest.mark.timeout(240)
@pytest.mark.fault("M7")
@pytest.mark.long
@pytest.mark.parametrize("group", [SentinelRedis, ClusterRedis])
def test_of_a_redis_with_replicas_one_is_followed_and_after_a_failover_another(group: type[RedisGroup]) -> None:
    """The Sentinels never take the naming server for a replica of the primary's."""

    with ReplicatedCluster(group, 3, **SETTINGS) as replicated:

        def change_and_wait(name: str) -> None:
            replicated.dcs("mkdir", name)
            wanted = replicated.status()["changes"]
            wait_for(lambda: replicated.status()["changes_stored"] >= wanted, f"the nodes know of {name}", 60)

        change_and_wait("/before")
        change_and_wait("/and-its-tail")
        primary = replicated.redises.primary()
        primary.kill()
        change_and_wait("/behind-a-failover")
        primary.start()
        change_and_wait("/and-behind-that")
        wait_for(replicated.redises.is_whole, "there are two replicas, and no more", 60)
