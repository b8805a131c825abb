"""Batches of operations on a real naming server and a real Redis, and what becomes of them when either fails."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest

from servers.client.naming import SESSION_LOST
from servers.protocol.geometry import Segment
from servers.protocol.ids import NodeNumber, extent_id
from servers.protocol.limits import OPERATIONS_PER_BATCH_MAX
from servers.protocol.naming_api import Operation, operation, pack_batch, pack_segments
from tests.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.ops import Ops
from tests.support.processes import free_port, is_healthy, wait_for
from tests.support.redis_proxy import RedisProxy

SLACK_SECONDS = 1.0
RECOVERY_SECONDS = 5.0


@pytest.fixture(scope="module")
def metadata() -> Iterator[Cluster]:
    """A naming server and its Redis, without storage nodes."""
    with Cluster(nodes=0) as made:
        yield made


@pytest.fixture
def ops(metadata: Cluster) -> Iterator[Ops]:
    with Ops(metadata.naming_url, metadata.secret) as made:
        made.open_session()
        yield made


def test_a_batch_is_answered_in_order(ops: Ops) -> None:
    """Each with its own errno; a later one may depend on an earlier one."""
    replies = ops.batch(
        [
            ops.mkdir(b"a"),
            ops.mkdir(b"a"),
            operation("lookup", 0, parent=1, name=b"a"),
            operation("getattr", 0, ino=999),
        ]
    )
    assert [reply[0] for reply in replies if reply] == [0, errno.EEXIST, 0, errno.ESTALE]
    assert replies[2][1] == replies[0][1]  # type: ignore[index]  # both were answered


def test_the_largest_batch(ops: Ops) -> None:
    names = [b"n%d" % i for i in range(OPERATIONS_PER_BATCH_MAX)]
    assert all(reply and reply[0] == 0 for reply in ops.batch([ops.mkdir(name) for name in names]))
    assert {n for n in ops.names() if n.startswith(b"n")} == set(names)
    many = [operation("getattr", 0, ino=1)] * (OPERATIONS_PER_BATCH_MAX + 1)
    assert ops.post(pack_batch(ops.session, many)).status_code == 400
    assert ops.batch([]) == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", b"\xff" * 1000, msgpack.packb(7), msgpack.packb([1]), msgpack.packb(["x", []]),
        msgpack.packb([1, [["nonsense", 0, b""]]]), msgpack.packb([1, [["volume_open", 0, b""]]]),
        msgpack.packb([1, [["mkdir", 0, b"\x80"]]]), msgpack.packb([1, [["getattr", 1, b"\x80"]]]),
        msgpack.packb([1, [[{}, 1, b""]]], strict_types=True), msgpack.packb([2**64 - 1, []]), b"\xdd\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_a_malformed_batch_is_refused(ops: Ops, body: bytes) -> None:
    answer = ops.post(body)
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_malformed_arguments_hold_up_nobody_else(ops: Ops) -> None:
    """EINVAL for that one, the others are done."""
    ops.n += 1
    replies = ops.batch([Operation("mkdir", ops.n, b"\xc1"), ops.mkdir(b"fine"), Operation("getattr", 0, b"\x01")])
    assert [reply[0] for reply in replies if reply] == [errno.EINVAL, 0, errno.EINVAL]


@pytest.mark.parametrize("deadline", ["x", "", "1e3", "nan", "0x10"])
def test_a_malformed_deadline_is_refused(ops: Ops, deadline: str) -> None:
    assert ops.post(pack_batch(ops.session, []), deadline).status_code == 400


def test_the_secret_is_asked_for(metadata: Cluster) -> None:
    for secret in ("wrong", metadata.secret + "x"):
        with Ops(metadata.naming_url, secret) as stranger:
            assert stranger.post(b"").status_code == 401


def test_a_number_counts_once_over_the_wire(ops: Ops) -> None:
    again = ops.mkdir(b"once")
    first, second = ops.batch([again, again])
    assert first == second == ops.batch([again])[0]


@pytest.mark.fault("N8")
def test_a_recorded_commit_that_comes_after_its_session_has_ended_is_rejected(metadata: Cluster, ops: Ops) -> None:
    """One that was done and comes again as well as one that had never come: nothing is changed."""
    (made,) = ops.batch([ops.make("create", parent=1, name=b"recorded", mode=0o644, uid=0, gid=0)])
    assert made is not None
    assert made[0] == 0

    def record(number: int) -> bytes:
        chunks = [0, pack_segments([Segment(0, extent_id(ops.session, number), 0, 10, (NodeNumber(1),))])]
        return pack_batch(ops.session, [ops.make("commit", ino=made[1], chunks=chunks, end=10, synced=True)])

    def shown() -> tuple[object, str]:
        return ops.ask("getattr", ino=made[1]), metadata.ask_redis("HGET", "dcs:{main}:volume", "seq")

    done, late = record(1), record(2)
    assert ops.replies(done)[0][0] == 0  # type: ignore[index]  # it was answered
    ops.ask("session_close")
    before = shown()
    assert [ops.replies(body) for body in (done, late)] == [[[SESSION_LOST]]] * 2
    ops.open_session()
    assert [ops.replies(body) for body in (done, late)] == [[[SESSION_LOST]]] * 2
    assert shown() == before


# Redis away.


def test_redis_that_hangs_is_waited_for_until_the_deadline(metadata: Cluster, ops: Ops) -> None:
    """None for each operation, in time; when it goes on so do we, and what ran late took effect once."""
    batch = [ops.mkdir(b"hang"), operation("getattr", 0, ino=1)]
    metadata.redis.pause()
    try:
        start = time.monotonic()
        assert ops.batch(batch, deadline_ms=500) == [None, None]
        assert 0.4 < time.monotonic() - start < 0.5 + SLACK_SECONDS
    finally:
        metadata.redis.resume()
    start = time.monotonic()
    made, found = ops.batch(batch)
    assert time.monotonic() - start < RECOVERY_SECONDS
    assert made is not None
    assert made[0] == 0
    assert found is not None
    assert ops.names().count(b"hang") == 1


def test_redis_that_is_killed_is_waited_for(metadata: Cluster, ops: Ops) -> None:
    """A call begun while it is away is done when it is back; nothing acknowledged is missing; the session lives."""
    ops.batch([ops.mkdir(b"before")])
    metadata.redis.kill()
    wait_for(lambda: not is_healthy(metadata.address), "the naming server says that Redis is away")
    waiting = ops.mkdir(b"meanwhile")
    replies: list[Any] = []
    caller = threading.Thread(target=lambda: replies.extend(ops.batch([waiting])))
    caller.start()
    time.sleep(0.3)  # Long enough to be under way; nothing depends on it.
    metadata.redis.start()
    start = time.monotonic()
    caller.join(RECOVERY_SECONDS)
    assert replies, "the call did not end"
    assert replies[0][0] == 0
    assert time.monotonic() - start < RECOVERY_SECONDS
    assert {b"before", b"meanwhile"} <= set(ops.names())
    wait_for(lambda: is_healthy(metadata.address), "the naming server is healthy again", RECOVERY_SECONDS)


def test_redis_killed_again_and_again_loses_nothing(metadata: Cluster, ops: Ops) -> None:
    """Every mkdir that was answered is there, each once, and none was answered EEXIST."""
    stop = threading.Event()
    made: list[tuple[int, list[Any]]] = []
    wrong: list[tuple[int, list[Any]]] = []

    def make() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            again = ops.mkdir(b"load %d" % number)
            while (reply := ops.batch([again], deadline_ms=2000)[0]) is None:
                pass
            (made if reply[0] == 0 else wrong).append((number, reply))

    load = threading.Thread(target=make)
    load.start()
    for _ in range(4):
        enough = len(made) + 20
        wait_for(lambda: len(made) > enough, "work is going on")  # noqa: B023 - it ends before the next round
        metadata.redis.kill()
        metadata.redis.start()
    stop.set()
    load.join(30)
    assert wrong == []
    assert {n for n in ops.names() if n.startswith(b"load ")} == {b"load %d" % number for number, _ in made}


def test_a_rest_call_waits_too_and_then_says_503(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(0, METADATA_DEADLINE_SECONDS="3")
    cluster.redis.pause()
    try:
        start = time.monotonic()
        answer = cluster.rest("GET", "/files?name=x")
        assert answer.status_code == 503
        assert "Redis" in answer.json()["detail"]
        assert 2.5 < time.monotonic() - start < 3 + SLACK_SECONDS
    finally:
        cluster.redis.resume()
    assert cluster.rest("GET", "/files?name=x").status_code == 404


def test_a_long_freeze_costs_no_session(make_cluster: MakeCluster) -> None:
    """Longer than the lease: nobody could renew, so nobody's lease ran out."""
    cluster = make_cluster(0, SESSION_LEASE_SECONDS="4", BACKGROUND_INTERVAL_SECONDS="0.2")
    with Ops(cluster.naming_url, cluster.secret) as ops:
        ops.open_session()
        cluster.redis.pause()
        time.sleep(6)
        cluster.redis.resume()
        reply = wait_for(lambda: ops.batch([ops.mkdir(b"after")])[0], "an answer")
        assert reply
        assert reply[0] == 0
        assert ops.batch([operation("session_renew", 0)])[0] is not None
        assert wait_for(
            lambda: ops.batch([ops.mkdir(b"x")])[0] == [SESSION_LOST], "a lease that is not renewed runs out", 15
        )


def test_killed_after_redis_did_the_work_and_before_it_answered(make_cluster: MakeCluster) -> None:
    """The retry gets the original answer: no EEXIST for what we made, no ENOENT for what we took away."""
    cluster = make_cluster(0)
    cluster.naming.stop()
    port = free_port()
    with RedisProxy(port, cluster.redis_port) as proxy, Ops(cluster.naming_url, cluster.secret) as ops:
        cluster.naming.environment["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        cluster.naming.start()
        ops.open_session()
        rename = {"parent": 1, "name": b"d", "new_parent": 1, "new_name": b"e", "flags": 0}
        for make in (
            lambda: ops.mkdir(b"d"),
            lambda: ops.make("rename", **rename),
            lambda: ops.make("rmdir", parent=1, name=b"e"),
        ):
            kill_before_the_answer(cluster, proxy, ops, make())


def kill_before_the_answer(cluster: Cluster, proxy: RedisProxy, ops: Ops, change: Operation) -> None:
    def seq() -> int:
        return int(cluster.ask_redis("HGET", "dcs:{main}:volume", "seq"))

    def ask_in_vain() -> None:
        with pytest.raises(httpx.TransportError):
            ops.batch([change])

    before = seq()
    proxy.hold_replies()
    caller = threading.Thread(target=ask_in_vain)
    caller.start()
    wait_for(lambda: seq() > before, "Redis has done it")
    cluster.naming.kill()
    caller.join(10)
    proxy.answer()
    cluster.naming.start()
    (reply,) = ops.batch([change])
    assert reply is not None
    assert reply[0] == 0
    assert seq() == before + 1
