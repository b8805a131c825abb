"""What the background jobs delete, and what they never do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, SessionNumber, extent_id, extent_text, parse_extent_text
from servers.protocol.naming_api import operation, pack_segments, unpack_attributes
from tests.conftest import MakeCluster
from tests.support.cluster import Cluster, Node
from tests.support.ops import Ops
from tests.support.processes import CHECKOUT, wait_for
from tests.support.proxy import Proxy

LONGER_THAN_ALL_GRACES = 6.0


@pytest.fixture
def ops(shared_cluster: Cluster) -> Iterator[Ops]:
    with Ops(shared_cluster.naming_url, shared_cluster.secret) as made:
        made.open_session()
        yield made


def put(cluster: Cluster, node: Node, extent: ExtentId, data: bytes) -> None:
    answer = httpx.put(
        f"http://{node.address}/v1/extents/{extent_text(extent)}", content=data, trust_env=False,
        headers={"authorization": f"Bearer {cluster.secret}"},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text


def has(node: Node, extent: ExtentId) -> bool:
    return extent_text(extent) in node.extents()


def run_tool(cluster: Cluster, node: Node, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "servers.storage.tools.gc", "--data-dir", str(node.data_dir), *options]
    return subprocess.run(command, env=cluster.environment, cwd=CHECKOUT, capture_output=True, timeout=60)


def test_what_no_session_will_commit_is_deleted(shared_cluster: Cluster, ops: Ops) -> None:
    """After its grace; what a living session uploaded stays, until that session is over."""
    node = shared_cluster.nodes[0]
    never, flying = extent_id(SessionNumber(999_999), 1), extent_id(ops.session, 1)
    put(shared_cluster, node, never, b"nobody's")
    put(shared_cluster, node, flying, b"ours, soon")
    wait_for(lambda: not has(node, never), "garbage is deleted")
    assert has(node, flying)
    ops.ask("session_close")
    wait_for(lambda: not has(node, flying), "what the session left is deleted")


@pytest.mark.fault("N8")
def test_what_is_committed_stays_whatever_became_of_the_session(shared_cluster: Cluster, ops: Ops) -> None:
    """Also when it is committed by another session after the first was lost, and then never again once it is gone; nor
    does it come back when the store is replayed."""
    node, lost = shared_cluster.nodes[0], ops.session
    kept, left = extent_id(lost, 1), extent_id(lost, 2)
    for extent in (kept, left):
        put(shared_cluster, node, extent, b"0123456789")
    ops.ask("session_close")
    ops.open_session()
    made = ops.make("create", parent=1, name=b"kept", mode=0o644, uid=0, gid=0)
    commits = [
        pack_segments([Segment(0, extent, 0, 10, (node.number,))])  # type: ignore[arg-type]  # any number will do
        for extent in (kept, left)
    ]
    (reply,) = ops.batch([made])
    assert reply is not None
    ino = unpack_attributes(reply[1], reply[2]).ino
    chunk = {"ino": ino, "end": 10, "synced": True}
    assert ops.batch([ops.make("commit", chunks=[0, commits[0]], **chunk)])[0][0] == 0  # type: ignore[index]
    wait_for(lambda: not has(node, left), "what was left is deleted")
    late = ops.batch([ops.make("commit", chunks=[0, commits[1]], **chunk)])[0]
    assert late == [116], "what was deleted as garbage cannot be committed any more"
    time.sleep(LONGER_THAN_ALL_GRACES)  # That something does not happen is no fact to wait for.
    assert has(node, kept)
    ops.batch([ops.make("unlink", parent=1, name=b"kept")])
    wait_for(lambda: not has(node, kept), "it is deleted with the file")
    put(shared_cluster, node, kept, b"0123456789")
    wait_for(lambda: not has(node, kept), "what is stored again, late, is deleted again")


def test_a_copy_where_no_map_looks_for_it_is_deleted_and_the_others_stay(shared_cluster: Cluster) -> None:
    """A node that hung stores it when its writer has long since stored it elsewhere."""
    cluster = shared_cluster
    cluster.dcs("mkdir", "/once")
    cluster.dcs("setrep", "1", "/once")
    cluster.write("/once/f", b"stored")
    (named,) = cluster.replicas_of("/once/f")
    late = next(node for node in cluster.nodes if node.number != named.node)
    put(cluster, late, parse_extent_text(named.extent), b"stored")
    assert cluster.dcs_json("fsck")["surplus"] == 1
    wait_for(lambda: named.extent not in late.extents(), "it is noticed, and deleted after its grace", 60)
    assert named.path.exists()
    assert cluster.dcs_json("fsck")["surplus"] == 0
    cluster.dcs("delete", "/once/f")


def test_deletions_wait_for_a_node_that_is_away(make_cluster: MakeCluster) -> None:
    """The order is kept, and given again until the node says that the extent is gone."""
    cluster = make_cluster(3)
    cluster.write("/a", b"x" * 1000)
    away = cluster.nodes[0]
    away.kill()
    cluster.dcs("delete", "/a")
    wait_for(lambda: not any(n.extents() for n in cluster.nodes[1:]), "the others have deleted it")
    assert away.extents()
    assert cluster.status()["deletions_pending"] == 1
    away.start()
    wait_for(lambda: not away.extents(), "the last replica is deleted", 60)
    wait_for(lambda: cluster.status()["deletions_pending"] == 0, "nothing is pending")


def test_the_servers_own_session_is_replaced_when_it_is_lost(shared_cluster: Cluster) -> None:
    """As after a long absence: the next change over REST opens another."""
    cluster = shared_cluster
    assert cluster.rest("POST", "/files/init", {"name": "one"}).status_code == 201
    for session in cluster.ask_redis("ZRANGE", "dcs:{main}:sessions", "0", "-1").split():
        cluster.ask_redis("ZADD", "dcs:{main}:sessions", "1", session)
    wait_for(lambda: cluster.status()["sessions"] == 0, "all sessions are forgotten")
    found = cluster.rest("POST", "/files/init", {"name": "two"})
    assert found.status_code == 201
    placed = cluster.rest("POST", f"/files/{found.json()['file_id']}/chunks", {"index": 0, "length": 5})
    assert placed.status_code == 201


def test_an_operation_that_reads_needs_no_session(shared_cluster: Cluster) -> None:
    with Ops(shared_cluster.naming_url, shared_cluster.secret) as stranger:
        assert stranger.batch([operation("getattr", 0, ino=1)])[0][0] == 0  # type: ignore[index]


@pytest.fixture(scope="module")
def careful() -> Iterator[Cluster]:
    """Two nodes; more than 5 extents of garbage on one are suspicious, or more than half of them."""
    settings = {"GARBAGE_BRAKE_EXTENTS": "5", "GARBAGE_BRAKE_SHARE": "0.05", "GARBAGE_GRACE_SECONDS": "1"}
    with Cluster(nodes=2, REPLICATION_FACTOR="2", **settings) as made:
        made.write("/needed", b"so that one more is not all there is")
        yield made


def test_the_brake_stops_a_suspicious_run_until_it_is_confirmed(careful: Cluster) -> None:
    """And `dcs gc --dry-run` says what would go, and why, while the status says that it waits."""
    node = careful.nodes[0]
    garbage = [extent_id(SessionNumber(888_888), n) for n in range(1, 11)]
    for extent in garbage:
        put(careful, node, extent, b"nobody's")
    wait_for(lambda: "10 of 11" in careful.status()["garbage_brake"], "the brake has stopped a run")
    assert all(has(node, extent) for extent in garbage)
    assert "dcs gc --confirm" in careful.dcs("status").stdout.decode()
    told = careful.dcs_json("gc", "--dry-run")
    assert {row["extent"] for row in told["doomed"]} == {extent_text(extent) for extent in garbage}
    assert all(row["verdict"] == "garbage" and "888888" in row["why"] for row in told["doomed"])
    assert b"10 would be deleted" in careful.dcs("gc", "--dry-run").stdout
    assert all(has(node, extent) for extent in garbage)
    careful.dcs("gc", "--confirm")
    wait_for(lambda: not any(has(node, extent) for extent in garbage), "what was confirmed is deleted")
    wait_for(lambda: not careful.status()["garbage_brake"], "nothing waits to be confirmed")
    wait_for(lambda: careful.status()["garbage"] == 0, "no garbage is left")
    careful.ask_redis("HDEL", "dcs:{main}:volume", "brake_off_ms")


def test_nobody_passes_the_brake_by_hand(make_cluster: MakeCluster) -> None:
    """Neither before the collector has counted what there is nor while it waits for somebody, and it is said."""
    settings = {"GARBAGE_INTERVAL_SECONDS": "3600", "GARBAGE_BRAKE_SHARE": "0.05", "GARBAGE_GRACE_SECONDS": "0.2"}
    cluster = make_cluster(1, REPLICATION_FACTOR="1", **settings)
    node = cluster.nodes[0]
    for n in range(3):
        put(cluster, node, extent_id(SessionNumber(888_888), n), b"nobody's")
    held = node.extents()

    def ask_for_it(*, refused: bool) -> None:
        for _ in range(1 if refused else 2):  # The first time it is noted since when it is garbage.
            found = cluster.dcs_json("fsck", "--repair", expect=1)
            assert len(found["garbage"]) == 3
            assert ["dcs gc --confirm" in said for said in found["stopped"]] == [True] * refused
            done = run_tool(cluster, node, "--delete")
            assert done.stdout.endswith(b"0 deleted\n")
            assert (done.returncode, b"dcs gc --confirm" in done.stderr) == (int(refused), refused)
            time.sleep(0.3)  # Until the grace is over.
        assert node.extents() == held

    ask_for_it(refused=False)
    cluster.naming.environment["GARBAGE_INTERVAL_SECONDS"] = "1"
    cluster.naming.restart()
    wait_for(lambda: "3 of 3" in cluster.status()["garbage_brake"], "the brake has stopped a run")
    ask_for_it(refused=True)
    assert b"not deleted: node 1: 3 of 3" in cluster.dcs("fsck", "--repair", expect=1).stdout
    cluster.dcs("gc", "--confirm")
    wait_for(lambda: not node.extents(), "what was confirmed is deleted")


def test_deletions_are_undone_and_held_until_they_may_go_on(careful: Cluster) -> None:
    """What the nodes deleted is there again, whole; nothing goes before --resume."""
    careful.write("/f", b"not so fast" * 100)
    replicas = careful.replicas_of("/f")
    assert len(replicas) == 2
    before = {replica.path: replica.path.read_bytes() for replica in replicas}
    careful.dcs("delete", "/f")
    wait_for(lambda: not any(path.exists() for path in before), "the file's extent is deleted")
    (extent,) = {replica.extent for replica in replicas}
    done = careful.dcs_json("gc", "--undo", extent)
    assert sorted(done["restored"].values()) == [1, 1]
    assert {path: path.read_bytes() for path in before} == before
    time.sleep(LONGER_THAN_ALL_GRACES)  # That something does not happen is no fact to wait for.
    assert all(path.exists() for path in before)
    assert careful.status()["deletions_held"]
    careful.dcs("gc", "--resume")
    wait_for(lambda: not any(path.exists() for path in before), "the extent, which nobody needs, is deleted again")


def test_surplus_copies_that_wait_for_their_deletion_are_shown(careful: Cluster) -> None:
    """With why and when; and they go."""
    careful.write("/fewer", b"in one copy soon")
    careful.dcs("gc", "--hold", "so that it can be seen")
    careful.dcs("setrep", "1", "/fewer")

    def surplus() -> list[dict[str, object]]:
        return [row for row in careful.dcs_json("gc", "--dry-run")["doomed"] if row["verdict"] == "surplus"]

    wait_for(surplus, "a copy is surplus")
    (row,) = surplus()
    (kept,) = careful.replicas_of("/fewer")
    assert (row["extent"], "on other nodes" in str(row["why"])) == (kept.extent, True)
    assert row["node"] != kept.node
    careful.dcs("gc", "--resume")
    wait_for(lambda: not surplus(), "it is deleted")
    assert careful.read("/fewer") == b"in one copy soon"


def test_the_tool_on_the_node_shows_garbage_and_has_it_deleted(careful: Cluster) -> None:
    """It deletes nothing that a file shows, and nothing by itself. While nothing may be deleted it says so."""
    node = careful.nodes[0]
    careful.write("/live", b"needed")
    (live,) = [replica for replica in careful.replicas_of("/live") if replica.node == node.number]
    careful.dcs("gc", "--hold", "so that nothing else deletes it")
    garbage = extent_id(SessionNumber(777_777), 1)
    put(careful, node, garbage, b"nobody's")

    def tool(*options: str) -> str:
        done = run_tool(careful, node, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def refused() -> bytes:
        done = run_tool(careful, node, "--delete")
        assert (done.returncode, done.stdout.endswith(b" 0 deleted\n")) == (1, True)
        return done.stderr

    said = tool()
    assert f"{extent_text(garbage)}: no file shows it" in said
    assert live.extent not in said
    assert refused() == b"gc: deletions are held: so that nothing else deletes it; dcs gc --resume lets them go on\n"
    (said,) = careful.dcs_json("fsck", "--repair", expect=1)["stopped"]
    assert "deletions are held: so that nothing else deletes it" in said
    careful.ask_redis("HSET", "dcs:{main}:volume", "safe", "it looks old")
    assert refused() == b"gc: nothing is deleted in SAFE mode: it looks old; see dcs status\n"
    careful.ask_redis("HDEL", "dcs:{main}:volume", "safe")
    assert has(node, garbage)
    careful.dcs("gc", "--resume")
    wait_for(lambda: "1 deleted" in tool("--delete") or not has(node, garbage), "it is deleted")
    assert not has(node, garbage)
    assert live.path.exists()


def test_an_inventory_that_cannot_be_complete_decides_nothing(careful: Cluster) -> None:
    node = careful.nodes[0]
    hidden = node.data_dir / "extents" / "80"
    hidden.rename(node.data_dir / "hidden")
    try:
        garbage = extent_id(SessionNumber(666_666), 1)
        put(careful, node, garbage, b"nobody's")
        time.sleep(LONGER_THAN_ALL_GRACES)  # That something does not happen is no fact to wait for.
        assert has(node, garbage)
    finally:
        (node.data_dir / "hidden").rename(hidden)
    wait_for(lambda: not has(node, garbage), "it is deleted once the node tells all that it holds")


def cut_short(answer: bytes) -> bytes:
    return answer[:-10]


def refuse(answer: bytes) -> bytes:
    return b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}"


def end_early(answer: bytes) -> bytes:
    """Whole to look at: the first of what the node holds, and nothing comes after."""
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    short = json.dumps({**body, "extents": body["extents"][:1], "next": None}).encode()
    return b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % len(short) + short


@pytest.mark.long
def test_a_listing_that_is_cut_short_costs_no_file_and_no_garbage_is_forgotten(make_cluster: MakeCluster) -> None:
    """Garbage that it lacks waits for the next whole one; where the listing failed it is known all the while."""
    cluster = make_cluster(2, REPLICATION_FACTOR="2", GARBAGE_GRACE_SECONDS="1")
    node, other = cluster.nodes
    with Proxy(node.address) as proxy:
        node.environment["ADVERTISE"] = proxy.address
        node.restart()
        cluster.write("/needed", b"by a file")
        live = cluster.all_replicas_of("/needed", 2)
        for number, change in enumerate((cut_short, refuse, end_early), 1):
            proxy.change_answers_to(b"GET /v1/inventory?names_only=1", change)
            garbage = extent_id(SessionNumber(666_666), number)
            for holder in (node, other):
                put(cluster, holder, garbage, b"nobody's")
            wait_for(lambda: not has(other, garbage), "it is deleted where the listing is whole")  # noqa: B023
            looks = proxy.changed + 3
            wait_for(lambda: proxy.changed > looks, "more than the grace has passed")  # noqa: B023
            assert has(node, garbage)
            assert cluster.status()["garbage"] == 1 or change is end_early
            proxy.change_answers_to(b"", None)
            wait_for(lambda: not has(node, garbage), "it is deleted after a whole listing")  # noqa: B023
            wait_for(lambda: cluster.status()["garbage"] == 0, "no garbage is left")
            assert all(replica.path.exists() for replica in live)
        assert cluster.read("/needed") == b"by a file"


def test_the_manual_tool_says_what_is_no_directory_of_a_node(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "servers.storage.tools.gc", "--data-dir", str(tmp_path)],
        env={"DCS_SECRET": "secret-secret"}, cwd=CHECKOUT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"gc: {tmp_path} is not the directory of a storage node: see --data-dir\n"
