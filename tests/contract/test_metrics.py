"""What everybody tells Prometheus: true, documented, with the secret only, and no names of files."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cluster import SECRET, Cluster, Mount
from tests.support.commands import refused
from tests.support.ops import Ops
from tests.support.processes import CHECKOUT, free_port, wait_for

DOCUMENTED = (CHECKOUT / "deploy/metrics.md").read_text("utf-8")


@dataclass
class Told:
    """The samples of one scrape, by name and labels."""

    text: str

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of all samples that have these labels."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no {name} {labels} in\n{self.text}"
        return sum(found)


def scrape(address: str) -> Told:
    answer = httpx.get(f"http://{address}/metrics", headers={"authorization": f"Bearer {SECRET}"}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return Told(answer.text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The scrub of the last of its nodes does not get on at all."""
    with Cluster(nodes=0, SCRUB_PERIOD_SECONDS="2") as made:
        made.add_nodes({}, {}, {"SCRUB_BYTES_PER_SECOND_MAX": "1"})
        yield made


@pytest.fixture(scope="module")
def mount_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def mount(cluster: Cluster, mount_port: int) -> Mount:
    made = cluster.mount("mnt", "--metrics", str(mount_port))
    (made.path / "secret-name").write_bytes(b"x" * 100_000)
    made.remount()
    for _ in range(2):
        assert (made.path / "secret-name").read_bytes() == b"x" * 100_000
    return made


def addresses(cluster: Cluster, mount_port: int) -> dict[str, str]:
    return {"naming": cluster.address, "node": cluster.nodes[0].address, "mount": f"127.0.0.1:{mount_port}"}


def test_a_storage_node_tells_of_requests_disks_and_its_scrub(cluster: Cluster, mount: Mount) -> None:
    told = scrape(cluster.nodes[0].address)
    assert told("dcs_node_request_seconds_count", verb="put") >= 1
    assert told("dcs_node_bytes_total", direction="stored") == 100_000
    assert told("dcs_node_replicas", state="good") == 1
    assert told("dcs_node_disk_bytes", kind="used") > 100_000
    assert told("dcs_node_disk_state", state="good") == 1
    assert told("dcs_node_errors_total") == 0
    wait_for(lambda: scrape(cluster.nodes[0].address)("dcs_node_scrubbed_bytes_total") > 100_000, "it scrubs")
    wait_for(lambda: scrape(cluster.nodes[0].address)("dcs_node_scrub_late") == 0, "it is in time")


def test_a_scrub_that_is_stalled_is_told(cluster: Cluster, mount: Mount) -> None:
    """By the node's metrics, and by `dcs status` and `dcs nodes` with the words of an alarm."""
    stalled = cluster.nodes[-1]
    wait_for(lambda: scrape(stalled.address)("dcs_node_scrub_late") == 1, "it is late")

    def status() -> str:
        return cluster.dcs("status").stdout.decode()

    wait_for(
        lambda: re.search(rf"scrub +LATE on .*{stalled.data_dir} of node {stalled.number}", status()), "it says so"
    )
    (row,) = [line for line in cluster.dcs("nodes").stdout.decode().splitlines() if stalled.address in line]
    assert re.search(r" [0-9]+ s, LATE ", row)
    told = scrape(stalled.address)
    assert (told("dcs_node_scrubbed_bytes_total"), told("dcs_node_replicas", state="good")) == (0, 1)
    assert told("dcs_node_scrub_age_seconds") > 1.5 * 2


def test_the_naming_server_tells_of_the_volume(cluster: Cluster, mount: Mount) -> None:
    told = scrape(cluster.address)
    assert told("dcs_naming_request_seconds_count", verb="ops_batch") >= 1
    assert told("dcs_naming_request_seconds_count", verb="POST /register_storage") >= 3
    assert told("dcs_naming_operation_seconds_count", verb="commit") == 1
    assert told("dcs_naming_operation_failures_total", verb="commit") == 0
    assert "commit" in {row["verb"] for row in cluster.dcs_json("status")["requests"]}
    assert told("dcs_naming_job_seconds_count", verb="expiry") >= 1
    assert told("dcs_naming_redis_up") == 1
    assert told("dcs_nodes", state="alive") == 3
    assert told("dcs_volume_inodes", kind="file") == 1
    assert told("dcs_volume_bytes") == 100_000
    assert told("dcs_volume_extents_in_danger") == 0
    assert told("dcs_volume_sessions") >= 1
    assert told("dcs_volume_safe_mode") == 0


def test_a_mount_tells_on_its_own_machine_when_it_is_asked_to(cluster: Cluster, mount: Mount, mount_port: int) -> None:
    told = scrape(f"127.0.0.1:{mount_port}")
    assert told("dcs_mount_request_seconds_count", verb="open") == 2
    assert told("dcs_mount_bytes_total", direction="fetched") == 100_000
    assert told("dcs_mount_cache_reads_total") >= 1
    assert told("dcs_mount_nodes_alive") == 3
    assert told("dcs_mount_metadata_operations_total") >= 1
    assert told("dcs_mount_errors_total") == 0
    assert told("dcs_mount_lost_bytes_total") == told("dcs_mount_sessions_lost_total") == 0


@pytest.mark.parametrize("who", ["naming", "node", "mount"])
def test_metrics_want_the_secret_and_name_no_file(cluster: Cluster, mount: Mount, mount_port: int, who: str) -> None:
    address = addresses(cluster, mount_port)[who]
    assert "secret-name" not in scrape(address).text
    for headers in ({}, {"authorization": "Bearer wrong-secret"}):
        assert httpx.get(f"http://{address}/metrics", headers=headers, trust_env=False).status_code == 401


@pytest.mark.parametrize("who", ["naming", "node", "mount"])
def test_every_metric_is_documented(cluster: Cluster, mount: Mount, mount_port: int, who: str) -> None:
    known = set(re.findall(r"dcs_\w+", DOCUMENTED))
    stem = ""
    for word in re.findall(r"`(dcs_mount_metadata)_operations_total`|`(_\w+)`", DOCUMENTED):
        stem = word[0] or stem
        known.add(stem + word[1])
    for family in text_string_to_metric_families(scrape(addresses(cluster, mount_port)[who]).text):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name in known, f"{name} is not in {Path('deploy/metrics.md')}"


def test_the_naming_server_counts_what_keeps_it_from_its_work(cluster: Cluster, mount: Mount) -> None:
    """By kind, each there from the start: a call that Redis does not answer in time, another volume's node."""
    before = scrape(cluster.address)
    documented = re.search(r"`dcs_naming_errors_total` \| `kind`: ([a-z_, ]+) \|", DOCUMENTED)
    assert documented
    with Ops(cluster.naming_url, SECRET) as ops:
        cluster.redis.pause()
        try:
            assert ops.batch([ops.read("statfs")], deadline_ms=300) == [None]
        finally:
            cluster.redis.resume()
    foreign = {**cluster.rest("GET", "/v1/nodes").json()["nodes"][0], "volume": "f" * 32}
    assert cluster.rest("POST", "/register_storage", foreign).status_code == 409
    after = scrape(cluster.address)
    met = {
        kind: after("dcs_naming_errors_total", kind=kind) - before("dcs_naming_errors_total", kind=kind)
        for kind in documented[1].split(", ")
    }
    assert {kind: count for kind, count in met.items() if count} == {"redis_timeout": 1, "foreign_node": 1}
    told = {kind: count for kind, count in cluster.dcs_json("status")["errors"].items() if count}
    assert told.items() >= {"redis_timeout": 1, "foreign_node": 1}.items()
    assert b"1 foreign_node, 1 redis_timeout" in cluster.dcs("status").stdout


def mounts(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.dcs_json("status")["mounts"]
    return found


def test_dcs_status_tells_what_mounts_and_nodes_count(cluster: Cluster, mount: Mount) -> None:
    """As they said last: a mount when it renews its lease, a node with each heartbeat. Gone with the mount."""
    wait_for(lambda: [m for m in mounts(cluster) if m["fetched_bytes"]], "the mount has told what it did", 30)
    (told,) = mounts(cluster)
    assert told["what"] == f"mount of {mount.path}"
    assert (told["fetched_bytes"], told["lost_bytes"], told["failures"]) == (100_000, 0, 0)
    assert told["errors"] == {"store": 0, "fetch": 0, "damage": 0, "fewer_replicas": 0}
    assert told["cache_hits"] + told["cache_misses"] >= 1
    assert told["requests"][0]["count"] >= 1
    node = cluster.dcs_json("nodes")[0]
    assert node["stored_bytes"] == 100_000
    assert node["errors"] == {"damage": 0, "read": 0, "sync": 0}
    assert {"put", "get"} & {row["verb"] for row in node["requests"]}
    words = cluster.dcs("status").stdout.decode()
    assert str(mount.path) in words
    assert "cache hits" in words
    mount.unmount()
    assert mounts(cluster) == []
    mount.start()


def test_the_naming_server_tells_of_repairs(cluster: Cluster, mount: Mount) -> None:
    """What waits, by danger, and what was done. Nothing was wrong in the tests before."""
    before = scrape(cluster.address)
    assert before("dcs_volume_repair_queue_extents", good_copies="0") == 0
    assert before("dcs_volume_repairs_total") == before("dcs_volume_repaired_bytes_total") == 0
    (replica,) = [r for r in cluster.replicas_of("/secret-name") if r.node == cluster.nodes[0].number]
    cluster.corrupt_chunk_on_disk(replica)
    wait_for(lambda: scrape(cluster.address)("dcs_volume_repairs_total", kind="copies") >= 1, "it was repaired", 60)
    wait_for(lambda: scrape(cluster.address)("dcs_volume_extents_in_danger") == 0, "nothing is in danger", 60)
    after = scrape(cluster.address)
    assert after("dcs_volume_repaired_bytes_total") >= 100_000
    assert after("dcs_volume_repairs_total", kind="failures") == 0


def test_dcs_status_tells_of_a_mounts_errors(cluster: Cluster, mount: Mount) -> None:
    """The last of the module: nothing heals what is damaged everywhere."""
    cluster.write("/rotten", b"rotten")
    for replica in cluster.replicas_of("/rotten"):
        cluster.corrupt_chunk_on_disk(replica)
    with refused(errno.EIO):
        (mount.path / "rotten").read_bytes()
    wait_for(lambda: [m for m in mounts(cluster) if m["errors"]["damage"] >= 3], "the mount has told of the damage", 30)
    assert re.search(r"[1-9]\d* EIO, [1-9]\d* damage", cluster.dcs("status").stdout.decode())
