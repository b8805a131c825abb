"""What a naming server tells Prometheus: its own work, and what the volume holds and waits for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prometheus_client.core import Metric

from servers.naming.copies import survey_of, under_replicated
from servers.naming.service import Service
from servers.protocol.errors import DcsError
from servers.protocol.metrics import counter, counters, gauge, gauges, request_families

NODE_STATES = ("alive", "suspect", "dead")


async def naming_metrics(service: Service) -> list[Metric]:
    """Those of the volume are left out while Redis does not answer; `dcs_naming_redis_up` is 0 then."""
    families = [
        *request_families("dcs_naming_request", service.requests), *request_families("dcs_naming_job", service.jobs),
        *request_families("dcs_naming_operation", service.store.operations),
    ]  # fmt: skip
    calls = service.store.statistics()
    families += [
        counters("dcs_naming_errors", "What kept this server from its work, by kind.", "kind", service.errors()),
        counter("dcs_naming_redis_retries", "Calls sent again because the connection broke.", calls["retries"]),
        gauge("dcs_naming_redis_calls_under_way", "Calls that wait for Redis.", calls["under_way"]),
        gauge(
            "dcs_naming_metadata_tail_lag_seconds",
            "For how long Redis alone has had a change of the metadata; 0 where this server does not lead.",
            time.monotonic() - service.unstored_since if service.unstored_since else 0.0,
        ),
        gauge("dcs_naming_redis_up", "1 while Redis answers and has the volume.", _is_up(service)),
    ]
    try:
        (held,) = await service.store.ask("status")
        states = Counter[str](node.state for node in await service.nodes())
    except DcsError:
        return families
    return families + _volume_metrics(held, states)


def _is_up(service: Service) -> bool:
    return service.store.connected and service.store.fault is None


def _volume_metrics(held: Mapping[bytes, Any], states: Mapping[str, int]) -> list[Metric]:  # Any: what msgpack gives.
    v, repair = {name.decode(): value for name, value in held.items()}, survey_of(held)
    return [
        gauges("dcs_nodes", "Storage nodes by state.", "state", {state: states.get(state, 0) for state in NODE_STATES}),
        gauge("dcs_volume_safe_mode", "1 while the volume is read-only because metadata is missing.", bool(v["safe"])),
        gauges(
            "dcs_volume_inodes", "Files and directories.", "kind",
            {"file": v["files"], "directory": v["directories"], "deleted_but_open": v["orphans"]},
        ),
        gauge("dcs_volume_bytes", "Bytes of files that extents hold, each counted once.", v["bytes"]),
        gauge("dcs_volume_extents", "Extents that files show.", v["extents"]),
        gauges(
            "dcs_volume_extents_in_danger", "Extents with too few copies, and replicas damaged or missing.", "kind",
            {"under_replicated": under_replicated(held), "damaged_replicas": v["damaged"]},
        ),
        gauges(
            "dcs_volume_repair_queue_extents", "Extents to be healed, by the good copies left.", "good_copies",
            {"0": repair.get("missing", 0), **repair.get("by_danger", {})},
        ),
        gauge("dcs_volume_repair_paused", "1 while so many nodes are away that only last copies are copied.",
              bool(repair.get("paused"))),
        counters(
            "dcs_volume_repairs", "What the naming server that leads did, by kind.", "kind",
            {kind: repair.get(kind, 0) for kind in ("copies", "drops", "failures")},
        ),
        counter("dcs_volume_repaired_bytes", "Copied by the naming server that leads.", repair.get("copied_bytes", 0)),
        gauge("dcs_volume_deletions_pending", "Extents condemned and not gone yet.", v["deletions_pending"]),
        gauge("dcs_volume_garbage_extents", "Extents on nodes that nobody needs, in their grace.", v["garbage"]),
        gauges(
            "dcs_volume_deletions_stopped", "1 while an operator holds deletions, or garbage waits for one.", "kind",
            {"held": bool(v["held"]), "brake": bool(v["brake"])},
        ),
        gauge("dcs_volume_trash_files", "Removed files and directories that can be restored.", v["trash"]),
        gauge("dcs_volume_trash_bytes", "Bytes of removed files, each counted once.", v["trash_bytes"]),
        gauge("dcs_volume_long_chunks", "Chunks with long lists of segments, to be compacted.", v["long"]),
        gauge("dcs_volume_snapshot_age_seconds", "Since the metadata was stored on the nodes.", v["snapshot_age_s"]),
        gauge("dcs_volume_changes_unstored", "Changes of the metadata that Redis alone has, not the nodes.",
              max(0, v["seq"] - v["stored_seq"])),
        gauge("dcs_volume_maps_purging", "Chunk maps being let go of.", v["purging"]),
        gauge("dcs_volume_sessions", "Mounts and commands at work.", v["sessions"]),
        counter("dcs_volume_changes", "The volume's change counter.", v["seq"]),
    ]  # fmt: skip
