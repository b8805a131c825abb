"""Metadata that is not what it was: nothing goes on as if nothing had happened, and nothing is deleted."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import time

import httpx
import pytest

from servers.protocol.naming_api import operation
from tests.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.ops import Ops
from tests.support.processes import CHECKOUT, is_healthy, wait_for

KEY = "dcs:{main}:volume"
START_SECONDS = 20.0


def replicas(cluster: Cluster) -> dict[int, set[str]]:
    return {node.number: node.extents() for node in cluster.nodes}


def health(cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = httpx.get(cluster.naming_url + "/health", trust_env=False).json()
    return found


def expect_nothing_is_deleted(cluster: Cluster, before: dict[int, set[str]], seconds: float = 6) -> None:
    """For longer than every grace of a test cluster. Sleeps: that something does not happen is no fact to wait for."""
    time.sleep(seconds)
    assert replicas(cluster) == before


@pytest.mark.fault("M12")
def test_a_flushed_redis_is_noticed_and_nothing_is_deleted(make_cluster: MakeCluster) -> None:
    """Reads fail, they do not say that names are not there; mutations are refused; no new volume is made."""
    cluster = make_cluster(3)
    cluster.write("/a", b"precious")
    before = replicas(cluster)
    with Ops(cluster.naming_url, cluster.secret) as ops:
        ops.open_session()
        cluster.ask_redis("FLUSHALL")
        assert ops.batch([ops.mkdir(b"x"), operation("lookup", 0, parent=1, name=b"a")]) == [[errno.EROFS], [errno.EIO]]
        wait_for(lambda: not is_healthy(cluster.address), "the naming server says so")
        assert "not in Redis any more" in health(cluster)["detail"]
        assert "not in Redis any more" in cluster.naming.log_tail()
        for method, target in (("GET", "/files?name=a"), ("GET", "/v1/status"), ("GET", "/v1/extents")):
            assert cluster.rest(method, target).status_code == 503, target
        assert cluster.rest("POST", "/files/init", {"name": "b"}).status_code == 503
        expect_nothing_is_deleted(cluster, before)
        assert cluster.ask_redis("EXISTS", KEY) == "0"
        cluster.redis.restart()
        wait_for(lambda: "not in Redis any more" in health(cluster)["detail"], "it is noticed after a reconnection too")
        assert ops.batch([ops.mkdir(b"x")]) == [[errno.EROFS]]
        assert cluster.ask_redis("EXISTS", KEY) == "0"
    assert replicas(cluster) == before


@pytest.mark.fault("M12")
def test_an_older_backup_is_read_only(make_cluster: MakeCluster) -> None:
    """The changes after it are missed; what it has is read; what it does not know is not deleted."""
    cluster = make_cluster(3)
    cluster.write("/old", b"old")
    cluster.redis.stop()
    data, backup = cluster.directory / "redis", cluster.directory / "backup"
    shutil.copytree(data, backup)
    cluster.redis.start()
    wait_for(lambda: is_healthy(cluster.address), "Redis is back")
    cluster.write("/new", b"new")
    seq = int(cluster.ask_redis("HGET", KEY, "seq"))
    time.sleep(1.5)  # The naming server looks once a second; that it has seen the change shows nowhere else.
    before = replicas(cluster)
    cluster.redis.stop()
    shutil.rmtree(data)
    shutil.copytree(backup, data)
    cluster.redis.start()
    wait_for(lambda: cluster.status()["safe_mode"], "SAFE mode")
    assert f"change {seq} was seen" in cluster.status()["safe_because"]
    assert "SAFE mode" in health(cluster)["detail"]
    assert cluster.read("/old") == b"old"
    assert b"No such file" not in cluster.dcs("size", "/new", expect=1).stderr
    cluster.dcs("delete", "/old", expect=1)
    assert cluster.rest("POST", "/files/init", {"name": "b"}).status_code == 503
    expect_nothing_is_deleted(cluster, before)
    cluster.naming.stop()
    cluster.naming.start(wait=False)
    wait_for(lambda: "SAFE mode" in _detail(cluster), "a naming server that knows nothing of it is told by Redis")
    assert replicas(cluster) == before


def _detail(cluster: Cluster) -> str:
    try:
        return health(cluster).get("detail", "")
    except httpx.TransportError:
        return ""


def test_a_node_of_another_volume_is_refused(make_cluster: MakeCluster) -> None:
    """Its extents would all look like garbage. One that knows of a later change brings SAFE mode."""
    cluster = make_cluster(0)
    me = {"uuid": "a" * 32, "address": "127.0.0.1:1", "used_bytes": 0, "free_bytes": 9, "total_bytes": 9, "space": "s"}
    first = cluster.rest("POST", "/register_storage", me)
    assert first.status_code == 200
    told = first.json()
    assert told["safe_mode"] is False
    again = cluster.rest("POST", "/register_storage", me | {"volume": told["volume"], "seq": told["seq"]}).json()
    assert again | {"now_ms": told["now_ms"]} == told
    refused = cluster.rest("POST", "/register_storage", me | {"volume": "b" * 32})
    assert refused.status_code == 409
    assert "b" * 32 in refused.json()["detail"]
    assert is_healthy(cluster.address)
    later = cluster.rest("POST", "/register_storage", me | {"volume": told["volume"], "seq": told["seq"] + 1})
    assert later.json()["safe_mode"] is True
    wait_for(lambda: "SAFE mode" in _detail(cluster), "the naming server says so")
    assert "storage node knows of" in cluster.naming.log_tail()


def test_nodes_tell_a_new_naming_server_what_its_redis_has_forgotten(make_cluster: MakeCluster) -> None:
    """All of Redis and the naming server are begun anew: the nodes keep away, and keep what they have; what is there
    instead of their volume is not taken for an empty one."""
    cluster = make_cluster(3)
    cluster.write("/a", b"precious")
    wait_for(lambda: all((node.data_dir / "volume").exists() for node in cluster.nodes), "the nodes know their volume")
    before = replicas(cluster)
    cluster.naming.stop()
    cluster.ask_redis("FLUSHALL")
    cluster.naming.start()
    wait_for(lambda: "is refused" in cluster.naming.log_tail(), "a node is refused")
    wait_for(lambda: "SAFE mode" in _detail(cluster), "the naming server says so")
    cluster.dcs("mkdir", "/instead", expect=1)
    assert b"No such file" not in cluster.dcs("read", "/a", "-", expect=1).stderr
    expect_nothing_is_deleted(cluster, before)
    new = {"uuid": "a" * 32, "address": "127.0.0.1:1", "used_bytes": 0, "free_bytes": 9, "total_bytes": 9, "space": "s"}
    assert cluster.rest("POST", "/register_storage", new).status_code == 503, "it would keep to this volume for good"
    status = cluster.status()
    assert status["nodes"] == []
    assert "no storage node ever belonged" in status["safe_because"]
    for node in cluster.nodes:
        assert "whose extents the node keeps" in node.log_tail()


@pytest.mark.parametrize(
    ("setting", "bad", "good"),
    [
        ("appendfsync", "everysec", "always"),
        ("appendonly", "no", "yes"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
def test_a_redis_that_would_lose_data_is_refused(make_cluster: MakeCluster, setting: str, bad: str, good: str) -> None:
    """With one clear line and exit status 1; `--i-accept-data-loss` accepts it."""
    cluster = make_cluster(0)
    cluster.naming.stop()
    cluster.ask_redis("CONFIG", "SET", setting, bad)
    command = [sys.executable, "-m", "servers.naming"]
    done = subprocess.run(
        command, env=cluster.naming.environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert line == (
        f"naming server: Redis would lose acknowledged changes: set {setting} {good} in its configuration, "
        "or start the naming server with --i-accept-data-loss"
    )
    cluster.naming.environment["ACCEPT_DATA_LOSS"] = "1"
    cluster.naming.start()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"REDIS_URL": "http://x"}, "REDIS_URL"),
        ({"REDIS_URL": "redis+sentinel://a:1,b:2"}, "redis+sentinel://a:1,b:2/SERVICE"),
        ({"CHUNK_SIZE": "1000"}, "CHUNK_SIZE"),
        ({"CHUNK_SIZE": "big"}, "CHUNK_SIZE"),
        ({"REPLICATION_FACTOR": "0"}, "REPLICATION_FACTOR"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        ({"VOLUME": "a}b"}, "VOLUME"),
        ({"DCS_SECRET": ""}, "secret"),
        ({"DCS_SECRET_FILE": "/no/such/file"}, "secret"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_line(
    make_cluster: MakeCluster, environment: dict[str, str], words: str
) -> None:
    cluster = make_cluster(0)
    cluster.naming.stop()
    done = subprocess.run(
        [sys.executable, "-m", "servers.naming"], env={**cluster.naming.environment, **environment}, cwd=CHECKOUT,
        capture_output=True, text=True, timeout=START_SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if " INFO " not in line]
    assert line.startswith("naming server: ")
    assert words in line


def test_an_absent_redis_is_waited_for(make_cluster: MakeCluster) -> None:
    """The server starts, says 503 at /health, and works as soon as Redis is there."""
    cluster = make_cluster(0)
    cluster.naming.stop()
    cluster.redis.stop()
    cluster.naming.start(wait=False)
    wait_for(lambda: "Redis is away" in _detail(cluster), "/health answers that Redis is away")
    assert httpx.get(cluster.naming_url + "/health", trust_env=False).status_code == 503
    cluster.redis.start()
    wait_for(lambda: is_healthy(cluster.address), "the naming server is healthy", 5)
    cluster.dcs("mkdir", "/d")


def test_a_redis_that_becomes_unsafe_is_not_worked_with(make_cluster: MakeCluster) -> None:
    """Found when it comes back with another configuration: loud, and over when it is right again."""
    cluster = make_cluster(0)
    cluster.ask_redis("CONFIG", "SET", "appendfsync", "everysec")
    cluster.ask_redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_for(lambda: "would lose acknowledged changes" in _detail(cluster), "/health says why")
    cluster.ask_redis("CONFIG", "SET", "appendfsync", "always")
    wait_for(lambda: is_healthy(cluster.address), "the naming server is healthy again")


def test_two_naming_servers_that_start_together_make_one_volume(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(0)
    cluster.naming.stop()
    cluster.ask_redis("FLUSHALL")
    other = cluster._process("naming2", [sys.executable, "-m", "servers.naming"], lambda: True, PORT="0",
                             REDIS_URL=cluster.naming.environment["REDIS_URL"])  # fmt: skip
    try:
        cluster.naming.start(wait=False)
        other.start(wait=False)
        cluster.naming.wait_ready()
        wait_for(lambda: "listening on" in other.log_tail(), "the other one listens")
        logs = cluster.naming.log_tail() + other.log_tail()
        assert logs.count("made volume") == 2, "one of them now, and the cluster's own before"
        assert cluster.status()["directories"] == 1
    finally:
        other.stop()


def test_a_naming_server_that_stores_a_snapshot_on_silent_nodes_ends_when_told(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.naming.environment["SNAPSHOT_INTERVAL_SECONDS"] = "3600"
    for node in cluster.nodes:
        node.pause()
    cluster.naming.restart()
    wait_for(lambda: cluster.ask_redis("ZCARD", "dcs:{main}:snapshots") == "1", "a snapshot is begun")
    assert cluster.naming.stop(seconds=15) == 0
