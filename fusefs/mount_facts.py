"""What a mount says of itself with each renewal of its lease, for `dcs status`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from servers.protocol.requests import FIGURES_TOLD, Requests, figures


def errors_by_kind(s: Mapping[str, int]) -> dict[str, int]:
    """Trouble with storage nodes that was gone around."""
    return {
        "store": s["store_failures"], "fetch": s["fetch_failures"], "damage": s["bad_replicas"],
        "fewer_replicas": s["stored_with_fewer_replicas"],
    }  # fmt: skip


def mount_facts(requests: Requests, s: Mapping[str, int]) -> bytes:
    """As JSON; what each of them means is in servers/naming/mount_facts.py."""
    told = {
        **{name: s[name] for name in ("stored_bytes", "fetched_bytes", "dirty_bytes", "lost_bytes")},
        "cache_hits": s["hits"], "cache_misses": s["misses"], "open_files": s["handles"],
        "errors": errors_by_kind(s),
        "failures": sum(one.failures for one in requests.verbs.values()),
        "requests": [asdict(one) for one in figures(requests)[:FIGURES_TOLD]],
    }  # fmt: skip
    return json.dumps(told).encode()
