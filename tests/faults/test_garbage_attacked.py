"""Garbage collection under attack: no extent that a file shows is ever deleted, and garbage still goes to zero."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from servers.protocol.geometry import Segment
from servers.protocol.ids import ExtentId, SessionNumber, extent_id, extent_text
from servers.protocol.naming_api import pack_segments, unpack_attributes
from tests.support.cluster import Cluster
from tests.support.ops import Ops
from tests.support.processes import wait_for
from tests.support.proxy import Proxy

LONGER_THAN_ALL_GRACES = 3.0


@dataclass(frozen=True)
class Between:
    """A cluster with a proxy before its Redis, and one before one of its nodes."""

    cluster: Cluster
    redis: Proxy
    node: Proxy


@pytest.fixture(scope="module")
def between() -> Iterator[Between]:
    """Its graces are shorter than anything under way; whatever is garbage is deleted without asking."""
    made = Cluster(
        3, GARBAGE_GRACE_SECONDS="0.5", GARBAGE_INTERVAL_SECONDS="0.3", CONDEMNED_GRACE_SECONDS="0.5",
        GARBAGE_BRAKE_SHARE="1", SESSION_LEASE_SECONDS="10",
    )  # fmt: skip
    with Proxy(f"127.0.0.1:{made.redis_port}") as redis:
        made.naming.environment["REDIS_URL"] = f"redis://{redis.address}/0"
        with made, Proxy(made.nodes[0].address) as node:
            made.nodes[0].environment["ADVERTISE"] = node.address
            made.nodes[0].restart()
            made.write("/stays", os.urandom(20_000))
            yield Between(made, redis, node)


@pytest.fixture(scope="module")
def attacked(between: Between) -> Cluster:
    return between.cluster


def live_replicas(cluster: Cluster) -> dict[tuple[str, int], bool]:
    """Each extent that a file shows on each node that should have it, and whether its file is on that disk."""
    found: dict[tuple[str, int], bool] = {}
    after: str | None = "0"
    while after is not None:
        page = cluster.rest("GET", f"/v1/extents?after={after}").json()
        for row in page["extents"]:
            for number in row["nodes"]:
                found[row["id"], number] = cluster.node(number).path_of(row["id"]) is not None
        after = page["next"]
    return found


def assert_all_alive(cluster: Cluster, at_least: int) -> None:
    found = live_replicas(cluster)
    assert len(found) >= at_least, "the files that should be there are not"
    assert all(found.values()), [key for key, is_there in found.items() if not is_there]


def upload(cluster: Cluster, extent: ExtentId, data: bytes) -> None:
    for node in cluster.nodes:
        answer = httpx.put(
            f"http://{node.address}/v1/extents/{extent_text(extent)}", content=data, trust_env=False,
            headers={"authorization": f"Bearer {cluster.secret}"},
        )  # fmt: skip
        assert answer.status_code in (200, 201), answer.text


def commit(ops: Ops, cluster: Cluster, name: bytes, extent: ExtentId, length: int) -> None:
    """A file that shows the extent, which all nodes have."""
    nodes = tuple(node.number for node in cluster.nodes)
    (made,) = ops.batch([ops.make("create", parent=1, name=name, mode=0o644, uid=0, gid=0)])
    assert made is not None
    ino = unpack_attributes(made[1], made[2]).ino
    segments = pack_segments([Segment(0, extent, 0, length, nodes)])  # type: ignore[arg-type]  # any numbers will do
    (reply,) = ops.batch([ops.make("commit", ino=ino, chunks=[0, segments], end=length, synced=True)])
    assert reply is not None
    assert reply[0] == 0


def test_an_upload_that_takes_longer_than_every_grace_is_no_garbage(attacked: Cluster) -> None:
    """The session that lives is its write intent."""
    with Ops(attacked.naming_url, attacked.secret) as ops:
        ops.open_session()
        extent = extent_id(ops.session, 1)
        upload(attacked, extent, b"slowly" * 100)
        for _ in range(3):
            time.sleep(1)
            ops.ask("session_renew")
        commit(ops, attacked, b"slow", extent, 600)
    assert attacked.read("/slow") == b"slowly" * 100
    assert_all_alive(attacked, 3)


def writes(cluster: Cluster, name: str, data: bytes) -> bool:
    return cluster.dcs("create", "--overwrite", "-", name, stdin=data, expect=None).returncode == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.long)])
def test_naming_servers_and_nodes_killed_in_any_step_delete_nothing_that_is_needed(
    attacked: Cluster, kills: int
) -> None:
    """Files and garbage come and go meanwhile; what is left is exactly what files show."""
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    content = {f"/kept{n}": os.urandom(chance.randrange(1, 50_000)) for n in range(5)}
    for name, data in content.items():
        attacked.write(name, data, "--overwrite")
    for round_number in range(kills):
        for n in range(3):
            upload(attacked, extent_id(SessionNumber(500_000 + round_number), n + 1), b"nobody's")
        # A node may have been killed for so long that the first heartbeat comes too late: nothing is made meanwhile.
        wait_for(lambda: writes(attacked, "/passing", os.urandom(1000)), "all nodes take part again")
        victim = chance.choice([attacked.naming, attacked.naming, *attacked.nodes])
        time.sleep(chance.random() * 0.8)
        victim.kill()
        victim.start()
        attacked.wait_alive(3)
        assert_all_alive(attacked, 3 * len(content))
    attacked.wait_clean()
    wait_for(lambda: attacked.status()["garbage"] == 0, "no garbage is left")
    assert_all_alive(attacked, 3 * len(content))
    for name, data in content.items():
        assert attacked.read(name) == data
    expected = {extent for extent, _ in live_replicas(attacked)}
    wait_for(lambda: all(node.extents() == expected for node in attacked.nodes), "each node has what files show")


@dataclass(frozen=True)
class Step:
    """Where the naming server dies, and what is so by then."""

    request: bytes
    """To Redis, or to a node."""
    held_by: tuple[int, ...]
    """How many of the three nodes still have the extent."""
    is_noted: bool
    """Redis still knows that it is to be deleted."""
    is_done: bool = True
    """It dies when the request was done and before the answer, or else just before the request."""


NODE_DELETES = b"POST /v1/extents/delete "
OF_GARBAGE = [
    pytest.param(Step(b"sight_", (3,), is_noted=True), id="seen", marks=pytest.mark.long),
    pytest.param(Step(b"collect_", (3,), is_noted=True), id="claimed"),
    pytest.param(Step(b"order_", (3,), is_noted=True), id="numbered", marks=pytest.mark.long),
    pytest.param(Step(NODE_DELETES, (0, 1, 2), is_noted=True), id="deleted by one node"),
    pytest.param(Step(b"collected_", (0,), is_noted=True, is_done=False), id="deleted by all"),
    pytest.param(Step(b"collected_", (0,), is_noted=False), id="forgotten", marks=pytest.mark.long),
]
OF_CONDEMNED = [
    pytest.param(Step(b"order_", (3,), is_noted=True), id="numbered", marks=pytest.mark.long),
    pytest.param(Step(b"deleted_", (0,), is_noted=True, is_done=False), id="deleted by all"),
    pytest.param(Step(b"deleted_", (0,), is_noted=False), id="forgotten", marks=pytest.mark.long),
]


def kill_naming_at(step: Step, extent: ExtentId, between: Between) -> threading.Event:
    """It is to die there; the event tells that it did."""
    proxy, kill = between.node if step.request == NODE_DELETES else between.redis, between.cluster.naming.kill
    if step.is_done:
        # Of extents that files show `sight` is asked all the time.
        proxy.lose_answer_to(step.request, kill, also=extent if step.request == b"sight_" else b"")
    else:
        proxy.lose_request(step.request, kill)
    return proxy.lost


def assert_ended(cluster: Cluster, list_name: str, extent: ExtentId, step: Step, killed: threading.Event) -> None:
    """The naming server died where it should, and the next one does the rest. No file loses anything."""

    def held_by() -> int:
        return sum(extent_text(extent) in node.extents() for node in cluster.nodes)

    def noted() -> int:
        return int(cluster.ask_redis("ZCARD", f"dcs:{{main}}:{list_name}"))

    assert killed.wait(20), "the request never came"
    wait_for(lambda: held_by() in step.held_by and noted() == step.is_noted, "this step was done, and no other")
    cluster.ask_redis("DEL", "dcs:{main}:leader")  # The dead one's lease: the next leads at once, not in 10 s.
    cluster.naming.start()
    wait_for(lambda: not held_by() and not noted(), "the extent is gone from all nodes, and from the list")
    assert_all_alive(cluster, 3)


@pytest.fixture
def tidy(attacked: Cluster) -> None:
    """Nothing is left to be deleted."""

    def is_tidy() -> bool:
        status = attacked.status()
        return status["garbage"] == status["deletions_pending"] == status["purging"] == 0

    wait_for(is_tidy, "nothing is to be deleted")


@pytest.mark.fault("M2", "M3")
@pytest.mark.parametrize("step", OF_GARBAGE)
def test_a_naming_server_killed_at_any_step_of_a_collection_lets_another_end_it(
    between: Between, tidy: None, step: Step
) -> None:
    """What no session will commit goes from all nodes, and nothing else does."""
    session = SessionNumber(time.time_ns() % 1_000_000_000 + 1_000_000)
    extent = extent_id(session, 1)
    killed = kill_naming_at(step, extent, between)
    upload(between.cluster, extent, b"nobody's")
    assert_ended(between.cluster, "garbage", extent, step, killed)
    assert between.cluster.ask_redis("SISMEMBER", "dcs:{main}:collected", str(session)) == "1"


@pytest.mark.fault("M2", "M3")
@pytest.mark.parametrize("step", OF_CONDEMNED)
def test_a_naming_server_killed_at_any_step_of_a_deletion_lets_another_end_it(
    between: Between, tidy: None, step: Step
) -> None:
    """What a deleted file showed goes from all nodes, and nothing else does."""
    with Ops(between.cluster.naming_url, between.cluster.secret) as ops:
        ops.open_session()
        extent = extent_id(ops.session, 1)
        upload(between.cluster, extent, b"needed")
        commit(ops, between.cluster, b"goes", extent, 6)
        killed = kill_naming_at(step, extent, between)
        ops.batch([ops.make("unlink", parent=1, name=b"goes")])
    assert_ended(between.cluster, "condemned", extent, step, killed)


@pytest.mark.fault("M12")
def test_redis_restored_from_an_earlier_hour_deletes_nothing(attacked: Cluster) -> None:
    """What was written since looks like garbage to it. The nodes know better, though every naming server was new."""
    data = attacked.directory / "redis"
    attacked.wait_clean()
    attacked.naming.stop()
    attacked.redis.stop()
    shutil.copytree(data, attacked.directory / "earlier")
    attacked.redis.start()
    attacked.naming.start()
    attacked.wait_alive(3)
    attacked.write("/since", b"written since" * 1000)
    held = {node.number: node.extents() for node in attacked.nodes}
    wait_for(lambda: all(_knows(attacked, node.data_dir) for node in attacked.nodes), "the nodes know of the change")
    attacked.naming.stop()
    attacked.redis.stop()
    shutil.rmtree(data)
    shutil.copytree(attacked.directory / "earlier", data)
    attacked.redis.start()
    attacked.naming.start()
    wait_for(lambda: attacked.status()["safe_mode"], "the naming server heard of it")
    time.sleep(LONGER_THAN_ALL_GRACES)  # That something does not happen is no fact to wait for.
    assert {node.number: node.extents() for node in attacked.nodes} == held
    # Somebody who does not know better turns SAFE mode off: the nodes still do not obey, and turn it on again.
    attacked.ask_redis("HDEL", "dcs:{main}:volume", "safe")
    time.sleep(LONGER_THAN_ALL_GRACES)
    assert {node.number: node.extents() for node in attacked.nodes} == held


def _knows(cluster: Cluster, data_dir: object) -> bool:
    seq = int(cluster.ask_redis("HGET", "dcs:{main}:volume", "seq"))
    with open(f"{data_dir}/volume", encoding="ascii") as file:
        return int(file.read().split()[1]) >= seq
