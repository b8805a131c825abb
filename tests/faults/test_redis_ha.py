"""Redis with replicas and Sentinels, and two naming servers: any one may die, and what was acknowledged stays."""

from __future__ import annotations

import errno
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest

from tests.support.cluster import Cluster, Mount, ReplicatedCluster
from tests.support.load import Load, wait_steps
from tests.support.ops import Ops
from tests.support.processes import Process, is_healthy, wait_for
from tests.support.redis_ha import ClusterRedis, RedisGroup, RedisServer, SentinelRedis

STALL_SECONDS_MAX = 15.0
NAMING_STALL_SECONDS_MAX = 4.0
"""2 s are allowed while another naming server is there; the rest is what a busy machine with two cores adds."""
REPLICA_MOVES_SECONDS = 5.0
"""How long a master of a Redis Cluster is without replicas before Redis moves one there."""
FOLLOWED = {"SNAPSHOT_INTERVAL_SECONDS": "3600", "SNAPSHOTS_APART_SECONDS": "1", "TAIL_INTERVAL_SECONDS": "0.2"}
FEED = re.compile(r"^slave\d+:.*port=0,", re.MULTILINE)
"""A replica as the naming server is one: nobody can call it."""


@pytest.fixture(scope="module")
def replicated() -> Iterator[ReplicatedCluster]:
    """Three nodes, two naming servers, a primary with two replicas, three Sentinels. What changes goes to the nodes,
    too: so a naming server is itself a replica, of one of the replicas."""
    with ReplicatedCluster(SentinelRedis, 3, **FOLLOWED) as cluster:
        yield cluster
        for mount in cluster.mounts:
            mount.unmount()
        cluster.wait_clean()


@pytest.fixture(scope="module")
def mount(replicated: ReplicatedCluster) -> Mount:
    return replicated.mount()


@pytest.fixture
def redis(replicated: ReplicatedCluster) -> Iterator[RedisGroup]:
    """Whole, before and after."""
    yield replicated.redises
    replicated.redises.mend()


def logs(cluster: Cluster) -> str:
    return "".join(naming.log.read_text() for naming in cluster.namings)


def wait_followed(cluster: Cluster) -> None:
    """The nodes have every change up to now."""
    wanted = cluster.status()["changes"]
    wait_for(lambda: cluster.status()["changes_stored"] >= wanted, "the nodes have all changes", 60)


@pytest.mark.fault("M7")
def test_the_primary_killed_under_load_is_a_stall_and_nothing_acknowledged_is_lost(
    replicated: ReplicatedCluster, mount: Mount, redis: RedisGroup
) -> None:
    """The naming server that follows the changes counts for nobody: neither for the old primary nor for the Sentinels,
    which `mend` asks. It goes on following."""
    wait_followed(replicated)
    load = Load(mount.path / "primary-killed")
    with load:
        wait_steps(load, 100)
        before = redis.primary()
        assert "min_slaves_good_slaves:2" in before.ask("INFO", "replication")
        assert [len(FEED.findall(server.ask("INFO", "replication"))) for server in redis.servers].count(1) == 1
        before.kill()
        wait_steps(load, 100)
        assert redis.primary() is not before
        before.start()  # A replica now; what it alone had it lets go of.
        wait_steps(load, 50)
    redis.mend()
    wait_followed(replicated)
    assert not FEED.search(redis.primary().ask("INFO", "replication"))
    mount.remount()
    load.check(mount.path / "primary-killed")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < STALL_SECONDS_MAX
    assert not replicated.status()["safe_mode"]


@pytest.mark.fault("M13")
def test_what_one_naming_server_has_answered_the_other_shows_at_once(replicated: ReplicatedCluster) -> None:
    """Neither keeps anything that the other may have changed."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(Ops(f"http://{a}", replicated.secret)) for a in replicated.addresses)
        first.open_session()
        for number in range(200):
            name = b"seen-%d" % number
            ((error, ino, *_),) = filter(None, first.batch([first.mkdir(name)]))
            assert error == 0
            assert second.ask("lookup", parent=1, name=name)[0] == ino
            assert [r and r[0] for r in first.batch([first.make("rmdir", parent=1, name=name)])] == [0]
            assert name not in second.names()


def kill_one_at_a_time(cluster: Cluster, load: Load, times: int, seed: int) -> None:
    """Each time at another moment of its work; the other one serves meanwhile."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(times):
        victim = chance.choice(cluster.namings)
        wait_steps(load, chance.randrange(1, 20))
        time.sleep(chance.random() / 50)  # Anywhere within a step: this is the fault, nothing is waited for.
        victim.kill()
        wait_steps(load, 10)
        victim.start()


@pytest.mark.fault("M1")
def test_one_of_two_naming_servers_killed_at_random_is_hardly_noticed(
    replicated: ReplicatedCluster, mount: Mount
) -> None:
    """Whatever was under way takes effect once: no spurious EEXIST or ENOENT."""
    load = Load(mount.path / "naming-killed")
    with load:
        kill_one_at_a_time(replicated, load, times=6, seed=random.randrange(10**6))
    mount.remount()
    load.check(mount.path / "naming-killed")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < NAMING_STALL_SECONDS_MAX


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault("M1")
def test_one_of_two_naming_servers_killed_200_times(replicated: ReplicatedCluster, mount: Mount) -> None:
    load = Load(mount.path / "naming-killed-often")
    with load:
        kill_one_at_a_time(replicated, load, times=200, seed=random.randrange(10**6))
    mount.remount()
    load.check(mount.path / "naming-killed-often")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < NAMING_STALL_SECONDS_MAX


@pytest.mark.long
@pytest.mark.fault("M7")
def test_a_primary_that_hangs_is_replaced_and_its_late_work_has_no_effect(
    replicated: ReplicatedCluster, mount: Mount, redis: RedisGroup
) -> None:
    """It goes on as primary, with requests in its sockets, until the Sentinels tell it otherwise."""
    load = Load(mount.path / "primary-hangs")
    with load:
        wait_steps(load, 50)
        before = redis.primary()
        before.pause()
        wait_steps(load, 100)
        before.resume()
        wait_steps(load, 100)
    redis.mend()
    mount.remount()
    load.check(mount.path / "primary-hangs")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < STALL_SECONDS_MAX


@pytest.mark.long
def test_each_replica_and_sentinel_killed_in_turn_is_hardly_noticed(
    replicated: ReplicatedCluster, mount: Mount, redis: RedisGroup
) -> None:
    load = Load(mount.path / "each-killed")
    with load:
        for program in (*redis.replicas(), *redis.watchers):
            wait_steps(load, 20)
            program.kill()
            wait_steps(load, 50)
            redis.mend()
    mount.remount()
    load.check(mount.path / "each-killed")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < STALL_SECONDS_MAX


@pytest.mark.long
@pytest.mark.fault("M9")
def test_without_sentinels_work_goes_on_with_an_alarm_and_without_replicas_it_ends_in_time(
    replicated: ReplicatedCluster, mount: Mount, redis: RedisGroup
) -> None:
    for sentinel in redis.watchers:
        sentinel.kill()
    for address in replicated.addresses:
        wait_for(lambda: "no failover" in health_of(address).get("detail", ""), f"{address} says it", 10)  # noqa: B023
    (mount.path / "without-sentinels").mkdir()
    assert all(is_healthy(address) for address in replicated.addresses)
    primary, replicas = redis.primary_by_role(), redis.servers
    for server in replicas:
        if server is not primary:
            server.kill()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        (mount.path / "without-replicas").mkdir()
    assert time.monotonic() - began < 32
    redis.mend()
    wait_for(lambda: not (mount.path / "without-sentinels" / "x").exists(), "names are looked up again")
    (mount.path / "with-replicas").mkdir()


def health_of(address: str) -> dict[str, str]:
    return dict(httpx.get(f"http://{address}/health", trust_env=False).json())


def is_empty(redis: RedisGroup, key: str) -> bool:
    return redis.primary().ask("ZCARD", "dcs:{main}:" + key) == "0"


def leader_of(cluster: Cluster, redis: RedisGroup) -> Process | None:
    """The naming server that runs the background jobs."""
    found = redis.primary().ask("GET", "dcs:{main}:leader")
    return next((naming for naming in cluster.namings if f":{naming.pid}:" in found), None)


@pytest.mark.long
def test_a_leader_that_slept_through_the_end_of_its_lease_does_nothing_more(
    replicated: ReplicatedCluster, mount: Mount, redis: RedisGroup
) -> None:
    """Another runs the background jobs then; what the first one still wants to do is refused."""
    first = wait_for(lambda: leader_of(replicated, redis), "a naming server leads", 30)
    assert first is not None
    first.pause()
    wait_for(lambda: leader_of(replicated, redis) not in (None, first), "the other one leads", 30)
    (mount.path / "unlinked").write_bytes(b"x" * 5000)
    (mount.path / "unlinked").unlink()
    for key in ("orphans", "condemned"):
        wait_for(partial(is_empty, redis, key), f"{key} are gone")
    first.resume()
    wait_for(lambda: is_healthy(f"127.0.0.1:{first.environment['PORT']}"), "the first one is back")
    assert leader_of(replicated, redis) not in (None, first)


@pytest.mark.fault("M7")
def test_a_failover_that_lost_what_was_acknowledged_is_loud_and_read_only() -> None:
    """The one replica that had it died with the primary: SAFE mode, and nothing is deleted."""
    with ReplicatedCluster(SentinelRedis, 0) as cluster, Ops(cluster.naming_url, cluster.secret) as ops:
        redis = cluster.redises
        ops.open_session()
        primary, (with_it, without_it) = redis.primary(), redis.replicas()
        without_it.kill()
        assert [r and r[0] for r in ops.batch([ops.mkdir(b"acknowledged")])] == [0]
        with_it.kill()
        primary.kill()
        without_it.start()
        assert redis.primary() is without_it
        with_it.start()  # Follows the new primary, and forgets.
        wait_for(lambda: cluster.status()["safe_mode"], "SAFE mode")
        assert "but change" in cluster.status()["safe_because"]
        wait_for(lambda: logs(cluster).count("SAFE mode, read-only") == 2, "both naming servers say it")
        assert [r and r[0] for r in ops.batch([ops.mkdir(b"more")])] == [errno.EROFS]


@pytest.fixture(scope="module")
def clustered() -> Iterator[ReplicatedCluster]:
    """Three nodes, two naming servers, a Redis Cluster of six."""
    with ReplicatedCluster(ClusterRedis) as cluster:
        cluster.mount()
        yield cluster


@pytest.mark.long
@pytest.mark.fault("M10")
def test_the_master_of_the_slot_killed_is_a_stall_and_nothing_acknowledged_is_lost(
    clustered: ReplicatedCluster,
) -> None:
    (mount,), redis = clustered.mounts, clustered.redises
    load = Load(mount.path / "master-killed")
    with load:
        wait_steps(load, 100)
        before = redis.primary()
        before.kill()
        wait_steps(load, 100)
        assert redis.primary() is not before
        before.start()
        wait_steps(load, 50)
    redis.mend()
    mount.remount()
    load.check(mount.path / "master-killed")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < STALL_SECONDS_MAX
    assert not clustered.status()["safe_mode"]


@pytest.mark.long
@pytest.mark.fault("M10")
def test_the_master_of_the_slot_keeps_its_replicas_when_another_has_lost_its_only_one(
    clustered: ReplicatedCluster,
) -> None:
    """Redis would move one there, 5 s later, and the next failover would leave a master that takes no changes."""
    redis = clustered.redises
    assert isinstance(redis, ClusterRedis)
    primary, other = redis.primary(), redis.other_master()
    only = next(server for server in redis.servers if f"master_port:{other.port}" in server.ask("INFO", "replication"))
    name = only.ask("CLUSTER", "MYID")
    only.kill()
    try:

        def is_missed() -> bool:
            lines = primary.ask("CLUSTER", "NODES").splitlines()
            return any(line.startswith(name) and ",fail " in line for line in lines)

        wait_for(is_missed, "the cluster knows that the replica is dead")
        until = time.monotonic() + 2 * REPLICA_MOVES_SECONDS
        while time.monotonic() < until:
            assert primary.ask("INFO", "replication").count("state=online") == 2
            time.sleep(0.2)
    finally:
        redis.mend()


def redirections(server: RedisServer) -> Counter[str]:
    """How often it has sent someone elsewhere, for one question (ASK) or for good (MOVED)."""
    found = re.findall(r"^errorstat_(ASK|MOVED):count=(\d+)", server.ask("INFO", "errorstats"), re.MULTILINE)
    return Counter({name: int(count) for name, count in found})


@pytest.mark.long
@pytest.mark.fault("M10")
def test_a_slot_that_moves_under_load_is_a_stall(clustered: ReplicatedCluster) -> None:
    """While keys are at two places no function works on half a volume; it goes on at the new master. Some asked the old
    one meanwhile, and afterwards."""
    (mount,), redis = clustered.mounts, clustered.redises
    assert isinstance(redis, ClusterRedis)
    load = Load(mount.path / "slot-moves")
    with load:
        wait_steps(load, 100)
        source, target = redis.primary(), redis.other_master()
        before = redirections(source)
        redis.move_slot(source, target)
        assert redis.primary() is target
        wait_steps(load, 100)
    sent = redirections(source) - before
    print(f"sent elsewhere: {dict(sent)}")
    assert sent["ASK"] > 0
    assert sent["MOVED"] > 0
    mount.remount()
    load.check(mount.path / "slot-moves")
    print(f"longest stall: {load.longest_seconds:.1f} s")
    assert load.longest_seconds < STALL_SECONDS_MAX
    assert "CROSSSLOT" not in logs(clustered)
