"""What a mount says of itself when it renews its lease: its traffic, its cache, its slowest requests.

Kept in Redis as the JSON that came, and gone with its session. Only told, never decided from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from servers.naming.node_facts import UINT, RequestFigures

MOUNTS_TOLD_MAX = 256


class MountFacts(BaseModel):
    stored_bytes: UINT = Field(description="each extent counted once, as in the next")
    fetched_bytes: UINT
    cache_hits: UINT
    cache_misses: UINT
    dirty_bytes: UINT = Field(description="written and not yet stored")
    open_files: UINT
    lost_bytes: UINT = Field(description="written and given up")
    errors: dict[str, UINT] = Field(
        max_length=16, description="trouble with storage nodes that was gone around, by kind"
    )
    failures: UINT = Field(description="requests of the kernel answered with EIO")
    requests: list[RequestFigures] = Field(max_length=64)


class Mount(MountFacts):
    session: int
    host: str
    what: str


def mount_rows(rows: Sequence[Any]) -> list[Mount]:
    """The reply of the `sessions` function; commands, which say nothing of themselves, are left out."""
    found = []
    for session, host, what, told in zip(rows[::4], rows[1::4], rows[2::4], rows[3::4], strict=True):
        try:
            facts = MountFacts.model_validate_json(told)
        except ValidationError:
            continue  # Another version's.
        found.append(Mount(session=session, host=_text(host), what=_text(what), **dict(facts)))
    return found


def _text(said: bytes) -> str:
    return said.decode("utf-8", "backslashreplace")
