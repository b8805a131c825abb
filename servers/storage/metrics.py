"""What a storage node tells Prometheus. Blocks for the disks' space."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from servers.protocol.metrics import counter, counters, gauge, request_families
from servers.storage.disk_health import DiskState
from servers.storage.node import StorageNode


def node_metrics(node: StorageNode) -> Iterator[Metric]:
    yield from request_families("dcs_node_request", node.requests)
    counts = node.store.statistics()
    yield counters(
        "dcs_node_bytes", "Bytes of extents that clients and other nodes stored here and read from here.", "direction",
        {"stored": counts["put_bytes"], "read": counts["get_bytes"], "copied": counts["copied_bytes"]},
    )  # fmt: skip
    yield counters(
        "dcs_node_errors", "What went wrong with the disks, by kind.", "kind",
        node.store.errors(),
    )  # fmt: skip
    yield counter("dcs_node_lost_replicas", "Replicas that went away or bad without an order.", node.lost_replicas())
    yield gauge("dcs_node_condemned_bytes", "Deleted, and kept while there is room.", node.disks.condemned_bytes())
    yield gauge("dcs_node_unsynced_extents", "Extents not yet on stable storage.", counts["unsynced"])
    yield gauge("dcs_node_open_files", "Replicas kept open for readers.", counts["open_files"])
    yield gauge("dcs_node_store_seconds", "What a store took lately, smoothed.", node.store.store_seconds)
    yield from _disk_metrics(node)


def _disk_metrics(node: StorageNode) -> Iterator[Metric]:
    replicas = GaugeMetricFamily("dcs_node_replicas", "Replicas by state.", labels=["disk", "state"])
    space = GaugeMetricFamily("dcs_node_disk_bytes", "Space, free without the reserve.", labels=["disk", "kind"])
    state = GaugeMetricFamily("dcs_node_disk_state", "1 for the state that the disk is in.", labels=["disk", "state"])
    errors = CounterMetricFamily("dcs_node_disk_errors", "Errors of the disk.", labels=["disk"])
    age = GaugeMetricFamily("dcs_node_scrub_age_seconds", "Since the end of the last complete scrub.", labels=["disk"])
    late = GaugeMetricFamily("dcs_node_scrub_late", "1 when the scrub does not keep up: an alarm.", labels=["disk"])
    scrubbed = CounterMetricFamily("dcs_node_scrubbed_bytes", "Read and verified.", labels=["disk"])
    for disk in node.disks:
        name, held, scrub = str(disk.directory.root), disk.holdings.total, node.scrubs[disk].state()
        counts = disk.health.state is not DiskState.FAILED
        replicas.add_metric([name, "good"], held.count if counts else 0)
        replicas.add_metric([name, "lost"], 0 if counts else held.count)
        replicas.add_metric([name, "set_aside"], len(disk.damaged))
        space.add_metric([name, "used"], held.bytes)
        space.add_metric([name, "set_aside"], disk.damaged.bytes())
        space.add_metric([name, "free"], disk.free_bytes())
        space.add_metric([name, "total"], disk.total_bytes())
        for possible in DiskState:
            state.add_metric([name, possible.value], disk.health.state is possible)
        errors.add_metric([name], disk.health.errors)
        age.add_metric([name], max(0.0, time.time() - scrub.completed_s))
        late.add_metric([name], scrub.is_late)
        scrubbed.add_metric([name], scrub.bytes)
    yield from (replicas, space, state, errors, age, late, scrubbed)
