"""What is known of copies that are missing, as every naming server tells it: from the reply of the `status` function.

The naming server that leads notes what it has found by walking over all files (background/repair.py);
what was stored with too few copies Redis knows by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack


def survey_of(held: Mapping[bytes, Any]) -> dict[str, Any]:  # Any: what msgpack gives.
    """What the leader has found out of the replicas."""
    return msgpack.unpackb(held[b"survey"]) if held[b"survey"] else {}


def under_replicated(held: Mapping[bytes, Any]) -> int:
    """Extents with fewer good copies than asked for, those of dead nodes counted as missing."""
    count: int = max(held[b"under_replicated"], survey_of(held).get("under_replicated", 0))
    return count
