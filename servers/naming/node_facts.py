"""What a storage node says of itself beyond that it lives: its disks, its scrub, how it stores.

Kept in Redis as the JSON that came, so that a node's new facts need no change of the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from servers.protocol.ids import NodeNumber

DISKS_MAX = 64
UINT = Annotated[int, Field(ge=0, le=2**53)]


class DiskFacts(BaseModel):
    path: str = Field(max_length=4096)
    state: str = Field(max_length=20, examples=["good"], description="good, read-only or failed")
    used_bytes: UINT
    free_bytes: UINT
    total_bytes: UINT
    replicas: UINT
    set_aside: UINT = Field(description="damaged replicas, moved out of the way and kept")
    errors: UINT = Field(description="of the disk, since the node's start")
    scrubbed_s: UINT = Field(description="when the last complete scrub ended, in seconds since 1970")
    scrub_late: bool


class RequestFigures(BaseModel):
    verb: str = Field(max_length=100)
    count: UINT
    failures: UINT
    half_ms: UINT | None = Field(description="half of them took so long at most; null: longer than any bound")
    most_ms: UINT | None = Field(description="99 in 100 did")


class NodeFacts(BaseModel):
    start: str = Field("", max_length=64, description="another one for each start of the node; empty: nothing is said")
    held: str = Field("", max_length=64, description="a digest of the extents it has")
    lost: UINT = Field(0, description="grows when replicas went away or bad without an order, since this start")
    ended: bool = Field(False, description="its last word: all that it has is on stable storage")
    store_ms: UINT = Field(0, description="what a store took lately")
    disks: list[DiskFacts] = Field([], max_length=DISKS_MAX)
    stored_bytes: UINT = Field(0, description="since the node's start, as are all below")
    read_bytes: UINT = 0
    errors: dict[str, UINT] = Field({}, max_length=64, description="by kind: see deploy/metrics.md")
    requests: list[RequestFigures] = Field([], max_length=64, description="the slowest")


def no_facts() -> NodeFacts:
    return NodeFacts.model_validate({})


@dataclass(frozen=True)
class Known:
    facts: NodeFacts = field(default_factory=no_facts)
    in_doubt: bool = False


def read_facts(rows: Sequence[Any]) -> dict[NodeNumber, Known]:
    """The reply of the `facts` function. What cannot be read, because another version wrote it, is as if not said."""
    found = {}
    for number, text, doubted_ms in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        try:
            facts = NodeFacts.model_validate_json(text)
        except ValidationError:
            facts = no_facts()
        found[NodeNumber(int(number))] = Known(facts, doubted_ms > 0)
    return found
